"Markov sources, dictionaries and unigram rates against brute force and exact identities."
import itertools, math
import numpy as np, pytest, torch
from tokenlab.evaluation.theory import (DictionaryTokenizer, MarkovSource, PlacedLM, SmallBPE, block_tokenizer, bpe_tokenizer, drifting, entropy, exact_rate, lm_rate, lzw_tokenizer,
                                        markov_batches, random_source, read_on, run_dictionary, sequential_bpe, string_prob, switching, token_counts, token_law, train_on,
                                        unigram_bounds, unigram_rate, with_rule)
from tokenlab.lm import LMConfig

h = lambda x: entropy([x, 1 - x])

def naive_greedy(tokens, text):
    out, i = [], 0
    while i < len(text):
        best = max((t for t in tokens if text.startswith(t, i)), key=len)
        out.append(best); i += len(best)
    return out

def fewest_count(tokens, text):
    cost = [0] + [len(text) + 1]*len(text)
    for i in range(1, len(text) + 1):
        cost[i] = min(cost[i - len(t)] + 1 for t in tokens if text[:i].endswith(t))
    return cost[-1]

def random_dictionary(rng, A=2, n=12):
    return list(dict.fromkeys([*"0123456789"[:A], *("".join(map(str, rng.integers(0, A, rng.integers(2, 6)))) for _ in range(n))]))

@pytest.mark.parametrize("p, q, k", [(.8, .8, 2), (.1, .6, 1), (.3, .2, 3)])
def test_switching_formulas(p, q, k):
    source = switching(p, q, k)
    pi0 = q/(p + q)
    assert source.marginal() == pytest.approx([pi0, 1 - pi0])
    assert source.entropy_rate() == pytest.approx(pi0*h(p) + (1 - pi0)*h(q))
    for r in range(1, k + 1): assert source.block_entropy(r) == pytest.approx(r*h(pi0))      # up to the lag symbols look independent

@pytest.mark.parametrize("k, A", [(1, 2), (2, 3), (3, 2)])
def test_block_entropy_and_string_prob_agree(k, A):
    source = random_source(k, A, seed=k)
    for r in (1, 2, 4):
        law = [string_prob(source, "".join(s)) for s in itertools.product(source.alphabet, repeat=r)]
        assert sum(law) == pytest.approx(1) and source.block_entropy(r) == pytest.approx(entropy(law))

def test_sample_has_the_law_of_the_source():
    source = random_source(2, 3, seed=4)
    text = source.sample(150_000, seed=1)
    for s in itertools.product("012", repeat=3):
        word, n = "".join(s), len(text) - 2
        p = string_prob(source, word)
        assert abs(sum(text.startswith(word, i) for i in range(n))/n - p) < 5*math.sqrt(p/n) + 1e-3
    assert source.sample(50, seed=(1, 2)) == source.sample(50, seed=(1, 2)) != source.sample(50, seed=(1, 3))

def test_encoders_against_naive_ones():
    rng = np.random.default_rng(0)
    for _ in range(30):
        tokens = random_dictionary(rng, A=int(rng.integers(2, 4)))
        tok = DictionaryTokenizer(tokens)
        text = "".join(rng.choice([t for t in tokens if len(t) == 1], 60))
        assert [tok.tokens[i].decode() for i in tok.encode(text)] == naive_greedy(tokens, text)
        few = with_rule(tok, "fewest")
        ids = few.encode(text)
        assert few.decode(ids) == text and len(ids) == fewest_count(tokens, text)

@pytest.mark.parametrize("rule", ["greedy", "fewest"])
def test_text_beyond_ascii(rule):
    text = "añadir año ñandú: 東京都 東京 🙂🙂 año"
    tok = lzw_tokenizer(text, 40, rule=rule)
    assert tok.decode(tok.encode(text*3)) == text*3 and len(tok.encode(text)) < len(text)
    assert 0 < unigram_rate(tok, text*4, split=False) < math.log2(40)

def test_reading_on_is_greedy():
    rng = np.random.default_rng(3)
    for _ in range(20):
        tokens = frozenset(random_dictionary(rng))
        inner = frozenset(t[:n] for t in tokens for n in range(1, len(t)))
        text, out, open_ = "".join(rng.choice(["0", "1"], 80)), [], ""
        for c in text: done, open_ = read_on(open_ + c, tokens, inner); out += done
        assert out + naive_greedy(tokens, open_) == naive_greedy(tokens, text)

