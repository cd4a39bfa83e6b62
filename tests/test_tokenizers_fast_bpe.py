"Compiled BPE: the ids and merges of the plain version, of the tokenizers library and of tiktoken, and exact."
import json, pickle, sysconfig
from collections import Counter
from pathlib import Path
import numpy as np, pytest, tiktoken, tokenizers
from hypothesis import given, settings, strategies as st
from tokenlab.tokenizers import bpe, fast_bpe
from tokenlab.tokenizers.bpe import BPE, PATTERNS, train_bpe
from tokenlab.tokenizers.core import BYTE_ORDER, Tokenizer
from tokenlab.tokenizers.fast_bpe import FastBPE, encode_arrays, read_chunks

EOT = "<|endoftext|>"
PUBLISHED = ["gpt-2", "gpt-neox", "claude"]
pytestmark = pytest.mark.filterwarnings("ignore:the merges ran out")
ODD = ["", " ", "a", "\0\1\x1f\x7f\x85\u2028", "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪", "e\u0301 \u0301 \u200d", "  \t\n\r\n  x \u3000 y\xa0", "'s'S'll I'RE 've", "0123456789 ½ ² ٣",
       "a" * 3000 + " " * 100, "".join(map(chr, range(0x300, 0x370))), "שלום עולם", "こんにちは世界", "\ufffd\ufeff", f"x{EOT}y", "".join(map(chr, range(256)))]


@pytest.fixture(scope="module")
def code():
    "About half a megabyte of source code."
    folder = Path(sysconfig.get_path("stdlib"))
    return [(folder/f"{n}.py").read_text(encoding="utf8") for n in ("argparse", "ast", "datetime", "difflib", "doctest", "inspect", "locale")]


@pytest.fixture(scope="module")
def languages(data_dir): return ["\n".join(json.loads(line)["articles"]) for line in (data_dir/"udhr.jsonl").open(encoding="utf8")]


@pytest.fixture(scope="module")
def trained(code): return train_bpe(code, 2048, special_tokens=[EOT])


def plain(tok, **options):
    "The same tokenizer, not compiled."
    return BPE(tok.tokens, tok.merges, **(dict(pattern=tok.pattern, special_tokens=tok.special_tokens, added_tokens=tok.added_tokens, normalizer=tok.normalizer,
                                                ignore_merges=tok.ignore_merges) | options))


def compiled(tok, **options): return FastBPE(tok.tokens, tok.merges, **(dict(special_tokens=tok.special_tokens) | options))


def test_users_get_the_compiled_one(trained, tmp_path):
    assert type(trained) is FastBPE and type(Tokenizer.load(trained.save(tmp_path))) is FastBPE and type(trained.shrink(300)) is FastBPE
    assert type(train_bpe(["abab"], 258, engine="reference")) is BPE


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tokenizers(data_dir, languages, code, name):
    "Two runs, so that every path is met: a cold cache and a warm one; ids and offsets."
    path = data_dir/"tokenizers"/f"{name}.json"
    tok, hf = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    hf.encode_special_tokens = True
    ref = plain(tok)
    for text in [*languages[::25], code[0], *ODD] * 2:
        ids, offsets = tok.encode_array(text)
        assert ids.tolist() == tok.encode(text) == hf.encode(text, add_special_tokens=False).ids
        theirs = Tokenizer.encode_array(ref, text)
        assert ids.dtype == np.int32 and offsets.dtype == np.int64 and (ids == theirs[0]).all() and (offsets == theirs[1]).all()
    hf.encode_special_tokens = False
    text = f"a {EOT}<EOT> b"
    assert tok.encode(text, special="allow") == hf.encode(text, add_special_tokens=False).ids


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tokenizers_on_all_languages(data_dir, languages, name):
    path = data_dir/"tokenizers"/f"{name}.json"
    tok, hf = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert len(languages) > 500
    for text in languages: assert tok.encode(text) == hf.encode(text, add_special_tokens=False).ids


def test_equal_to_tiktoken(data_dir, languages):
    tok = Tokenizer.load(data_dir/"tokenizers"/"gpt-2.json")
    theirs = tiktoken.Encoding("same", pat_str=PATTERNS["gpt2"], mergeable_ranks=dict(tok._ids), special_tokens={})
    for text in [*languages[::40], *ODD]: assert tok.encode(text) == theirs.encode_ordinary(text)


