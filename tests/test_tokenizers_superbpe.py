"SuperBPE: exact limits, the authors' rules, the library's trainer and encoder, the plain engine."
import json, warnings
import pytest, tokenizers
from pydoc_data.topics import topics
from tokenizers import models, pre_tokenizers, trainers
from tokenlab.tokenizers.bpe import BPE, bytes_per_token, compile_pattern, split, train_bpe
from tokenlab.tokenizers.core import Tokenizer
from tokenlab.tokenizers.superbpe import PUBLISHED, SUBWORDS, SUPERWORDS, lines_of, superword, train_superbpe

pytestmark = pytest.mark.filterwarnings("ignore:the merges ran out")
PAGES = [t for _, t in sorted(topics.items())]
TRAIN, HELD_OUT = PAGES[1::4], PAGES[::8]


@pytest.fixture(scope="module")
def trained(): return train_superbpe(TRAIN, 1500, transition=1000)


def merges(tokenizer): return tokenizer.to_json()["model"]["merges"]


def test_transition_at_the_end_is_bpe():
    a, b = train_superbpe(TRAIN, 900, transition=900), train_bpe(TRAIN, 900, pattern=SUBWORDS)
    assert (a.tokens, a.merges) == (b.tokens, b.merges)


def test_same_pattern_twice_is_one_phase():
    once = train_bpe(lines_of(TRAIN), 900, pattern="gpt2", allow=lambda t: True)
    for t in (300, 600, 899):
        twice = train_bpe(lines_of(TRAIN), 900, pattern="gpt2", start=train_bpe(lines_of(TRAIN), t, pattern="gpt2"))
        assert twice.merges == once.merges


def test_first_phase_is_kept(trained):
    assert trained.tokens[:1000] == train_bpe(TRAIN, 1000, pattern=SUBWORDS).tokens


def test_transition_at_the_bytes_equals_the_library(monkeypatch):
    "Without a first phase and without rules it is BPE with the second pattern: the library's trainer, line by line."
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(SUPERWORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    theirs.train_from_iterator(lines_of(TRAIN), trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    monkeypatch.setattr("tokenlab.tokenizers.superbpe.superword", lambda token, max_words: True)
    assert json.loads(theirs.to_str())["model"]["merges"] == merges(train_superbpe(TRAIN, 700, transition=256))


def test_engines_agree(trained):
    plain = train_bpe(lines_of(TRAIN), 1500, pattern=SUPERWORDS, start=train_bpe(TRAIN, 1000, pattern=SUBWORDS, engine="reference"), allow=superword, engine="reference")
    assert plain.merges == trained.merges


def test_rules(trained):
    new = trained.tokens[1000:]
    assert all(superword(t) for t in new) and any(b" " in t.strip() for t in new)
    loose = train_superbpe(["one: two three four five six seven\n"]*5, 300, transition=256, max_words=9)
    assert any(len(t.split()) > 4 for t in loose.tokens) and not any(b": " in t for t in loose.tokens)
    tight = train_superbpe(["one: two three four five six seven\n"]*5, 285, transition=256, max_words=2)
    assert max(len(t.split()) for t in tight.tokens) == 2


def test_no_token_crosses_a_line(trained):
    assert not any(b"\n" in t.rstrip(b"\n") and t.strip() for t in trained.tokens[1000:])


def test_encodes_as_the_library(trained, tmp_path):
    hf = trained.to_hf()
    odd = ["", " ", "12345 67", "a::b: c", "--x--", "  \t\n\n x  ", "naïve 🦜👩‍👩‍👧", "e\u0301", "\0\x7f", "x"*500 + "!?!" * 9]
    back = Tokenizer.load(trained.save(tmp_path))
    for text in HELD_OUT + odd:
        ids = trained.encode(text)
        assert hf.encode(text).ids == ids == back.encode(text)
        assert trained.decode(ids) == text


def test_shorter_than_bpe(trained):
    assert bytes_per_token(trained, HELD_OUT) > 1.02*bytes_per_token(train_bpe(TRAIN, 1500, pattern=SUBWORDS), HELD_OUT)


def test_special_tokens_and_start():
    first = train_bpe(TRAIN, 600, special_tokens=["<|endoftext|>"])
    more = train_superbpe(TRAIN, 800, start=first, special_tokens=["<|x|>"])
    assert more.tokens[:600] == first.tokens and more.vocab_size == 800
    assert more.special_tokens == {"<|endoftext|>": 599, "<|x|>": 799}
    assert train_superbpe(TRAIN, 800, special_tokens=["<s>"]).special_tokens == {"<s>": 799}


def test_patterns_as_published():
    cut = lambda text, pattern: split(text, compile_pattern(pattern))
    assert cut("can't STOP7890 ...\r\n/x", SUBWORDS) == ["can", "'t", " STOP", "789", "0", " ...\r\n/", "x"]
    assert cut("can't STOP7890 ...\r\n/x  ", SUPERWORDS) == ["can't STOP", "789", "0", " ...\r\n/", "x", "  "]


def test_published_savings_grow():
    saved = [1 - b/a for a, b, _ in PUBLISHED.values()]
    assert saved == sorted(saved) and abs(saved[-1] - .328) < .001


@pytest.mark.parametrize("options, message", [(dict(transition=1.2), "a share"), (dict(transition=100), "first phase"), (dict(transition=5000), "first phase")])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message): train_superbpe(TRAIN, 1000, **options)
