"Unigram: equal to brute force, to sentencepiece and to the tokenizers library; EM climbs, sampling is exact."
import json, math
import numpy as np, pytest, tokenizers
from hypothesis import given, settings, strategies as st
from tokenlab.corpora import load, parallel
from tokenlab.tokenizers.bpe import count_pieces
from tokenlab.tokenizers.core import Tokenizer
from tokenlab.tokenizers.unigram import (Unigram, as_codes, candidates, e_step, from_json, from_sentencepiece, losses, make_trie, toy_unigram, train_unigram)

ODD = ["", " ", "a", "  x", "\0\1\x1f\x7f\x85\u2028", "👩‍👩‍👧‍👦 🏳️‍🌈", "e\u0301 \u0301 \u200d", "  \t\n\r\n  x \u3000 y\xa0", "½ ² ٣", "a" * 3000 + " " * 100, "שלום", "こんにちは世界", "\ufffd\ufeff", "▁"]


@pytest.fixture(scope="module")
def code(): return load("python-code", split="valid")["text"][:40]


@pytest.fixture(scope="module")
def trained(code): return train_unigram(code, 1200, special_tokens=["<eos>"])


def segmentations(text, words):
    if not text: yield ()
    for end in range(1, len(text) + 1):
        if text[:end] in words:
            for rest in segmentations(text[end:], words): yield (text[:end], *rest)


def random_toy(rng, letters="abc", n=12):
    words = list(dict.fromkeys([*letters, *("".join(rng.choice(list(letters), size=rng.integers(2, 5))) for _ in range(n))]))
    p = rng.dirichlet(np.ones(len(words)))
    return toy_unigram(dict(zip(words, p))), dict(zip(words, np.log(p)))


def score(x, words): return sum(words[t] for t in x)


def test_viterbi_and_nbest_equal_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(15):
        tok, words = random_toy(rng)
        for n in range(1, 9):
            text = "".join(rng.choice(list("abc"), size=n))
            ranked = sorted((score(x, words) for x in segmentations(text, words)), reverse=True)
            got = [tok.words[i] for i in tok.encode(text)]
            assert "".join(got) == text and math.isclose(score(got, words), ranked[0], abs_tol=1e-9)
            for k in (1, 3, 1000):
                found = tok.nbest(text, k)
                assert len(found) == min(k, len(ranked)) and len({tuple(i) for i, _ in found}) == len(found)
                np.testing.assert_allclose([s for _, s in found], ranked[:k], atol=1e-9)
                assert all(math.isclose(score([tok.words[i] for i in ids], words), s, abs_tol=1e-9) for ids, s in found)


@pytest.mark.parametrize("theta", [0., .3, 1., 2.5])
def test_samples_follow_the_posterior(theta):
    from scipy.stats import chisquare
    rng = np.random.default_rng(1)
    tok, words = random_toy(rng, "ab", 6)
    text, draws = "ababaab", 6000
    ways = list(segmentations(text, words))
    p = np.exp(theta * np.array([score(x, words) for x in ways])); p /= p.sum()
    seen = [tuple(tok.words[i] for i in tok.sample(text, theta=theta, seed=rng)) for _ in range(draws)]
    counts = np.array([seen.count(x) for x in ways])
    assert counts.sum() == draws
    common = p * draws >= 5
    pool = lambda a: np.append(a[common], a[~common].sum()) if (~common).any() else a
    f_obs, f_exp = pool(counts), pool(p * draws)
    if f_exp[-1] < 1e-9: f_obs, f_exp = f_obs[:-1], f_exp[:-1]
    assert len(f_exp) > 3 and chisquare(f_obs, f_exp).pvalue > 1e-3


def test_sampling_is_reproducible_and_lossless(trained, code):
    text = code[0][:500]
    assert trained.sample(text, seed=3) == trained.sample(text, seed=3) != trained.sample(text, seed=4)
    for theta in (0., .1, 1.): assert trained.decode(trained.sample(text, theta=theta, seed=5)) == text
    assert trained.sample(text, theta=1e4, seed=0) == trained.encode(text)
    assert trained.sample("") == []
    with pytest.raises(ValueError, match="theta"): trained.sample("a", theta=-1)
    with pytest.raises(ValueError, match="at least 1"): trained.nbest("a", 0)