@pytest.mark.parametrize("seed", range(5))
def test_exact_token_law_is_that_of_a_long_sample(seed):
    rng = np.random.default_rng(seed)
    A = 2 + seed % 2
    source, tok = random_source(1 + seed % 3, A, seed=seed), DictionaryTokenizer(random_dictionary(rng, A))
    law, density = token_law(tok, source)
    counts = token_counts(tok, source.sample(300_000, seed=seed))
    assert density*(law @ [len(t) for t in tok.tokens]) == pytest.approx(1, abs=1e-9)
    assert np.abs(counts/300_000 - law*density).max() < 4e-3
    assert source.entropy_rate() - 1e-9 <= exact_rate(tok, source)

def test_blocks_have_their_closed_form():
    for source in (switching(.8, .8, 2), random_source(2, 3, seed=1), switching(.05, .3)):
        for r in (1, 2, 3): assert exact_rate(block_tokenizer(source, r), source) == pytest.approx(source.block_entropy(r)/r, abs=1e-9)
    one = switching(.1, .2)   # equation (2): d = 2**r
    assert exact_rate(block_tokenizer(one, 4), one) == pytest.approx(one.entropy_rate()*(1 - 1/4) + one.block_entropy(1)/4)

def lzw_by_definition(text, d):
    tokens = []
    while text and len(tokens) < d:
        n = 1
        while text[:n] in tokens and n <= len(text): n += 1
        if n > len(text): break
        tokens.append(text[:n]); text = text[n:]
    return tokens

def test_lzw():
    for seed in range(5):
        text = random_source(2, seed=seed).sample(500, seed=seed)
        tok = lzw_tokenizer(text, 40)
        found = {t.decode() for t in tok.tokens}
        assert set(lzw_by_definition(text, 40)) | set(text) == found and len(found) <= 40
        assert all(w[:-1] in found for w in found if len(w) > 1)
    assert [t.decode() for t in lzw_tokenizer("0100111", 99).tokens] == ["0", "1", "00", "11"]
    late = lzw_tokenizer("000000001", 3)
    assert {"0", "1"} <= {t.decode() for t in late.tokens} and len(late.tokens) <= 3

def test_bounds_hold_and_are_not_trivial():
    for source in (switching(.2, .2), switching(.8, .8, 2), random_source(2, seed=3)):
        train = source.sample(50_000, seed=1)
        for tok in (lzw_tokenizer(train, 128), with_rule(bpe_tokenizer(train, 128), "greedy"), block_tokenizer(source, 6)):
            b = unigram_bounds(tok, source)
            assert b["entropy rate"] <= b["rate"] <= b["bound"] < 4*b["entropy rate"]
    with pytest.raises(ValueError, match="above 0"): unigram_bounds(run_dictionary(.1), drifting(.1))

def test_greedy_and_fewest_part():
    source = drifting(.05)
    assert source.block_entropy(1) == pytest.approx(1.5)
    assert source.entropy_rate() == pytest.approx(.05*math.log2(math.sqrt(2)/.05) + .95*math.log2(1/.95))
    text = source.sample(60_000, seed=3)
    assert unigram_rate(run_dictionary(.05, rule="fewest"), text, split=False) < .5 < .7 < exact_rate(run_dictionary(.05), source) < .85

def test_sequential_bpe_by_definition():
    text, d = switching(.9, .9, 2).sample(4096, seed=2), 32
    size, merges, words = len(text)//d, [], ["0", "1"]
    def apply(part):
        parts = list(part)
        for a, b in merges:
            i, out = 0, []
            while i < len(parts):
                if parts[i:i + 2] == [a, b]: out.append(a + b); i += 2
                else: out.append(parts[i]); i += 1
            parts = out
        return parts
    for i in range(d):
        parts = apply(text[i*size:(i + 1)*size])
        pairs = [(words.index(a), words.index(b)) for a, b in zip(parts, parts[1:])]
        count = max(((pairs.count(p), p) for p in set(pairs)), default=(0, None))
        if count[0] >= math.log(d): a, b = count[1]; merges.append((words[a], words[b])); words.append(words[a] + words[b])
    assert merges and {t.decode() for t in sequential_bpe(text, d).tokens} == set(words)

