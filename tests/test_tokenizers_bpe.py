"Byte-level BPE: equal to the naive loop, to the tokenizers library, and exact."
import json, random, sysconfig
from collections import Counter
from pathlib import Path
import pytest, tokenizers
from hypothesis import given, settings, strategies as st
from tokenizers import models, pre_tokenizers, trainers
from tokenlab.tokenizers.bpe import (BPE, BYTE_IDS, PATTERNS, PairIndex, compile_pattern, count_pieces, learn_merges, merge_heap, merge_scan, split,
                                     start_ids, train_bpe)
from tokenlab.tokenizers.pretokenize import Pretokenizer
from tokenlab.tokenizers.core import BYTE_ORDER, ByteTokenizer, Tokenizer, cut, to_chars

EOT = "<|endoftext|>"
STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def code():
    "About a megabyte of source code."
    return [(STDLIB/f"{n}.py").read_text(encoding="utf8") for n in ("argparse", "ast", "datetime", "difflib", "doctest", "inspect", "locale", "pathlib",
                                                                    "pickle", "tarfile", "typing", "uuid", "turtle", "zipfile") if (STDLIB/f"{n}.py").exists()]


@pytest.fixture(scope="module")
def languages(data_dir):
    "One text per language."
    return ["\n".join(json.loads(line)["articles"]) for line in (data_dir/"udhr.jsonl").open(encoding="utf8")]


@pytest.fixture(scope="module")
def trained(code): return train_bpe(code, 2048, special_tokens=[EOT])


ODD = ["", " ", "a", "\0\1\x1f\x7f\x85\u2028", "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪", "e\u0301 \u0301 \u200d", "  \t\n\r\n  x \u3000 y\xa0", "'s'S'll I'RE 've", "0123456789 ½ ² ٣",
       "a" * 3000 + " " * 100, "".join(map(chr, range(0x300, 0x370))), "שלום עולם", "こんにちは世界", "\ufffd\ufeff", f"x{EOT}y"]


def naive(pieces, n_tokens, min_frequency=1):
    "Count all pairs again for each merge."
    words = {tuple(start_ids(p)): n for p, n in pieces.items()}
    tokens, merges = [bytes([b]) for b in BYTE_ORDER], []
    while len(tokens) < n_tokens:
        count = Counter()
        for ids, n in words.items():
            for pair in zip(ids, ids[1:]): count[pair] += n
        if not count: break
        pair = min(count, key=lambda p: (-count[p], p))
        if count[pair] < min_frequency: break
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        merges.append(pair)
        new, after = len(tokens) - 1, {}
        for ids, n in words.items():
            out, i = [], 0
            while i < len(ids):
                hit = ids[i:i+2] == pair
                out.append(new if hit else ids[i])
                i += 1 + hit
            after[tuple(out)] = after.get(tuple(out), 0) + n
        words = after
    return tokens, merges


@given(st.dictionaries(st.text("ab", min_size=1, max_size=12).map(str.encode), st.integers(1, 5), min_size=1, max_size=6), st.integers(256, 290), st.integers(1, 3))
def test_index_equals_counting_again(pieces, n_tokens, min_frequency):
    assert learn_merges(pieces, n_tokens, min_frequency=min_frequency) == naive(pieces, n_tokens, min_frequency)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=9).map(str.encode), st.integers(1, 5), min_size=1, max_size=5))
def test_index_counts_stay_true(pieces):
    index, new = PairIndex(pieces), 256
    for _ in range(5):
        live = {p: n for p, n in index.count.items() if n}
        if not live: break
        index.merge(max(live, key=live.get), new)
        new += 1
        count, at = Counter(), 0
        while index.right[at] < len(index.ids):  # walk the linked list
            to = index.right[at]
            a, b = index.ids[at], index.ids[to]
            if a >= 0 and b >= 0: count[a, b] += index.weight[at]
            at = to
        assert count == {p: n for p, n in index.count.items() if n}


def hf_merges(texts, vocab_size, special=(), **options):
    "The merges of the tokenizers library on the same corpus."
    hf = tokenizers.Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    hf.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False, **options))
    return [tuple(m) for m in json.loads(hf.to_str())["model"]["merges"]]


def spelt(tok): return [(to_chars(tok.tokens[a]), to_chars(tok.tokens[b])) for a, b in tok.merges]


def test_merges_equal_the_tokenizers_trainer_on_code(code, trained):
    assert spelt(trained) == hf_merges(code, 2048, [EOT])


def test_merges_equal_the_tokenizers_trainer_on_languages(languages):
    texts = languages[::8]
    assert spelt(train_bpe(texts, 2000)) == hf_merges(texts, 2000)
    assert spelt(train_bpe(texts, 2000, min_frequency=50)) == hf_merges(texts, 2000, min_frequency=50)


