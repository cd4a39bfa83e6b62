"SentencePiece BPE, tiktoken ranks and the parts of tokenizer.json: equal to the tokenizers and tiktoken libraries."
import copy, json, unicodedata
import numpy as np, pytest, tokenizers
from hypothesis import given, settings, strategies as st
from tokenlab.corpora import load, parallel
from tokenlab.tokenizers.bpe import merge_scan, train_bpe
from tokenlab.tokenizers.core import Tokenizer, added_json
from tokenlab.tokenizers.formats import (CONTROL, FEW, PUNCTUATION, SentencePieceBPE, bert_normalizer, cut_all, cutter, from_json, lowercase, merge_all, normal_steps,
                                         rank_merges, read_tiktoken, two_parts, write_tiktoken)

ODD = ["", " ", "a", "  x", "   ", "\0\1\x1f\x7f\x85\u2028", "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪", "e\u0301 \u0301 \u200d", "  \t\n\r\n  x \u3000 y\xa0", "0123456789 ½ ² ٣", "a" * 3000 + " " * 1000,
       "".join(map(chr, range(0x300, 0x370))), "שלום עולם", "こんにちは世界", "\ufffd\ufeff", "▁", "x▁▁ y", "<0x0A>", "\n" * 70, "=" * 500, "def f(x):\n    return x\n"]
NORMALIZER = dict(type="Sequence", normalizers=[dict(type="Prepend", prepend="▁"), dict(type="Replace", pattern=dict(String=" "), content="▁")])
DECODER = dict(type="Sequence", decoders=[dict(type="Replace", pattern=dict(String="▁"), content=" "), dict(type="ByteFallback"), dict(type="Fuse"),
                                          dict(type="Strip", content=" ", start=1, stop=0)])


def file(rules, letters, **changes):
    "A small file in Llama's format."
    pairs = [m.split(" ") for m in rules]
    words = list(dict.fromkeys(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters, *(a + b for a, b in pairs)]))
    model = dict(type="BPE", dropout=None, unk_token="<unk>", continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=True, byte_fallback=True, ignore_merges=False,
                 vocab={w: i for i, w in enumerate(words)}, merges=pairs)
    content = dict(version="1.0", truncation=None, padding=None, added_tokens=[added_json(i, words[i], special=True) for i in range(3)], normalizer=NORMALIZER,
                   pre_tokenizer=None, post_processor=None, decoder=DECODER, model=model)
    for key, value in changes.items(): (model if key in model else content)[key] = value
    return content


MERGES = ["a b", "b a", "a a", "aa b", "ab a", "▁ a", "▁a b", "b b", "aab ab", "a ▁", "ab ▁", "ab▁ a", "▁ ▁", "▁▁ ▁▁"]


def both(content): return from_json(content), tokenizers.Tokenizer.from_str(json.dumps(content))


@pytest.fixture(scope="module", params=["llama", "mistral"])
def published(request, data_dir):
    path = data_dir/"tokenizers"/f"{request.param}.json"
    return Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))


def test_published_on_odd_text_and_code(published):
    ours, theirs = published
    for text in [*ODD, *load("python-code", split="valid")["text"][:10]]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == text.replace("▁", " ") and theirs.decode(ids) == ours.decode(ids)
        again, offsets = ours.encode_array(text)
        assert again.tolist() == ids and offsets[-1] == len(text.encode()) and (np.diff(offsets) >= 0).all()


def test_published_on_all_languages(published):
    ours, theirs = published
    texts = {}
    for row in parallel("udhr"): texts.setdefault(row["code"], []).append(row["text"])
    assert len(texts) == 521
    for articles in texts.values():
        text = "\n".join(articles[:3])
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids and ours.decode(ids) == text.replace("▁", " ")


@pytest.mark.slow
def test_published_on_all_languages_whole(published):
    ours, theirs = published
    texts = {}
    for row in parallel("udhr"): texts.setdefault(row["code"], []).append(row["text"])
    for articles in texts.values():
        text = "\n".join(articles)
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_published_special_tokens(published):
    ours, theirs = published
    for text in ("<s>a </s> b", "[INST] x [/INST]y", "x[INST]", "a <unk>b<s>", "<s>", "[INST][INST]", "<s> [INST] é"):
        ids = ours.encode(text, special="allow")
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        array, offsets = ours.encode_array(text, special="allow")
        assert array.tolist() == ids and offsets[-1] == len(text.encode())
    with pytest.raises(ValueError, match="special token '<s>'"): ours.encode("a<s>", special="forbid")
    with pytest.raises(ValueError, match="no special tokens"): ours.encode("a<s>", special=["<x>"])


