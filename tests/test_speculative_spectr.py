"SpecTr: k-SEQ is exact, near the transport optimum, and exact down the whole tree."
import itertools, math
import pytest, torch
from tokenlab.generate import Sampler, generate
from tokenlab.speculative import spectr as module
from tokenlab.speculative.spectr import (PathDrafter, accept_kseq, bigram_lm, draws, kseq_chance, kseq_factor, kseq_residual, kseq_select, lab_prompts,
                                         multisets, random_laws, smallest_cut, transport_plan)
from tokenlab.speculative.speculate import Context, Draft, Drafter, ModelDrafter, draw, exact_law, speculate
from test_speculative_speculate import DRAFTS, TARGET, TableLM, distance, noisy, small_lm, true_law

SHARP = Sampler(temperature=.7, top_p=.6)


def spoken(drafter, n=3, sampler=Sampler(), accept=accept_kseq):
    target = TableLM(TARGET)
    return exact_law(lambda rng: tuple(speculate(target, [0], drafter=drafter, max_new_tokens=n, sampler=sampler, seed=rng, accept=accept).ids))


def chi_square(target, rows, prompts, sampler, n=3):
    "Worst standardised chi-square over prompts, of n-token texts against the target's exact law."
    worst = -9.
    for prompt in {tuple(p) for p in prompts}:
        law = {(): 1.}
        with torch.inference_mode():
            for _ in range(n):
                law = {(*s, t): w*x for s, w in law.items() for t, x in enumerate(sampler.law(target(torch.tensor([[*prompt, *s]])).logits[0, -1]).tolist()) if x}
        mine = [tuple(r.ids) for r, p in zip(rows, prompts) if tuple(p) == prompt]
        assert set(mine) <= set(law)
        big = [s for s, w in law.items() if w*len(mine) > 5]
        chi = sum((mine.count(s) - len(mine)*law[s])**2/(len(mine)*law[s]) for s in big)
        worst = max(worst, (chi - len(big))/(2*len(big))**.5)
    return worst


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_selection_is_exact_and_near_the_optimum(seed, k):
    p, q = random_laws(4, seed)
    law = exact_law(lambda rng: kseq_select(p, q, [draw(q, Sampler(), rng) for _ in range(k)], Sampler(), rng))
    torch.testing.assert_close(torch.tensor([law.get(x, 0.) for x in range(4)], dtype=torch.float64), p, atol=1e-8, rtol=0)
    best = transport_plan(p, q, k)[1]
    assert abs(best - smallest_cut(p, q, k)) < 1e-7
    assert (1 - (1 - 1/k)**k)*best - 1e-9 <= kseq_chance(p, q, k) <= best + 1e-9
    assert kseq_chance(p, q, k) >= kseq_chance(p, q, 1) - 1e-9


def test_edge_laws():
    one, two = torch.tensor([1., 0., 0.], dtype=torch.float64), torch.tensor([0., .5, .5], dtype=torch.float64)
    assert kseq_chance(one, two, 3) == 0 and torch.equal(kseq_residual(one, two, 3, kseq_factor(one, two, 3)), one)      # nothing in common
    assert abs(kseq_chance(two, two, 3) - 1) < 1e-12 and kseq_factor(two, two, 3) == 1
    assert abs(kseq_chance(torch.tensor([1., 0.]), torch.tensor([.5, .5]), 2) - .75) < 1e-9
    assert abs(sum(multisets(two, 3).values()) - 1) < 1e-12
    with pytest.raises(ValueError, match="small vocabularies"): transport_plan(torch.full((200,), .005), torch.full((200,), .005), 3)


@pytest.mark.parametrize("drafter, sampler", [(PathDrafter(TableLM(DRAFTS), 2, 1), Sampler()), (PathDrafter(TableLM(DRAFTS), 2, 2), SHARP), (PathDrafter(TableLM(DRAFTS), 3, 1), SHARP),
                                              (PathDrafter(TableLM(DRAFTS), 1, 2), Sampler()), (ModelDrafter(TableLM(DRAFTS), branching=(2, 1)), SHARP),
                                              (PathDrafter(TableLM(DRAFTS), 2, 1, sampler=Sampler(temperature=2.)), Sampler(top_p=.7))])
