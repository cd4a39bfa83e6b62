"Kneser-Ney against a plain transcription of the formula, and against its own sum to one."
import math, random
from collections import Counter
import numpy as np, pytest
from tokenlab.baselines import KneserNey, discount_of, xz_bits_per_byte


def plain(documents, V, order, pad):
    "The formula, n-gram by n-gram, with sets of left neighbours kept explicitly."
    counts = {n: Counter() for n in range(1, order + 1)}
    left = {n: {} for n in range(1, order + 1)}
    for doc in documents:
        row = [pad]*(order - 1) + list(doc)
        for i in range(order - 1, len(row)):
            counts[order][tuple(row[i-order+1:i+1])] += 1
            for n in range(1, order): left[n].setdefault(tuple(row[i-n+1:i+1]), set()).add(row[i-n])
    for n in range(1, order): counts[n] = Counter({g: len(s) for g, s in left[n].items()}) if n + 1 == order or order == 1 else counts[n]
    for n in range(order - 2, 0, -1):
        found = {}
        for g in counts[n+1]: found.setdefault(g[1:], set()).add(g[0])
        counts[n] = Counter({g: len(s) for g, s in found.items()})
    def p(context, w):
        n = len(context) + 1
        lower = p(context[1:], w) if context else 1/V
        seen = {g: c for g, c in counts[n].items() if g[:-1] == tuple(context)}
        if not seen: return lower
        total, D = sum(seen.values()), discount_of(list(counts[n].values()))
        return (max(seen.get((*context, w), 0) - D, 0) + D*len(seen)*lower)/total
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_formula_and_sums_to_one(order, seed):
    rng, V = random.Random(seed), 6
    documents = [[rng.randrange(1, V) for _ in range(rng.randrange(0, 25))] for _ in range(6)]
    made, p = KneserNey(documents, V, order), plain(documents, V, order, 0)
    for _ in range(20):
        context = [rng.randrange(V) for _ in range(order - 1)]
        text = [*context, 0]
        probs = []
        for w in range(V):
            text[-1] = w
            row = made.logprobs(text)
            padded = ([0]*(order - 1) + text)[len(text) - 1:]
            assert math.exp(row[-1]) == pytest.approx(p(tuple(padded[:-1]), w))
            probs.append(math.exp(row[-1]))
        assert sum(probs) == pytest.approx(1)


def test_vocabulary_beyond_what_one_integer_packs():
    documents = [np.random.default_rng(0).integers(1, 200_000, 500).tolist()]
    assert np.isfinite(KneserNey(documents, 200_000, 5).logprobs(documents[0])).all()


def test_bits_per_byte_counts_every_token_once():
    made = KneserNey([[1, 2, 3]], 5, 2)
    whole = made.bits_per_byte([[1, 2], [3], []], 10)
    assert whole == pytest.approx(-(made.logprobs([1, 2]).sum() + made.logprobs([3]).sum())/math.log(2)/10)


def test_xz_joins_the_texts(): assert xz_bits_per_byte(["abc"*100]*50) < xz_bits_per_byte(["abc"*100])
