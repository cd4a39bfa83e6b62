"Input that is wrong is refused with a ValueError or FileNotFoundError that names it; nothing else is raised."
import copy, json, random
import numpy as np, pytest
from tokenlab.tokenizers.core import ByteTokenizer, Tokenizer
from tokenlab.tokenizers.bpe import train_bpe
from tokenlab.tokenizers.formats import read_ranks
from tokenlab.tokenizers.unigram import from_sentencepiece, train_unigram
from tokenlab.tokenizers.wordpiece import read_vocab_txt, train_wordpiece

TRAINERS = {"bpe": lambda *a, **k: train_bpe(*a, engine="reference", **k), "unigram": train_unigram, "wordpiece": train_wordpiece}
SIZES = {"bpe": 270, "unigram": 270, "wordpiece": 520}
JUNK = [None, 5, -1, "x", [], {}, [5], {"type": "Magic"}, {"type": "Sequence"}, {"no": 1}, True, 1e99]
pytestmark = pytest.mark.filterwarnings("ignore:the (merges|candidates) ran out")


def places(part, path=()):
    "Every place in a tokenizer.json, but not the words themselves."
    inner = part.items() if isinstance(part, dict) else enumerate(part[:2]) if isinstance(part, list) else ()
    for key, value in inner:
        yield (*path, key)
        if key not in ("vocab", "merges"): yield from places(value, (*path, key))


@pytest.mark.parametrize("name", TRAINERS)
def test_any_part_of_a_file_may_be_junk(tmp_path, name):
    good, rng = TRAINERS[name](["def f(x): return 12345"] * 2, SIZES[name], special_tokens=["<s>"]).to_json(), random.Random(0)
    cases = [(where, junk) for where in places(good) for junk in JUNK]
    for where, junk in rng.sample(cases, 120):
        bad = copy.deepcopy(good)
        part = bad
        for key in where[:-1]: part = part[key]
        part[where[-1]] = junk
        (tmp_path/"tokenizer.json").write_text(json.dumps(bad))
        try: tok = Tokenizer.load(tmp_path)
        except ValueError as e:
            assert "tokenizer.json" in str(e), (where, junk)
            continue
        try: tok.decode(tok.encode("ab 12 é", special="allow"))
        except ValueError: pass


@pytest.mark.parametrize("raw, problem", [(b"", "is not JSON"), (b"\xff{", "is not JSON"), (b"null", "holds a NoneType"), (b"[" * 100_000, "is not JSON"), (b"\xef\xbb\xbf{}", "no model with a vocabulary")])
def test_files_that_are_no_json_object(tmp_path, raw, problem):
    (tmp_path/"tokenizer.json").write_bytes(raw)
    with pytest.raises(ValueError, match=problem): Tokenizer.load(tmp_path)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = ByteTokenizer(["<s>"]).save(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Tokenizer.load(path).special_tokens == {"<s>": 256}


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("texts, size, options, problem", [
    ("text", 600, {}, "is one text"), (None, 600, {}, "texts is None"), ([], 600, {}, "no text"), (["", b""], 600, {}, "no text"), ([None], 600, {}, "NoneType"),
    (["a"], 600.5, {}, "not a whole number"), (["a"], -1, {}, "too small"), (["a"], 600, dict(special_tokens=[5]), "is no text"), (["\ud800"], 600, {}, "lone surrogate"),
    (["a"], 600, dict(special_tokens=[""]), "empty"), (["a"], 600, dict(pattern=5), "no regular expression")])
def test_training_that_cannot_be(name, texts, size, options, problem):
    with pytest.raises(ValueError, match=problem): TRAINERS[name](texts, size, **options)


@pytest.mark.parametrize("ids", [[-1], [256], ["a"], [None], [1.5], 5, np.zeros((2, 2), int)])
def test_ids_that_are_none(ids):
    with pytest.raises(ValueError, match="id"): ByteTokenizer().decode(ids)


def test_a_special_token_spelt_like_a_word_is_refused():
    with pytest.raises(ValueError, match="spelt alike: 'a'"): train_wordpiece(["a b"], 600, special_tokens=["a"])


@pytest.mark.parametrize("read", [read_ranks, read_vocab_txt, from_sentencepiece, Tokenizer.load])
def test_files_that_are_not_there_or_are_rubbish(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="no "): read(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"): read(tmp_path/"nowhere")
    (tmp_path/"rubbish").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="rubbish"): read(tmp_path/"rubbish")