def test_expected_counts_equal_enumeration():
    rng = np.random.default_rng(2)
    for _ in range(10):
        _, words = random_toy(rng)
        names, scores = list(words), np.array(list(words.values()))
        trie = make_trie(*as_codes([w.encode() for w in names]))
        texts = ["".join(rng.choice(list("abc"), size=rng.integers(1, 9))) for _ in range(4)]
        weights = np.array([1., 2., .5, 3.])
        likelihood, expected = e_step(*as_codes([t.encode() for t in texts]), weights, *trie, scores, 5)
        total, counts = 0., np.zeros(len(names))
        for t, n in zip(texts, weights):
            ways = list(segmentations(t, words)); p = np.exp([score(x, words) for x in ways]); total += n * np.log(p.sum())
            for x, q in zip(ways, p / p.sum()):
                for w in x: counts[names.index(w)] += n * q
        assert math.isclose(likelihood, total, rel_tol=1e-12)
        np.testing.assert_allclose(expected, counts, atol=1e-10)


def test_log_space_holds_very_long_pieces():
    trie = make_trie(*as_codes([b"a", b"aa"]))
    likelihood, expected = e_step(np.full(20_000, 97, np.int32), np.array([20_000]), np.ones(1), *trie, np.log([1e-6, 1e-7]), 2)
    assert np.isfinite(likelihood) and likelihood < -1e5 and math.isclose(expected @ [1, 2], 20_000, rel_tol=1e-7)


def test_em_never_makes_the_corpus_less_likely(code):
    pieces = count_pieces(code[:8])
    words = [bytes([b]) for b in range(256)] + candidates(pieces, limit=3000)[0]
    corpus = *as_codes(list(pieces)), np.fromiter(pieces.values(), np.float64, len(pieces))
    trie, scores, seen = make_trie(*as_codes(words)), np.log(np.random.default_rng(0).dirichlet(np.ones(len(words)))), []
    for _ in range(12):
        likelihood, expected = e_step(*corpus, *trie, scores, 16)
        seen.append(likelihood)
        with np.errstate(divide="ignore"): scores = np.log(expected / expected.sum())
    assert all(b >= a - 1e-9 * abs(a) for a, b in zip(seen, seen[1:])) and seen[-1] > seen[0] + 1
    assert math.isclose(expected @ [len(w) for w in words], sum(len(p) * n for p, n in pieces.items()), rel_tol=1e-9)


def test_losses_equal_the_formula():
    rng = np.random.default_rng(3)
    _, words = random_toy(rng)
    names, scores = list(words), np.array(list(words.values()))
    letters = as_codes([w.encode() for w in names])
    counts = rng.integers(1, 50, len(names)).astype(float)
    got = losses(*letters, *make_trie(*letters), scores, counts)
    for i, w in enumerate(names):
        if len(w) == 1: assert np.isinf(got[i]); continue
        others = sorted(((score(x, words), x) for x in segmentations(w, words) if x != (w,)), reverse=True)
        if others[0][0] >= scores[i]: assert got[i] == -1; continue
        alt, N, n = others[0][1], counts.sum(), counts[i]
        assert math.isclose(got[i], n * (math.log(n / N) - sum(math.log((counts[names.index(t)] + n) / (N + n * (len(alt) - 1))) for t in alt)), abs_tol=1e-9)


@given(st.dictionaries(st.text("abé", min_size=1, max_size=9).map(str.encode), st.integers(1, 4), min_size=1, max_size=6))
@settings(deadline=None)
def test_candidates_equal_counting_all_substrings(pieces):
    counts = {}
    for p, n in pieces.items():
        for i in range(len(p)):
            for j in range(i + 1, len(p) + 1): counts[p[i:j]] = counts.get(p[i:j], 0) + n
    def whole(s):
        try: s.decode(); return True
        except UnicodeDecodeError: return False
    found = {s: n for s, n in counts.items() if n >= 2 and 2 <= len(s) <= 16 and whole(s)
             and not any(n == m for t, m in counts.items() if len(t) == len(s) + 1 and (t[1:] == s or t[:-1] == s))}
    words, got = candidates(pieces)
    assert dict(zip(words, got.tolist())) == found


@given(st.binary(max_size=80))
@settings(max_examples=150, deadline=None)
def test_round_trip(data):
    ids = TOY.encode(data)
    assert TOY.decode_bytes(ids) == data and TOY.encode_array(data)[1][-1] == len(data) and TOY.encode_array(data)[0].tolist() == ids


TOY = train_unigram(["to be or not to be, that is the question"] * 3, 262)