@settings(deadline=None)   # the first example compiles
@given(st.one_of(st.text(), st.binary()))
@pytest.mark.parametrize("pattern", ["gpt2", "o200k", None, r"\w+"])
def test_bytes_come_back_and_ids_are_the_plain_ones(trained, pattern, x):
    tok = compiled(trained, pattern=pattern)
    data = x.encode() if isinstance(x, str) else x
    ids, offsets = tok.encode_array(x)
    assert tok.decode_bytes(ids) == data and ids.tolist() == tok.encode(x) == plain(trained, pattern=pattern).encode(x)
    assert [data[a:b] for a, b in zip(offsets, offsets[1:])] == [tok.token_bytes(i) for i in ids.tolist()]
    assert tok.decode_bytes(tok.encode(x, dropout=.3, seed=1)) == data


@settings(deadline=None)   # the first example compiles
@given(st.text(st.sampled_from("ab é🦜\n"), max_size=60))
def test_character_offsets(trained, text):
    ids, chars = trained.encode_array(text, units="chars")
    _, offsets = trained.encode_array(text)
    widths = np.cumsum([0] + [len(c.encode()) for c in text])
    assert chars.tolist() == [int(np.searchsorted(widths, o)) for o in offsets]


def test_character_offsets_of_invalid_bytes(trained):
    _, chars = trained.encode_array(b"a\xff\xffb", units="chars")
    assert chars[-1] == 4


@settings(deadline=None)   # the first example compiles
@given(st.text(st.sampled_from("ab "), max_size=200), st.integers(2, 64))
def test_small_caches_forget_and_stay_right(trained, text, size):
    tok = compiled(trained, cache_size=size)
    assert tok.encode(text) == tok.encode(text) == trained.encode(text)


def test_the_cache_is_bounded(trained, code):
    tok = compiled(trained, cache_size=64)
    texts = [" ".join(f"word{i}" * (1 + i % 30) for i in range(k, k + 500)) for k in range(0, 3000, 500)] + code
    ref = plain(trained)
    tok.encode("a")
    held = sum(a.nbytes for a in tok._caches[0][1])
    for text in texts: assert tok.encode(text) == ref.encode(text)
    assert sum(a.nbytes for a in tok._caches[0][1]) == held < 50_000 and len(tok._caches) == 1


def test_long_pieces(trained):
    "Around every limit: 15 bytes in a row of the cache, 64 without a heap, 256 in the ring."
    tok, ref = compiled(trained, pattern=None), plain(trained, pattern=None)
    for n in [*range(1, 80), 255, 256, 257, 1000]:
        for text in (("self." * n)[:n], "é" * n): assert tok.encode(text) == tok.encode(text) == ref.encode(text)


def test_a_long_piece_is_not_quadratic(trained):
    "Three hundred thousand bytes in one piece: quadratic merging would take hours."
    tok = compiled(trained, pattern=None)
    for text in ("self." * 60_000, "a" * 300_000): assert tok.decode(tok.encode_array(text)[0]) == text


def test_batches_and_threads(trained, code):
    texts = [t[i:i + 1000] for t in code for i in range(0, len(t), 1000)] + ["", b"\xff", EOT]
    want = [plain(trained).encode(t) for t in texts]
    assert trained.encode_batch(texts) == trained.encode_batch(texts, workers=2) == want
    many = code * 20                                           # several megabytes: several batches
    assert trained.encode_batch(many, workers=3) == trained.encode_batch(code) * 20
    assert [a.dtype for a in encode_arrays(trained, texts[:2])] == [np.int32] * 2
    assert trained.encode_batch([]) == [] and trained.encode_batch(["", ""]) == [[], []]


def test_special_and_added_tokens():
    tokens = [bytes([b]) for b in BYTE_ORDER] + [EOT.encode(), b"  ", b"<x>"]
    tok = FastBPE(tokens, [], special_tokens={EOT: 256}, added_tokens={"  ": 257, "<x>": 258})
    text = f"a  b<x>{EOT}"
    assert tok.encode(text, special="allow") == plain(tok).encode(text, special="allow") == tok.encode(text, special=[EOT])
    assert tok.encode(text) == plain(tok).encode(text) and 256 not in tok.encode(text)
    assert tok.encode_array(text, special="allow")[1].tolist() == [0, 1, 3, 4, 7, 20]
    with pytest.raises(ValueError, match="contains the special token"): tok.encode(text, special="forbid")
    with pytest.raises(ValueError, match="no special tokens"): tok.encode(text, special=["<y>"])