@settings(max_examples=30)
@given(st.lists(st.text("ab c\n", max_size=30), min_size=1, max_size=5).filter(lambda ts: any(ts)))
@pytest.mark.filterwarnings("ignore:the merges ran out")
def test_ties_equal_the_tokenizers_trainer(texts):
    "Small corpora are full of ties."
    mine, theirs = train_bpe(texts, 262), hf_merges(texts, 262)
    assert spelt(mine) == theirs


@given(st.lists(st.integers(0, 3), max_size=80))
def test_heap_equals_scan(piece):
    rng = random.Random(0)
    tokens, merges = learn_merges({bytes(rng.choices(b"ab! ", k=12)): rng.randint(1, 9) for _ in range(60)}, 400)
    known = {t: i for i, t in enumerate(tokens)}
    ranks = {p: r for r, p in enumerate(merges)}
    products = [known[tokens[a] + tokens[b]] for a, b in merges]
    ids = [BYTE_IDS[b"ab! "[i]] for i in piece]
    assert merge_heap(ids, ranks, products) == merge_scan(ids, ranks, products)


class Counting(dict):
    "A dictionary that counts its look-ups."
    looked_up = 0
    def get(self, *args):
        self.looked_up += 1
        return super().get(*args)
    def __contains__(self, key):
        self.looked_up += 1
        return super().__contains__(key)


@pytest.mark.parametrize("text", ["a", "ab", "self.", " "])
def test_long_pieces_are_not_quadratic(trained, text):
    "Counted, not timed: an encoder that rescans the piece looks up some n^2 pairs."
    ranks, n = Counting(trained._ranks), 20_000
    merge_heap([BYTE_IDS[b] for b in (text * n).encode()[:n]], ranks, trained._products)
    assert ranks.looked_up < 10 * n


def test_long_pieces_are_quick_and_stay_out_of_the_cache(trained):
    plain = BPE(trained.tokens, trained.merges, pattern=None, special_tokens=trained.special_tokens)
    plain._ranks = Counting(plain._ranks)
    assert plain.decode(plain.encode("ab" * 10_000)) == "ab" * 10_000
    assert plain._ranks.looked_up < 200_000 and not plain._cache


@given(st.one_of(st.text(), st.binary()))
@pytest.mark.parametrize("pattern", ["gpt2", "o200k", None, r"\w+"])
def test_bytes_come_back(trained, pattern, x):
    tok = BPE(trained.tokens, trained.merges, pattern=pattern, special_tokens=trained.special_tokens)
    data = x.encode() if isinstance(x, str) else x
    assert tok.decode_bytes(tok.encode(x)) == data
    assert tok.decode_bytes(tok.encode(x, special="allow")) == data


def test_invalid_bytes_do_not_poison_the_cache(trained):
    trained.encode(b"\x80")
    with pytest.raises(ValueError, match="lone surrogate"): trained.encode("\udc80")


@pytest.mark.parametrize("pattern", list(PATTERNS))
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="\u0295")))
def test_published_patterns_cut_as_the_tokenizers_library_does(pattern, text):
    hf = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated")  # unassigned characters left out: the two libraries follow different versions of Unicode
    assert split(text, compile_pattern(pattern)) == [p for p, _ in hf.pre_tokenize_str(text)]


def test_pattern_with_gaps_groups_and_empty_matches():
    for pattern in (r"\d+", r"(a)(b)?", r"a*", r"x*?", r"(?=b)"):
        assert "".join(split("aab 12 ab", compile_pattern(pattern))) == "aab 12 ab" and all(split("aab 12 ab", compile_pattern(pattern)))


@pytest.mark.parametrize("name", ["gpt-2", "gpt-neox", "claude"])
def test_published_tokenizers(data_dir, languages, code, name):
    path = data_dir/"tokenizers"/f"{name}.json"
    tok, hf = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    hf.encode_special_tokens = True
    for text in [*languages[::40], code[0][:50_000], *ODD]:
        assert tok.encode(text) == hf.encode(text, add_special_tokens=False).ids
        if tok.normalizer is None: assert tok.decode(tok.encode(text)) == text
    hf.encode_special_tokens = False
    text = f"a {EOT}<EOT> b"
    assert tok.encode(text, special="allow") == hf.encode(text, add_special_tokens=False).ids


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt-2", "gpt-neox", "claude"])
def test_published_tokenizers_on_all_languages(data_dir, languages, name):
    path = data_dir/"tokenizers"/f"{name}.json"
    tok, hf = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert len(languages) > 500
    for text in languages: assert tok.encode(text) == hf.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_others_are_refused(data_dir, name):
    from tokenlab.tokenizers.bpe import from_json
    content = json.loads((data_dir/"tokenizers"/f"{name}.json").read_text(encoding="utf8"))
    with pytest.raises(ValueError, match="not byte-level BPE yet"): from_json(content)


