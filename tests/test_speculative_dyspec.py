"DySpec: the tree is the best by its slots' values, the text has the target's law."
import heapq, itertools
from collections import Counter
import pytest, torch
from tokenlab.generate import Sampler, generate
from tokenlab.speculative import speculate as loop
from tokenlab.speculative.dyspec import DySpecDrafter
from tokenlab.speculative.speculate import Context, draw, exact_law, speculate
from test_speculative_spectr import SHARP, chi_square
from test_speculative_speculate import TARGET, TableLM, distance, noisy, small_lm, true_law

DRAFTS = [[.45, .37, .18], [.22, .51, .27], [.13, .48, .39]]             # no two slots of equal value


def tree(drafter, rng, left=20):
    context = Context([0], [0], left, Sampler(), rng, frozenset())
    with torch.inference_mode(): drafter.start(drafter.lm, [0], context); return drafter.draft(context)


def kids_of(d):
    paths, tokens = {-1: ()}, d.tokens.tolist()
    for i, p in enumerate(d.parents.tolist()): paths[i] = (*paths[p], tokens[i])
    return tuple(sorted((paths[n], tuple(tokens[c] for c in kids)) for n, kids in d.children().items()))


def algorithm_1(table, nodes, rng):
    heap, serial, kids = [(-1., 0, (), table[0])], itertools.count(1), {}
    for _ in range(nodes):
        v, _, path, R = heapq.heappop(heap)
        y = draw(R, Sampler(), rng)
        kids.setdefault(path, []).append(y)
        rest = R.index_fill(0, torch.tensor(y), 0.)
        if rest.sum() > 1e-9: heapq.heappush(heap, (v*(1 - float(R[y])), next(serial), path, rest/rest.sum()))
        heapq.heappush(heap, (v*float(R[y]), next(serial), (*path, y), table[y]))
    return tuple(sorted((p, tuple(c)) for p, c in kids.items()))


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_trees_have_the_law_of_algorithm_1(nodes):
    table = torch.tensor(DRAFTS, dtype=torch.float64)
    want = exact_law(lambda rng: algorithm_1(table, nodes, rng))
    assert distance(exact_law(lambda rng: kids_of(tree(DySpecDrafter(TableLM(DRAFTS), nodes), rng))), want) < 1e-6


@pytest.mark.parametrize("drafter, sampler", [(DySpecDrafter(TableLM(DRAFTS), 2), Sampler()), (DySpecDrafter(TableLM(DRAFTS), 3), SHARP), (DySpecDrafter(TableLM(DRAFTS), 2, threshold=.3), Sampler(temperature=.6)),
                                              (DySpecDrafter(TableLM(DRAFTS), 3, threshold=.2), SHARP)])
def test_joint_law_of_three_tokens(drafter, sampler):
    target = TableLM(TARGET)
    got = exact_law(lambda rng: tuple(speculate(target, [0], drafter=drafter, max_new_tokens=3, sampler=sampler, seed=rng).ids))
    assert distance(got, true_law(target, 0, 3, sampler)) < 1e-6


def test_choosing_by_the_drawn_token_is_seen():
    class Peeking(DySpecDrafter):
        def add(self, parent, token, value):
            if value < .2 and parent == -1 and self.tokens: token = self.tokens[0]
            return super().add(parent, token, value)
    target = TableLM(TARGET[1:] + TARGET[:1])
    got = exact_law(lambda rng: tuple(speculate(target, [0], drafter=Peeking(TableLM(DRAFTS), 2), max_new_tokens=2, sampler=Sampler(), seed=rng).ids))
    assert distance(got, true_law(target, 0, 2, Sampler())) > 1e-3


@pytest.mark.parametrize("threshold", [None, .05])
def test_ragged_batch_has_the_law(monkeypatch, threshold):
    target, small = (small_lm(s, vocab_size=3, n_layers=2, scale=6., max_len=16) for s in (0, 1))
    prompts, sampler = [[1, 0], [2, 1, 0, 2]]*600, Sampler(temperature=.9)
    run = lambda: speculate(target, prompts, drafter=DySpecDrafter(small, 5, threshold=threshold), max_new_tokens=3, sampler=sampler, seed=1)
    assert chi_square(target, run(), prompts, sampler) < 4
    monkeypatch.setattr(loop, "residual", lambda p, q: p)
    assert chi_square(target, run(), prompts, sampler) > 6


def slots(d, reach):
    "Value of the slot that each node fills: what its parent is worth, less its earlier siblings."
    out = {}
    for node, kids in d.children().items():
        left = reach[node]
        for c in kids: out[c] = left; left -= reach[c]
    return [out[i] for i in range(len(d))]


def test_values_fall_levels_are_complete_and_few_calls_are_made():
    small, rng = noisy(small_lm(), .2), torch.Generator().manual_seed(0)
    best, level = DySpecDrafter(small, 24), DySpecDrafter(small, 200, threshold=.02)
    for _ in range(5):
        d = tree(best, rng)
        values = slots(d, best.reach)
        assert len(d) == 24 and all(a >= b - 1e-9 for a, b in zip(values, values[1:])) and values[0] == 1
        d = tree(level, rng)
        assert min(slots(d, level.reach)) >= .02
    done = speculate(small_lm(), [1, 2], drafter=DySpecDrafter(small, 24, threshold=1/24, depth=6), max_new_tokens=20, sampler=Sampler(), seed=0)
    assert done.draft_calls <= 6*done.target_calls


def test_budget_of_one_level_equals_best_first_there():
    "At the threshold of its last value, level by level builds the same tree (temperature 0: no draws)."
    lm = small_lm()
    context = lambda: Context([3, 1], [3, 1], 20, Sampler(temperature=0), torch.Generator(), frozenset())
    def build(drafter):
        with torch.inference_mode(): c = context(); drafter.start(lm, [3, 1], c); return drafter.draft(c)
    best = DySpecDrafter(lm, 15)
    d = build(best)
    other = build(DySpecDrafter(lm, 15, threshold=min(slots(d, best.reach)) - 1e-9))
    assert kids_of(d) == kids_of(other) and d.counts is None and not d.laws


def test_greedy_text_context_end_and_refusals():
    target = small_lm(max_len=20)
    small = noisy(target, .2)
    for drafter in (DySpecDrafter(small, 10), DySpecDrafter(small, 10, threshold=.1), DySpecDrafter(small, 1)):
        for prompt in ([3, 1], [5]*18, [5]*19):
            assert speculate(target, prompt, drafter=drafter, max_new_tokens=40).ids == generate(target, prompt, max_new_tokens=40).ids
    with pytest.raises(ValueError, match="1 node or more"): DySpecDrafter(small, 0)
    with pytest.raises(ValueError, match="between 0 and 1"): DySpecDrafter(small, 4, threshold=1.5)