@settings(deadline=None)   # the first example compiles
@given(st.text(max_size=80))
def test_ignore_merges(text):
    tokens = [bytes([b]) for b in BYTE_ORDER] + [b"ab", b"abc", b"bc"]
    a, b, c = bpe.start_ids(b"abc")
    tok = FastBPE(tokens, [(b, c), (a, b), (256, c)], ignore_merges=True)
    assert tok.encode("abc") == [257] and tok.encode("abcd") == [a, 258, *bpe.start_ids(b"d")]
    assert tok.encode(text) == plain(tok).encode(text)


def test_tokens_that_merges_do_not_reach(trained):
    "`abc` is a token, but bc comes first: whole-piece look-up must not find it."
    a, b, c = bpe.start_ids(b"abc")
    tok = FastBPE([bytes([x]) for x in BYTE_ORDER] + [b"ab", b"abc", b"bc"], [(b, c), (a, b), (256, c)])
    assert tok.encode("abc") == [a, 258]


def naive_dropout(ids, ranks, products, p, rng):
    "The definition: at each step every applicable merge is dropped with probability p."
    while True:
        live = [(ranks[pair], i) for i, pair in enumerate(zip(ids, ids[1:])) if pair in ranks and rng.random() >= p]
        if not live: return tuple(ids)
        rank, i = min(live)
        ids = ids[:i] + [products[rank]] + ids[i + 2:]


def test_dropout_has_the_law_of_the_definition():
    tok = train_bpe(["abcabc abab bcbc cab"] * 3, 264)
    rng, n, word = np.random.default_rng(0), 20_000, "abcab"
    ours = Counter(tuple(ids) for ids in tok.encode_batch([word] * n, dropout=.4, seed=0))
    theirs = Counter(naive_dropout(bpe.start_ids(word.encode()), tok._ranks, tok._products, .4, rng) for _ in range(n))
    assert len(ours) > 5 and all(abs(ours[k] - theirs[k]) < 5 * (n ** .5) * .75 for k in ours | theirs)
    assert tok.encode(word, dropout=1., seed=3) == bpe.start_ids(word.encode())
    assert tok.encode_batch([word] * 4, dropout=.4, seed=5)[2] == tok.encode(word, dropout=.4, seed=7)
    with pytest.raises(ValueError, match="give a seed"): tok.encode(word, dropout=.1)
    with pytest.raises(ValueError, match="give a probability"): tok.encode(word, dropout=1.5, seed=0)


def test_errors(trained, data_dir):
    with pytest.raises(ValueError, match="lone surrogate"): trained.encode("\ud800")
    with pytest.raises(ValueError, match="got int"): trained.encode(3)
    with pytest.raises(ValueError, match="takes several texts"): trained.encode_batch("abc")
    with pytest.raises(ValueError, match="units"): trained.encode_array("a", units="words")
    with pytest.raises(ValueError, match="workers"): trained.encode_batch(["a"], workers=0)
    neox = Tokenizer.load(data_dir/"tokenizers"/"gpt-neox.json")
    with pytest.raises(ValueError, match="byte 255 is not UTF-8"): neox.encode(b"\xff")
    assert neox.encode("ok") == plain(neox).encode("ok")


def test_pickled(trained):
    trained.encode("text")
    back = pickle.loads(pickle.dumps(trained))
    assert back.encode("def f(x)") == trained.encode("def f(x)") and len(pickle.dumps(trained)) < 2e6


# Training

