"ADED: adaptation by arithmetic, the search's own book-keeping, and the target's own text."
import math
from collections import defaultdict
import numpy as np, pytest, torch
from tokenlab.generate import Sampler, generate, greedy
from tokenlab.lm import LM, LMConfig
from tokenlab.speculative.aded import ADED, adapt, best_child, explore, ranked, score_of, search, trigram_table, uniform
from tokenlab.speculative.lookup import NGramTable
from tokenlab.speculative.speculate import exact_law, speculate
from test_speculative_speculate import TARGET, TableLM, true_law


def small_lm(**kw): return LM(LMConfig(**(dict(vocab_size=40, dim=32, n_layers=2, n_heads=2, max_len=96) | kw)), seed=0).eval()
def random_table(V=12, n=400, seed=0): return trigram_table([np.random.default_rng(seed).integers(0, V, n)])
def run_search(table, a, b, iterations=150, states=4, c1=32., literal=False, seed=0):
    return search(table.slots, a, b, iterations, states, c1, 8., table.slots.sizes[2], np.array([seed], np.uint64), literal)


def test_adaptation_is_that_of_a_dictionary():
    rng, table = np.random.default_rng(0), random_table()
    mine = defaultdict(dict)
    for a in range(12):
        for b in range(12): mine[a, b] = dict(table.successors([a, b]))
    for _ in range(150):
        ids = rng.integers(0, 3, rng.integers(1, 40)).tolist()
        adapt(table, ids)
        last = ids[-16:]
        for a, b, c in zip(last, last[1:], last[2:]): mine[a, b][c] = min(3., mine[a, b].get(c, 0) + .04)
    for pair, after in mine.items():
        found = dict(table.successors(pair))
        assert found.keys() == after.keys()
        for token in after: assert abs(found[token] - after[token]) < 1e-4
    assert max(max(a.values(), default=0) for a in mine.values()) == 3.


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("states", [2, 4, 6])
def test_books_of_the_search(states, literal):
    table = random_table()
    for a, b in ((0, 1), (3, 3), (7, 2)):
        pair, parent, visits = run_search(table, a, b, states=states, literal=literal)
        assert visits[0] == (150 if len(pair) > 1 else 150)
        depth = np.zeros(len(pair), int)
        for i in range(1, len(pair)): depth[i] = depth[parent[i]] + 1
        for node in range(len(pair)):
            kids = np.flatnonzero(parent == node)
            if not len(kids): continue
            assert depth[kids[0]] < states and [int(p) for p in pair[kids, 1]] == [t for t, _ in table.successors(pair[node])]
            ended = visits[node] - visits[kids].sum()
            assert ended in (0, 1) and (node > 0 or ended == 0)           # at most the visit that made it a parent's child


def test_choice_is_the_formula():
    rng = np.random.default_rng(0)
    for _ in range(50):
        visits, prior = rng.integers(1, 20, 6), rng.random(6)
        value, above = visits*rng.random(6)*3, int(visits.sum())
        puct = value/visits + (32 + math.log((above + 9)/8))*prior*above**.5/(1 + visits)
        assert best_child(0, 6, above, visits, value, prior, 32., 8.) == puct.argmax()
        visits[3] = 0
        assert best_child(0, 6, above, visits, value, prior, 32., 8.) == 3


def test_many_searches_order_the_first_moves_as_the_table():
    table = trigram_table([[1, 2, 3]*6 + [1, 2, 4]*3 + [1, 2, 5]])
    pair, parent, visits = run_search(table, 1, 2, 3000)
    top = np.flatnonzero(parent == 0)
    assert [int(t) for t in pair[top[np.argsort(-visits[top])], 1]] == [3, 4, 5]


def test_draft_is_a_tree_of_known_trigrams():
    table = random_table()
    for literal in (False, True):
        for nodes in (1, 5, 64):
            tokens, parents = explore(table.slots, 0, 1, 150, 4, 32., 8., 24, nodes, np.zeros(1, np.uint64), literal)
            assert len(tokens) <= nodes and (parents < np.arange(len(parents))).all()
            seen = set()
            for i, (t, p) in enumerate(zip(tokens.tolist(), parents.tolist())):
                line = [t]
                while p >= 0: line.insert(0, int(tokens[p])); p = int(parents[p])
                assert tuple(line) not in seen and len(line) <= 4
                seen.add(tuple(line))
                a, b = ([0, 1] + line)[-3:-1]
                assert score_of(table.slots, a, b, t) > 0


def test_ranks_are_stable():
    visits = np.array([9, 2, 5, 0, 5, 2])
    assert ranked(visits, 3).tolist() == [2, 4, 1] and ranked(visits, 9).tolist() == [2, 4, 1, 5, 3]


def test_uniform():
    state = np.array([7], np.uint64)
    x = np.array([uniform(state) for _ in range(4000)])
    assert 0 <= x.min() and x.max() < 1 and abs(x.mean() - .5) < .02 and abs(x.var() - 1/12) < .01


@pytest.mark.parametrize("options", [{}, {"adaptive": False}, {"literal": True}, {"private": True}])
def test_greedy_text_is_plain_greedy_text_ragged(options):
    lm, rng = small_lm(), np.random.default_rng(0)
    prompts = [rng.integers(0, 40, n).tolist() for n in (1, 2, 7, 30, 92)]
    for stop in (None, [generate(lm, prompts[2], max_new_tokens=20).ids[7]]):
        plain = generate(lm, prompts, max_new_tokens=40, stop=stop)
        for table in (None, random_table(40, 3000)):
            quick = speculate(lm, prompts, drafter=ADED(table, **options), max_new_tokens=40, stop=stop)
            assert [q.ids for q in quick] == [p.ids for p in plain]


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=.7, top_p=.8)])
def test_sampled_text_has_the_targets_law(sampler):
    target, table = TableLM(TARGET), trigram_table([[1, 0, 1, 0, 2, 0, 1, 2, 1, 0, 0, 2, 2, 1, 1]])
    law = exact_law(lambda rng: tuple(speculate(target, [1, 0], drafter=ADED(table.copy()), max_new_tokens=3, sampler=sampler, seed=rng).ids))
    truth = true_law(target, 0, 3, sampler)
    assert sum(abs(law.get(s, 0) - truth.get(s, 0)) for s in {*law, *truth}) < 1e-6


def test_who_learns():
    lm = small_lm()
    for options, learns in (({}, True), ({"adaptive": False}, False), ({"private": True}, False)):
        table = random_table(40)
        before = len(table)
        speculate(lm, [1, 2, 3], drafter=ADED(table, **options), max_new_tokens=30)
        assert (len(table) > before) == learns


def test_same_seed_same_draft():
    runs = [speculate(small_lm(), [1, 2, 3], drafter=ADED(random_table(40, 3000), seed=s), max_new_tokens=30).positions for s in (1, 1)]
    assert runs[0] == runs[1]


def test_bad_arguments():
    with pytest.raises(ValueError, match="trigram_table"): ADED(NGramTable(3))
    with pytest.raises(ValueError, match="states"): ADED(states=9)
    with pytest.raises(ValueError, match="iterations"): ADED(iterations=0)