def test_joint_law_of_three_tokens(drafter, sampler):
    assert distance(spoken(drafter, sampler=sampler), true_law(TableLM(TARGET), 0, 3, sampler)) < 1e-6


@pytest.mark.parametrize("name, wrong", [("kseq_factor", lambda p, q, k: 1.), ("kseq_residual", lambda p, q, k, rho: p), ("shuffle", lambda items, rng: items)])
def test_mistakes_are_seen(monkeypatch, name, wrong):
    monkeypatch.setattr(module, name, wrong)
    paths = 3 if name == "shuffle" else 2
    assert distance(spoken(PathDrafter(TableLM(DRAFTS), paths, 1), n=2), true_law(TableLM(TARGET), 0, 2, Sampler())) > 1e-3


def test_ragged_batch_has_the_law(monkeypatch):
    target = small_lm(vocab_size=3, n_layers=2, scale=6., max_len=16)
    prompts, sampler = [[1, 0], [2, 1, 0, 2]]*600, Sampler(temperature=.9)
    run = lambda: speculate(target, prompts, drafter=PathDrafter(small_lm(1, vocab_size=3, n_layers=2, scale=6., max_len=16), 3, 2), accept=accept_kseq, max_new_tokens=3, sampler=sampler, seed=1)
    assert chi_square(target, run(), prompts, sampler) < 4
    monkeypatch.setattr(module, "kseq_residual", lambda p, q, k, rho: p)
    assert chi_square(target, run(), prompts, sampler) > 6


def test_paths_are_counted_and_their_laws_true():
    lm = small_lm()
    seen = []
    class Watched(PathDrafter):
        def observe(self, step): seen.append(step); super().observe(step)
    speculate(lm, [3, 1], drafter=Watched(noisy(lm, .2), 4, 3), accept=accept_kseq, max_new_tokens=20, sampler=Sampler(temperature=.5), seed=0)
    for step in seen:
        d = step.draft
        for node, kids in d.children().items():
            assert int(d.counts[kids].sum()) == (4 if node < 0 else int(d.counts[node]))
    assert max(int(s.draft.counts.max()) for s in seen if len(s.draft)) > 1
    assert [len(r) for r in draws(torch.ones(2, 5)/5, [3, 0], Sampler(), torch.Generator())] == [3, 0]


def test_greedy_and_refusals():
    lm = small_lm()
    drafter = PathDrafter(noisy(lm, .2), 3, 3)
    assert speculate(lm, [3, 1], drafter=drafter, accept=accept_kseq, max_new_tokens=20).ids == generate(lm, [3, 1], max_new_tokens=20).ids
    class Chosen(Drafter):
        def draft(self, context): return Draft([1, 2], parents=[-1, -1])
    with pytest.raises(ValueError, match="independent draws"): speculate(lm, [1], drafter=Chosen(), accept=accept_kseq, max_new_tokens=4, sampler=Sampler(), seed=0)


def test_greedy_text_of_the_lab_models_is_identical():
    from tokenlab.lab import load_lab
    from tokenlab.speculative.dyspec import DySpecDrafter
    from tokenlab.speculative.rsd import BeamDrafter, DistinctDrafter
    (target, tok), (small, _) = load_lab("lab-base"), load_lab("lab-draft")
    prompts = lab_prompts(tok, 100, seed=7, length=24)
    want = [g.ids for g in generate(target, prompts, max_new_tokens=8)]
    for drafter in (PathDrafter(small, 4, 3), DistinctDrafter(small, branching=(3, 2, 1)), BeamDrafter(small, 4, 3), DySpecDrafter(small, 12), DySpecDrafter(small, 12, threshold=.08)):
        assert [g.ids for g in speculate(target, prompts, drafter=drafter, max_new_tokens=8)] == want, type(drafter)