words = st.dictionaries(st.text("ab c", min_size=1, max_size=40).map(str.encode), st.integers(1, 9), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(words, st.integers(256, 330), st.sampled_from([1, 2, 5]), st.sampled_from([None, 2, 7]))
def test_merges_equal_the_plain_ones(pieces, n_tokens, min_frequency, max_token_length):
    options = dict(min_frequency=min_frequency, max_token_length=max_token_length)
    assert fast_bpe.learn_merges(pieces, n_tokens, **options) == bpe.learn_merges(pieces, n_tokens, **options)


@settings(max_examples=60, deadline=None)
@given(words, words, st.integers(256, 268), st.integers(268, 330))
def test_going_on_equals_the_plain_way(first, second, small, large):
    start = BPE(*bpe.learn_merges(first, small))
    assert fast_bpe.learn_merges(second, large, start=start) == bpe.learn_merges(second, large, start=start)


@pytest.mark.parametrize("pattern", ["gpt2", "o200k", None, r"\w+"])
def test_corpora(code, languages, pattern):
    for texts in (code[:2], languages[::60]):
        if pattern is None: texts = [t[:20_000] for t in texts]
        counts = fast_bpe.count_pieces(texts, pattern, workers=2)
        assert dict(counts) == dict(bpe.count_pieces(texts, pattern))
        assert fast_bpe.learn_merges(counts, 1200) == bpe.learn_merges(bpe.count_pieces(texts, pattern), 1200)


def test_merges_equal_the_tokenizers_trainer(languages):
    from tokenizers import models, pre_tokenizers, trainers
    from tokenlab.tokenizers.core import to_chars
    for options in ({}, dict(min_frequency=20)):   # its max_token_length counts otherwise: see the notebook
        hf = tokenizers.Tokenizer(models.BPE())
        hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        hf.train_from_iterator(languages[::8], trainers.BpeTrainer(vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, **options))
        tok = train_bpe(languages[::8], 3000, **options)
        assert [[to_chars(tok.tokens[a]), to_chars(tok.tokens[b])] for a, b in tok.merges] == json.loads(hf.to_str())["model"]["merges"]


def test_going_on_with_the_same_corpus_is_training_once(code):
    once, first = train_bpe(code, 900), train_bpe(code, 500)
    assert train_bpe(code, 900, start=first).merges == once.merges


def test_going_on_keeps_ids_and_options(code, trained):
    more = train_bpe(code, 2148, start=trained, pattern=None, special_tokens=["<pad>"])
    assert more.tokens[:2048] == trained.tokens and more.special_tokens == {EOT: 2047, "<pad>": 2147} and more.pattern is None
    assert any(b" " in t.strip() for t in more.tokens[2048:2147]) and more.decode(more.encode(code[0])) == code[0]
    ref = train_bpe(code[:1], 2070, start=trained, pattern=None, engine="reference")
    assert ref.merges == train_bpe(code[:1], 2070, start=trained, pattern=None).merges
    with pytest.raises(ValueError, match="has the special tokens"): train_bpe(code, 3000, start=trained, special_tokens=[EOT])
    with pytest.raises(ValueError, match="the 2048 tokens to start from"): train_bpe(code, 2047, start=trained)


def test_normalised_when_going_on():
    start = FastBPE([bytes([b]) for b in BYTE_ORDER], [], normalizer="NFC")
    assert "é".encode() in train_bpe(["e\u0301" * 5], 257, start=start, pattern=None).tokens


def test_counting_bytes_streams_and_threads(code):
    texts = [code[0].encode(), b"\xff\xfe x", "", code[1]]
    want = dict(bpe.count_pieces(texts))
    assert dict(fast_bpe.count_pieces(iter(texts))) == dict(fast_bpe.count_pieces(texts * 1, workers=3)) == want
    many = fast_bpe.count_pieces((t for _ in range(40) for t in code), workers=2)
    once = bpe.count_pieces(code)
    assert dict(many) == {p: 40 * n for p, n in once.items()} and many.total() == 40 * once.total()
    with pytest.raises(ValueError, match="one text"): fast_bpe.count_pieces("abc")
    with pytest.raises(ValueError, match="lone surrogate"): fast_bpe.count_pieces(["\ud800"], workers=2)


def test_files_in_chunks(tmp_path, code):
    (tmp_path/"a.txt").write_text(code[0], encoding="utf8", newline="")
    (tmp_path/"b.txt").write_text("é\r\nx\n" * 500, encoding="utf8", newline="")
    for size in (100, 5000, 10**7):
        chunks = list(read_chunks([tmp_path/"a.txt", tmp_path/"b.txt"], size=size))
        assert "".join(chunks) == code[0] + "é\r\nx\n" * 500
        for pattern in PATTERNS: assert dict(fast_bpe.count_pieces(chunks, pattern)) == dict(bpe.count_pieces([code[0], "é\r\nx\n" * 500], pattern))


def test_requests_that_cannot_be_met():
    with pytest.raises(ValueError, match="no text to train on"): train_bpe(["", b""], 300)
    with pytest.raises(ValueError, match="engine='c'"): train_bpe(["a"], 300, engine="c")
    with pytest.raises(ValueError, match="max_token_length=0"): train_bpe(["a"], 300, max_token_length=0)
    with pytest.raises(ValueError, match="min_frequency=-1"): train_bpe(["a"], 300, min_frequency=-1)
    with pytest.raises(ValueError, match="workers=0"): train_bpe(["a"], 300, workers=0)
    with pytest.warns(UserWarning, match="the merges ran out"): train_bpe(["ab"], 300)
