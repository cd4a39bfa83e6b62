"RSD: draws and beams without replacement have their law, and the text has the target's."
import itertools, math
from collections import Counter
from types import SimpleNamespace
import pytest, torch
from tokenlab.generate import Sampler, generate
from tokenlab.speculative import speculate as loop
from tokenlab.speculative.rsd import BeamDrafter, DistinctDrafter, below, gumbel, ordered_draws
from tokenlab.speculative.speculate import Draft, Drafter, exact_law, speculate
from test_speculative_spectr import SHARP, chi_square
from test_speculative_speculate import DRAFTS, TARGET, TableLM, distance, noisy, small_lm, true_law


def spoken(drafter, n=3, sampler=Sampler()):
    target = TableLM(TARGET)
    return exact_law(lambda rng: tuple(speculate(target, [0], drafter=drafter, max_new_tokens=n, sampler=sampler, seed=rng).ids))


def test_draws_have_the_law_of_drawing_without_replacement():
    q, n = torch.tensor([.5, .3, .15, .05]), 30_000
    seen = Counter(map(tuple, ordered_draws(q.expand(n, 4), 3, torch.Generator().manual_seed(0)).tolist()))
    exact = exact_law(lambda rng: tuple(ordered_draws(q[None], 3, rng)[0].tolist()))
    assert len(exact) == 24 and sum((seen[s] - n*w)**2/(n*w) for s, w in exact.items()) < 24 + 4*48**.5
    assert ordered_draws(torch.tensor([[0., .5, .5]]), 4, torch.Generator())[0].tolist()[2:] == [-1, -1]


def test_children_of_a_beam_are_gumbel_with_the_parent_as_their_maximum():
    phi, rng = torch.tensor([.6, .3, .1, 0.], dtype=torch.float64).log(), torch.Generator().manual_seed(0)
    parent = gumbel((50_000,), rng)
    G = below(phi.expand(50_000, 4), parent, rng)
    torch.testing.assert_close(G.amax(-1), parent)
    assert bool(G[:, 3].isneginf().all()) and not bool(G.isnan().any())
    torch.testing.assert_close(G[:, :3].mean(0), phi[:3] + .57722, atol=.03, rtol=0)
    torch.testing.assert_close(G[:, :3].var(0), torch.full((3,), math.pi**2/6, dtype=torch.float64), atol=.08, rtol=0)
    far = below(torch.tensor([[-1000., -1., -3.]], dtype=torch.float64), torch.tensor([-50.], dtype=torch.float64), rng)
    assert bool(far.isfinite().all())


def sequences(table, n, first=0):
    law = {(): 1.}
    for _ in range(n): law = {(*s, t): w*x for s, w in law.items() for t, x in enumerate(table[(first, *s)[-1]]) if x}
    return law


def levels(law, width, length, rng):
    "The first `width` different beginnings of each length, of sequences drawn one by one without replacement."
    law, out = dict(law), [[] for _ in range(length)]
    most = [min(width, len({s[:l+1] for s in law})) for l in range(length)]
    while any(len(o) < m for o, m in zip(out, most)):
        items, total = list(law), sum(law.values())
        s = items[rng.choose([law[i]/total for i in items])]
        del law[s]
        for l, o in enumerate(out):
            if s[:l+1] not in o and len(o) < most[l]: o.append(s[:l+1])
    return out


def kids_of(out):
    kids = {}
    for s in itertools.chain(*out): kids.setdefault(s[:-1], []).append(s[-1])
    return tuple(sorted((s, tuple(c)) for s, c in kids.items()))


def test_beam_trees_have_the_law_of_sequences_drawn_one_by_one():
    exact, n, table = Counter(), 4000, torch.tensor(DRAFTS)
    for tree, w in exact_law(lambda rng: kids_of(levels(sequences(DRAFTS, 2), 2, 2, rng))).items(): exact[tree] += w
    drafter, context = BeamDrafter(TableLM(DRAFTS), 2, 2), SimpleNamespace(sampler=Sampler(), rng=torch.Generator().manual_seed(0))
    def tree():
        (first,), _ = drafter.children(table[:1].log(), 2, context, [-1])
        second, _ = drafter.children(table[list(first)].log(), 2, context, list(range(len(first))))
        return kids_of([[(t,) for t in first], [(t, u) for t, c in zip(first, second) for u in c]])
    seen = Counter(tree() for _ in range(n))
    assert set(seen) <= set(exact) and sum((seen[t] - n*w)**2/(n*w) for t, w in exact.items()) < len(exact) + 4*(2*len(exact))**.5