@pytest.mark.parametrize("name", ["gpt-2", "gpt-neox", "claude"])
def test_published_tokenizers_survive_saving(data_dir, tmp_path, languages, name):
    tok = Tokenizer.load(data_dir/"tokenizers"/f"{name}.json")
    back = Tokenizer.load(tok.save(tmp_path))
    for field in ("tokens", "merges", "pattern", "special_tokens", "added_tokens", "normalizer", "ignore_merges", "post_processor"):
        assert getattr(back, field) == getattr(tok, field), field
    hf = tok.to_hf()
    for text in [languages[7], *ODD]: assert hf.encode(text, add_special_tokens=False).ids == tok.encode(text, special="allow")


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k", "llama3", None, r"\d|[^\d]+"])
def test_saving_keeps_every_option(code, tmp_path, pattern):
    tok = train_bpe([code[0][:3000]], 300, pattern=pattern, special_tokens=[EOT, "<pad>"])
    tok.normalizer, tok.ignore_merges = "NFC", True
    back = Tokenizer.load(tok.save(tmp_path))
    assert compile_pattern(back.pattern) == compile_pattern(tok.pattern)
    for field in ("tokens", "merges", "special_tokens", "normalizer", "ignore_merges"): assert getattr(back, field) == getattr(tok, field), field
    hf = tok.to_hf()
    for text in (code[1][:3000], *ODD): assert hf.encode(text).ids == back.encode(text, special="allow") == tok.encode(text, special="allow")


def test_opens_in_transformers(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path/"tokenizer.json"))
    text = "def f(x):\n    return x + 1  # été\n"
    assert theirs(text)["input_ids"] == trained.encode(text) and theirs.decode(trained.encode(text)) == text


@given(st.text(max_size=80))
def test_ignore_merges_takes_whole_tokens(text):
    tokens = [bytes([b]) for b in BYTE_ORDER] + [b"ab", b"abc", b"bc"]
    a, b, c = start_ids(b"abc")
    tok = BPE(tokens, [(b, c), (a, b), (256, c)], ignore_merges=True)
    assert tok.encode("abc") == [257] and tok.encode("abcd") == [a, 258, *start_ids(b"d")]
    assert tok.encode(text) == tok.to_hf().encode(text).ids


def test_cache_is_bounded(trained):
    tok = BPE(trained.tokens, trained.merges, special_tokens=trained.special_tokens, cache_size=10)
    text = " ".join(f"word{i}" for i in range(100))
    assert tok.encode(text) == trained.encode(text) == tok.encode(text) and len(tok._cache) <= 10


def test_special_tokens_are_last_and_take_no_part_in_merges(trained):
    assert trained.vocab_size == 2048 and trained.special_tokens == {EOT: 2047} and trained.eos_id == 2047
    assert trained.tokens[:256] == [bytes([b]) for b in BYTE_ORDER]
    assert 2047 not in trained.encode(EOT) and trained.encode(EOT, special="allow") == [2047]


def test_generators_bytes_and_plain_bytes(code):
    once = train_bpe((t.encode() for t in code[:2]), 400)
    assert once.merges == train_bpe(code[:2], 400).merges
    assert train_bpe(["x"], 256).merges == []
    tok = train_bpe([b"\xff\xfe\xff\xfe"], 257)
    assert tok.tokens[256] == b"\xff\xfe" and tok.encode(b"\xff\xfe") == [256]


def test_a_byte_tokenizer_file_is_not_taken_for_a_trained_one(tmp_path):
    tok = train_bpe(["ab"], 257, special_tokens=[EOT], pattern=None)
    assert isinstance(Tokenizer.load(tok.save(tmp_path)), BPE)
    assert type(Tokenizer.load(ByteTokenizer([EOT]).save(tmp_path))) is ByteTokenizer


def test_errors(trained):
    with pytest.raises(ValueError, match="vocab_size 256 is too small"): train_bpe(["a"], 256, special_tokens=["<s>"])
    with pytest.raises(ValueError, match="no text to train on"): train_bpe([], 300)
    with pytest.raises(ValueError, match="one text"): train_bpe("abc", 300)
    with pytest.raises(ValueError, match="no regular expression"): train_bpe(["a"], 300, pattern="[")
    with pytest.raises(ValueError, match="twice"): train_bpe(["a"], 300, special_tokens=["<s>", "<s>"])
    with pytest.raises(ValueError, match="lone surrogate"): train_bpe(["\ud800"], 300)
    with pytest.raises(ValueError, match="makes no token"): BPE(trained.tokens[:256], [(0, 1)])
    with pytest.raises(ValueError, match="bytes are no tokens"): BPE([b"a"], [])
    with pytest.warns(UserWarning, match="the merges ran out: 257 tokens, 43 fewer than the 300"): train_bpe(["ab"], 300)