def test_published_survive_saving(published, tmp_path):
    ours, theirs = published
    again = Tokenizer.load(ours.save(tmp_path))
    assert again.to_json() == ours.to_json() and json.loads(theirs.to_str())["model"]["vocab"] == again.to_json()["model"]["vocab"]
    hf = ours.to_hf()
    assert [json.loads(hf.to_str())[k] == json.loads(theirs.to_str())[k] for k in ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")] == [True] * 6
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path/"tokenizer.json"))
    for text in ODD: assert fast.encode(text, add_special_tokens=False) == ours.encode(text)


def test_walls_and_heap_change_nothing():
    rng = np.random.default_rng(0)
    letters = "ab ▁"
    for trial in range(12):  # random merges that compete
        words, merges = list("ab▁"), []
        while len(merges) < 14:
            a, b = rng.choice(words), rng.choice(words)
            if len(a + b) < 7 and (a, b) not in merges:
                merges.append((a, b)); words.append(a + b)
        tok = from_json(file([f"{a} {b}" for a, b in merges], "ab▁"))
        vocab = tok._vocab
        ranks, products = {(vocab[a], vocab[b]): r for r, (a, b) in enumerate(merges)}, [vocab[a + b] for a, b in merges]
        for n in (1, 2, 7, FEW, FEW + 1, 200):
            text = "".join(rng.choice(list("aab b"), size=n))
            naive = merge_scan([vocab[c] for c in "▁" + text.replace(" ", "▁")], ranks, products)
            assert tok.encode(text) == naive
            assert theirs_ids(tok, text) == naive


def theirs_ids(tok, text): return tok.to_hf().encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("changes", [dict(fuse_unk=False, byte_fallback=False), dict(fuse_unk=True, byte_fallback=False), dict(byte_fallback=True),
    dict(ignore_merges=True, normalizer=None, pre_tokenizer=dict(type="Metaspace", replacement="▁", prepend_scheme="always", split=True)),
    *[dict(normalizer=None, pre_tokenizer=dict(type="Metaspace", replacement="▁", prepend_scheme=scheme, split=split)) for scheme in ("always", "first", "never") for split in (True, False)],
    dict(normalizer=dict(type="Sequence", normalizers=[dict(type="NFKC"), dict(type="Lowercase"), *NORMALIZER["normalizers"]])),
    dict(normalizer=dict(type="StripAccents"), pre_tokenizer=dict(type="Sequence", pretokenizers=[dict(type="WhitespaceSplit"), dict(type="Metaspace", replacement="▁", prepend_scheme="always", split=True)])),
    dict(normalizer=None, pre_tokenizer=dict(type="Sequence", pretokenizers=[dict(type="Punctuation", behavior="Isolated"), dict(type="Metaspace", replacement="▁", prepend_scheme="first", split=False)]))])
def test_options_equal_the_library(changes, tmp_path):
    content = file(MERGES, "ab▁!x", **changes)
    ours, theirs = both(content)
    again = Tokenizer.load(ours.save(tmp_path))
    for text in [*ODD, "ab aab  abab!", " ab", "abéüxab", "a b<s>ab </s> b", "ＡＢ ab!!ab"]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special="allow") == ids == again.encode(text, special="allow"), text
        array, offsets = ours.encode_array(text, special="allow")
        assert array.tolist() == ids and (not len(ids) or offsets[-1] == len(ours.normalize(text).encode()) or "StripAccents" in str(changes))
    assert again.to_json() == ours.to_json()


@pytest.mark.parametrize("flags", [dict(lstrip=True), dict(rstrip=True), dict(single_word=True), dict(lstrip=True, rstrip=True), dict(normalized=True), dict(special=False), dict(special=False, normalized=True)])
def test_added_tokens_equal_the_library(flags):
    content = file(MERGES, "ab▁")
    content["added_tokens"].append(added_json(len(content["model"]["vocab"]), "<m>", special=True) | flags)
    ours, theirs = both(content)
    for text in ("a <m> b", "a<m>b", "<m>", "  <m>  <m>  ", "a<m> b<m>", "é <m>é", "<m><s><m>a"): assert ours.encode(text, special="allow") == theirs.encode(text, add_special_tokens=False).ids, text


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_round_trip(text):
    ours = SMALL
    assert ours.decode(ours.encode(text)) == text.replace("▁", " ")
    _, offsets = ours.encode_array(text)
    assert offsets[-1] == len(text.encode())


@given(st.binary(max_size=60).filter(lambda b: "▁".encode() not in b))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_bytes(data):
    ids = SMALL.encode(data)
    assert SMALL.decode_bytes(ids) == data and SMALL.encode_array(data)[1][-1] == len(data)


SMALL = from_json(file(MERGES, "ab▁é"))


def test_round_trip_with_special_tokens():
    for text in ("a<s>b", "<s> a</s>", "<s><s>", " <s> "): assert SMALL.decode(SMALL.encode(text, special="allow")) == text
    assert SMALL.decode(SMALL.encode("a<s>b", special="allow"), skip_special=True) == "ab"