def test_bpe_split_cuts_first():
    tok = SmallBPE("01", [(0, 1), (2, 2)], piece=3)
    assert [t.decode() for t in (tok.tokens[i] for i in tok.encode("010101"))] == ["01", "0", "1", "01"]

def test_unigram_rate_is_the_cross_entropy_of_the_halves():
    tok, text = DictionaryTokenizer(["0", "1", "01"]), switching(.7, .4).sample(1000, seed=5)
    fit, score = naive_greedy(["0", "1", "01"], text[:500]), naive_greedy(["0", "1", "01"], text[500:])
    total = -sum(math.log2((fit.count(t) + 1)/(len(fit) + 3)) for t in score) + math.log2(500)
    assert unigram_rate(tok, text) == pytest.approx(total/500)

@pytest.mark.parametrize("P, said", [([[.5, .5]]*3, "A\\*\\*k"), ([[.6, .6], [.5, .5]], "sum 1"), ([[1.], [1.]], "2 symbols"), ([[.5, np.nan], [.5, .5]], "sum 1")], ids=["states", "sums", "one", "nan"])
def test_bad_sources(P, said):
    with pytest.raises(ValueError, match=said): MarkovSource(P)

def test_bad_input():
    with pytest.raises(ValueError, match="twice"): DictionaryTokenizer(["0", "0"])
    with pytest.raises(ValueError, match="greedy or fewest"): DictionaryTokenizer(["0"], rule="best")
    with pytest.raises(ValueError, match="'2' is no token: add it"): DictionaryTokenizer(["0", "1", "é"]).encode("0é2")
    with pytest.raises(ValueError, match="no text"): lzw_tokenizer("", 5)
    with pytest.raises(ValueError, match="greedy encoder"): token_law(bpe_tokenizer("0011", 3), switching(.5, .5))
    with pytest.raises(ValueError, match="two halves"): unigram_rate(DictionaryTokenizer("01"), "0")
    with pytest.raises(ValueError, match="must be tokens"): lzw_tokenizer("0123", 3)
    with pytest.raises(ValueError, match="is no token"): bpe_tokenizer("0101", 3).encode("012")
    assert SmallBPE("01", []).encode("") == []

def test_placed_lm_knows_places_only_from_its_table():
    lm = PlacedLM(LMConfig(5, dim=16, n_layers=1, n_heads=2, max_len=8), seed=0)
    ids, swapped = torch.tensor([[4, 0, 1, 2, 3]]), torch.tensor([[4, 2, 1, 0, 3]])
    assert not torch.allclose(lm(ids).logits[0, -1], lm(swapped).logits[0, -1], atol=1e-6)
    torch.nn.init.zeros_(lm.places.weight)
    torch.testing.assert_close(lm(ids).logits[0, -1], lm(swapped).logits[0, -1], atol=1e-5, rtol=1e-4)   # a bag of tokens
    with pytest.raises(ValueError, match="larger max_len"): lm(torch.zeros(1, 9, dtype=torch.long))

def test_lm_rate_ignores_padding():
    source = switching(.8, .8, 2)
    tok = bpe_tokenizer(source.sample(5000), 12)
    lm = PlacedLM(LMConfig(13, dim=16, n_layers=2, n_heads=2, max_len=65), seed=1)
    texts = [source.sample(n, seed=n) for n in (64, 20, 3)]
    alone = sum(lm_rate(lm, tok, [t])*len(t) for t in texts)/sum(map(len, texts))
    assert lm_rate(lm, tok, texts) == pytest.approx(alone, abs=1e-5)
    batch = markov_batches(source, tok, chars=40, rows=3, seed=2)
    assert torch.equal(batch(5)["ids"], batch(5)["ids"]) and not torch.equal(batch(5)["ids"], batch(6)["ids"])
    assert [tok.decode([i for i in row[1:] if i >= 0]) for row in batch(5)["ids"].tolist()] == [source.sample(40, (2, 5, i)) for i in range(3)]

def test_training_learns_an_order_one_chain():
    curve = train_on(switching(.05, .05), DictionaryTokenizer("01"), steps=60, points=2, dim=16, layers=1, heads=2, chars=64, rows=8, lr=1e-2)
    assert curve[max(curve)] < .6     # 1 bit by itself, 0.286 the entropy rate