class OneByOne(Drafter):
    "The beam's trees, as an `Every` can draw them."
    def draft(self, context):
        depth = min(2, context.left - 1)
        if depth < 1: return Draft([])
        q = context.sampler.law(torch.tensor(DRAFTS).log())
        at, tokens, parents = {(): -1}, [], []
        for s in itertools.chain(*levels(sequences(q.tolist(), depth, context.ids[-1]), 2, depth, context.rng)): at[s] = len(tokens); tokens.append(s[-1]); parents.append(at[s[:-1]])
        return Draft(tokens, parents, laws={i: q[(context.ids[-1], *s)[-1]] for s, i in at.items() if i in parents})


@pytest.mark.parametrize("drafter, sampler", [(DistinctDrafter(TableLM(DRAFTS), branching=(2,)), Sampler()), (DistinctDrafter(TableLM(DRAFTS), branching=(3,)), Sampler(temperature=.6)),
                                              (DistinctDrafter(TableLM(DRAFTS), branching=(2, 2)), SHARP), (DistinctDrafter(TableLM(DRAFTS), branching=(1, 2)), Sampler(temperature=1.4)), (OneByOne(), SHARP)])
def test_joint_law_of_three_tokens(drafter, sampler):
    assert distance(spoken(drafter, sampler=sampler), true_law(TableLM(TARGET), 0, 3, sampler)) < 1e-6


@pytest.mark.slow
def test_joint_law_of_three_tokens_with_beams():
    assert distance(spoken(OneByOne()), true_law(TableLM(TARGET), 0, 3, Sampler())) < 1e-6


def test_mistakes_are_seen(monkeypatch):
    class Counted(DistinctDrafter):                                      # siblings said to be independent
        def draft(self, context): d = super().draft(context); d.counts = torch.ones(len(d), dtype=torch.long); return d
    want = true_law(TableLM(TARGET), 0, 2, Sampler())
    assert distance(spoken(Counted(TableLM(DRAFTS), branching=(2,)), 2), want) > 1e-3
    class Sorted(DistinctDrafter):                                       # siblings by probability, not by noise
        def children(self, logits, *args):
            kids, laws = super().children(logits, *args)
            return [dict(sorted(k.items(), key=lambda kv: -float(q[kv[0]]))) for k, q in zip(kids, laws)], laws
    assert distance(spoken(Sorted(TableLM(DRAFTS), branching=(2,)), 2), want) > 1e-3


@pytest.mark.parametrize("make", [lambda lm: DistinctDrafter(lm, branching=(2, 2)), lambda lm: BeamDrafter(lm, 2, 2)], ids=["C", "S"])
def test_ragged_batch_has_the_law(monkeypatch, make):
    target = small_lm(vocab_size=3, n_layers=2, scale=6., max_len=16)
    prompts, sampler = [[1, 0], [2, 1, 0, 2]]*600, Sampler(temperature=.9)
    run = lambda: speculate(target, prompts, drafter=make(small_lm(1, vocab_size=3, n_layers=2, scale=6., max_len=16)), max_new_tokens=3, sampler=sampler, seed=1)
    assert chi_square(target, run(), prompts, sampler) < 4
    monkeypatch.setattr(loop, "residual", lambda p, q: p)
    assert chi_square(target, run(), prompts, sampler) > 6


def test_laws_nodes_and_greedy():
    target, seen = small_lm(), []
    small = noisy(target, .2)
    class Watched(BeamDrafter):
        def observe(self, step): seen.append(step); super().observe(step)
    speculate(target, [3, 1], drafter=Watched(small, 4, 3), max_new_tokens=16, sampler=Sampler(), seed=0)
    for step in seen:
        d, paths = step.draft, {-1: []}
        for i, (t, p) in enumerate(zip(d.tokens.tolist(), d.parents.tolist())): paths[i] = [*paths[p], t]
        assert d.counts is None and all(n == 4 for n in Counter(d.depths.tolist()).values())
        for node in d.children(): torch.testing.assert_close(d.laws[node], small(torch.tensor([step.ids + paths[node]])).logits[0, -1].softmax(-1), atol=1e-4, rtol=1e-3)
    for drafter in (DistinctDrafter(small, branching=(3, 2, 1)), BeamDrafter(small, 3, 3)):
        assert speculate(target, [3, 1], drafter=drafter, max_new_tokens=20).ids == generate(target, [3, 1], max_new_tokens=20).ids