def test_metaspace_loses_one_leading_space():
    tok = from_json(file(MERGES, "ab▁", normalizer=None, pre_tokenizer=dict(type="Metaspace", replacement="▁", prepend_scheme="always", split=False)))
    for text in ("a b", " a", "  a"): assert tok.decode(tok.encode(text)) == (text[1:] if text.startswith(" ") else text)


def test_lone_surrogates_are_refused():
    with pytest.raises(ValueError, match="lone surrogate"): SMALL.encode("a\ud800")


def test_unknown_without_a_token_is_an_error():
    tok = from_json(file(MERGES, "ab▁", byte_fallback=False, unk_token=None))
    with pytest.raises(ValueError, match="has no token, no bytes and no unk_token"): tok.encode("é")


@pytest.mark.parametrize("change, message", [(dict(dropout=.1), "dropout"), (dict(normalizer=dict(type="Nmt")), "normaliser Nmt"), (dict(pre_tokenizer=dict(type="UnicodeScripts")), "pre-tokenizer UnicodeScripts"),
                                             (dict(decoder=dict(type="CTC")), "decoder CTC"), (dict(merges=["a"]), "not a pair"), (dict(merges=["a zz"]), "must be words")])
def test_what_cannot_be_read(change, message):
    with pytest.raises(ValueError, match=message): from_json(file(MERGES, "ab▁", **change))


def test_near_linear():
    import time
    tok = from_json(file(["a a", "aa aa", "aaaa aaaa"], "a▁"))
    def seconds(n):
        best = 9.
        for _ in range(3):
            t = time.process_time(); tok.encode("a" * n); best = min(best, time.process_time() - t)
        return best
    seconds(100)
    assert seconds(1_600_000) < 16 * 6 * seconds(100_000)


@pytest.mark.parametrize("name", ["Lowercase", "StripAccents", "BertNormalizer"])
def test_normalizers_on_all_of_unicode(name):
    "Equal to the library on each assigned character, but for those that a newer Unicode brought or changed."
    part = dict(type=name) | (dict(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True) if name == "BertNormalizer" else {})
    shell = dict(version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=part, pre_tokenizer=None, post_processor=None, decoder=None, model=dict(type="BPE", vocab={}, merges=[]))
    theirs, (ours, _) = tokenizers.Tokenizer.from_str(json.dumps(shell)).normalizer, normal_steps(part)[0]
    old = [chr(c) for c in range(0x110000) if not 0xd800 <= c < 0xe000 and unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Co")]
    different = [c for c in old if ours(c) != theirs.normalize_str(c)]
    assert len(old) > 90_000 and len(different) <= 3, [hex(ord(c)) for c in different]


def test_tiktoken_ranks_equal_tiktoken(tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    texts = load("python-code", split="valid")["text"][:20]
    bpe = train_bpe(texts, 1500, pattern="cl100k", special_tokens=["<|endoftext|>"])
    path = write_tiktoken(bpe, tmp_path/"x.tiktoken")
    ours = read_tiktoken(path, special_tokens=bpe.special_tokens)
    from tokenlab.tokenizers.bpe import PATTERNS
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS["cl100k"], mergeable_ranks={t: i for i, t in enumerate(bpe.tokens[:-1])}, special_tokens=bpe.special_tokens)
    for text in [*texts[:5], *ODD]:
        assert ours.encode(text) == theirs.encode_ordinary(text) == bpe.encode(text)
    assert ours.encode("a<|endoftext|>", special="allow") == theirs.encode("a<|endoftext|>", allowed_special="all")


def test_ranks_that_no_merge_makes(tmp_path):
    "A token that only a whole piece, or an unusual pair, can reach."
    import base64
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([b]): b for b in range(256)} | {b"abc": 256, b"xyz": 257, b"ab": 258, b"yz": 259, b"xyzab": 261}
    path = tmp_path/"y.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % r for t, r in ranks.items()))
    ours, theirs = read_tiktoken(path, pattern=r"\w+|\W+"), tiktoken.Encoding("y", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens={})
    assert ours.vocab_size == 262 and ours.special_tokens == {"<|reserved_260|>": 260}
    rng = np.random.default_rng(0)
    for n in range(1, 12):
        for _ in range(60):
            text = "".join(rng.choice(list("abcxyz"), size=n))
            assert ours.encode(text) == theirs.encode_ordinary(text), text


def test_rank_files_that_cannot_be(tmp_path):
    (tmp_path/"z").write_text("!!! 1\n")
    with pytest.raises(ValueError, match="line 1"): read_tiktoken(tmp_path/"z")
    with pytest.raises(FileNotFoundError, match="no rank file"): read_tiktoken(tmp_path/"none")
    tok = train_bpe(["abab"], 258)
    tok.merges = tok.merges[::-1]
    with pytest.raises(ValueError, match="do not follow its merges"): write_tiktoken(tok, tmp_path/"w")