@settings(max_examples=30)
@given(st.lists(st.text("ab", min_size=1, max_size=12).map(str.encode), min_size=1, max_size=8))
def test_no_token_is_made_twice(pieces):
    tokens, merges = learn_merges(Counter(pieces), 400)
    assert len(set(tokens)) == len(tokens) == 256 + len(merges) == 256 + len(set(merges))


def test_shrinking_equals_training_to_the_size(code, trained, data_dir):
    small = train_bpe(code, 700, special_tokens=[EOT])
    shrunk = trained.shrink(700)
    assert (shrunk.tokens, shrunk.merges, shrunk.special_tokens) == (small.tokens, small.merges, small.special_tokens)
    assert trained.shrink(2048).merges == trained.merges and trained.shrink(257).merges == []
    for size in (256, 2049):
        with pytest.raises(ValueError, match="not between"): trained.shrink(size)
    neox = Tokenizer.load(data_dir/"tokenizers"/"gpt-neox.json").shrink(1000)  # special tokens first, added tokens last
    assert neox.vocab_size == 1000 and neox.eos_id == 0 and neox.decode(neox.encode("def f(x):\n        pass")) == "def f(x):\n        pass"


def edited(tok, **fields):
    "The file of `tok` with some fields replaced."
    content = tok.to_json()
    for name, value in fields.items():
        *path, last = name.split("__")
        at = content
        for p in path: at = at[p]
        at[last] = value
    return json.dumps(content)


@pytest.mark.parametrize("fields, problem", [
    (dict(model__dropout=0.1), "dropout"), (dict(model__byte_fallback=True), "byte_fallback|not supported"), (dict(normalizer={"type": "Lowercase"}), "Lowercase"),
    (dict(pre_tokenizer={"type": "Whitespace"}), "Whitespace"), (dict(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), "add_prefix_space"),
    (dict(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "UnicodeScripts"}, {"type": "ByteLevel", "use_regex": False}]}), "UnicodeScripts"),
    (dict(model__merges=["a  b"]), "not a pair"), (dict(model__vocab={"▁": 0}), "gaps|stands for no byte")])
def test_files_that_ask_for_more_are_refused(trained, tmp_path, fields, problem):
    (tmp_path/"tokenizer.json").write_text(edited(trained, **fields), encoding="utf8")
    with pytest.raises(ValueError, match=problem): Tokenizer.load(tmp_path)


def test_cut_joins_to_the_text(trained):
    pieces = cut(trained, "def f(x): return {}")
    assert "".join(pieces) == "def f(x): return {}" and "def" in pieces and " return" in pieces


@pytest.mark.filterwarnings("ignore:the merges ran out")
@pytest.mark.parametrize("engine", ["reference", "compiled"])
@pytest.mark.parametrize("pattern, digits", [(None, "r2l"), ("gpt2", "single"), ("gpt2", "l2r"), ("gpt2", "r2l"), ("cl100k_base", "r2l"), ("qwen2", None), (("\\p{Han}+", "o200k"), None)])
def test_digit_groups_and_steps_survive_training_saving_and_the_library(tmp_path, engine, pattern, digits):
    rule, text = Pretokenizer(pattern, digits=digits), "add 1234567 to 89 日本x、 and 1234567 \n "
    tok = train_bpe([text] * 3, 290, pattern=rule, engine=engine)
    groups = {None: "7", "single": "7", "l2r": "7", "r2l": "567"}[digits] if pattern != ("\\p{Han}+", "o200k") else "7"
    assert [tok.decode([i]) for i in tok.encode("1234567")][-1] == groups
    back, hf = Tokenizer.load(tok.save(tmp_path)), tok.to_hf()
    assert back.pattern == tok.pattern and Pretokenizer.of(back.pattern) == rule
    for x in (text, "12345", "x 1", "9" * 40, "\n 12 "):
        assert back.encode(x) == tok.encode(x) == hf.encode(x).ids
        assert tok.decode(tok.encode(x)) == x
    assert tok.shrink(260).pattern == tok.pattern


@pytest.mark.filterwarnings("ignore:the merges ran out")
@pytest.mark.parametrize("name", list(PATTERNS))
def test_every_name_means_the_same_to_both_engines_and_in_the_file(tmp_path, name):
    text = "It's 12345 HTTPServer's\r\n  x \n "
    slow, fast = (train_bpe([text] * 3, 300, pattern=name, engine=e) for e in ("reference", "compiled"))
    assert slow.merges == fast.merges and slow.encode(text) == fast.encode(text) == slow.to_hf().encode(text).ids
    assert PATTERNS[Tokenizer.load(slow.save(tmp_path)).pattern] == PATTERNS[name]