def test_training(trained, code):
    assert trained.vocab_size == 1200 and trained.tokens[:256] == [bytes([b]) for b in range(256)] and trained.special_tokens == {"<eos>": 1199}
    assert train_unigram(code, 1200, special_tokens=["<eos>"]).words == trained.words
    assert math.isclose(np.exp(trained.scores[:-1]).sum(), 1, rel_tol=1e-2)
    first, last = [s for s, _ in trained.history][0], [s for s, _ in trained.history][-1]
    assert first > last == 1199
    for token in trained.tokens[256:]: token.decode()  # whole characters


def test_documents_in_any_order_and_pieces_from_the_plain_count(trained, code, monkeypatch):
    assert train_unigram(sorted(code), 1200, special_tokens=["<eos>"]).to_json() == trained.to_json()
    monkeypatch.setattr("tokenlab.tokenizers.unigram.count_pieces", count_pieces)
    assert train_unigram(code, 1200, special_tokens=["<eos>"]).to_json() == trained.to_json()


def test_bad_arguments():
    with pytest.raises(ValueError, match="too small"): train_unigram(["a"], 100)
    with pytest.raises(ValueError, match="no text"): train_unigram([], 300)
    with pytest.raises(ValueError, match="shrink"): train_unigram(["a"], 300, shrink=1)
    with pytest.warns(UserWarning, match="ran out"): assert train_unigram(["ab"], 300).vocab_size == 256
    with pytest.raises(ValueError, match="scores for"): Unigram(["a"], [])


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", None, r"\d|[^\d]+"])
def test_saved_files_open_in_the_library(tmp_path, code, pattern, open_as_saved):
    tok = train_unigram([t[:4000] for t in code[:10]], 500, pattern=pattern, special_tokens=["<eos>"])
    open_as_saved(tok, tmp_path, [*[t[:3000] for t in code[10:13]], *ODD, "a<eos> b"], code[11][:500])


@pytest.fixture(scope="module")
def peer(tmp_path_factory, code):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sp")
    lines = [line for t in code for line in t.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix=f"{folder}/m", vocab_size=1000, model_type="unigram", byte_fallback=True,
                                             normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_file=f"{folder}/m.model"), from_sentencepiece(f"{folder}/m.model"), lines


def test_same_segmentation_as_sentencepiece(peer):
    "Same ids; where not, the same tokens in another order, which are as likely (its scores have 32 bits)."
    sp, ours, lines = peer
    other, texts = 0, [l for l in [*lines, *(t for t in ODD if "▁" not in t)] if not l.startswith(" ")]
    for text in texts:
        a, b = sp.encode(text), ours.encode(text)
        assert sp.decode(b) == text == ours.decode(b)
        if a != b: other += 1; assert abs(ours.scores[a].sum() - ours.scores[b].sum()) < 1e-4, text
    assert other < len(texts) / 100


def test_characters_with_bytes_open_in_the_library(peer, tmp_path):
    _, ours, lines = peer
    again = Tokenizer.load(ours.save(tmp_path))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path/"tokenizer.json"))
    assert again.to_json() == ours.to_json()
    for text in [*lines[:200], *ODD]:
        assert again.encode(text) == theirs.encode(text).ids, text
        ids, offsets = again.encode_array(text)
        assert ids.tolist() == again.encode(text) and (not len(ids) or offsets[-1] == len(text.encode()))


@pytest.mark.parametrize("fallback", [True, False])
def test_library_files_with_unknown_characters(data_dir, fallback):
    "A file of the library's own trainer on many languages, with unknown characters."
    texts = [r["text"] for r in parallel("udhr") if r["article"] in (1, 2)][::12]
    theirs = tokenizers.Tokenizer(tokenizers.models.Unigram())
    theirs.normalizer, theirs.pre_tokenizer, theirs.decoder = tokenizers.normalizers.NFKC(), tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    theirs.train_from_iterator([t for t in texts if t.isascii()] or texts[:5], tokenizers.trainers.UnigramTrainer(vocab_size=600, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False))
    content = json.loads(theirs.to_str())
    if fallback:
        n = len(content["model"]["vocab"])
        content["model"]["vocab"] += [[f"<0x{b:02X}>", -30.] for b in range(256)]
        content["model"]["byte_fallback"] = True
        theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    ours = from_json(content)
    for text in [*texts, *ODD, "a<s> b", "x 中中 y"]: assert ours.encode(text, special="allow") == theirs.encode(text).ids, text
