"""Data mixture inference: the replay against a recount, the program against enumeration, an assignment solver and known mixtures."""
from collections import Counter
import numpy as np, pytest
from tokenlab.evaluation.mixture import (Program, clean_merges, deal, encoding_efficiency, fit_efficiency, guess_from_efficiency, heaviest_matching, infer_mixture, log10_mse, merge_list,
                                         read_samples, tokenizer_mixture, trace_pairs)
from tokenlab.tokenizers.bpe import train_bpe
from tokenlab.tokenizers.core import Tokenizer

WORDS = {"a": "ban nana band anna nab bad dan and", "b": "the then that hat heat tea ate eat hate", "c": "zig zag zoo zip gig gag pig gap", "d": "dab adb nadn abna bnaa dnad anbd ddna"}


def text(kind: str, n: int, seed: int) -> list[str]:
    "Documents of random words of one kind, Zipf-like."
    rng, words = np.random.default_rng([seed, ord(kind)]), WORDS[kind].split()
    p = 1/np.arange(1, len(words) + 1)
    return [" ".join(rng.choice(words, 20, p=p/p.sum())) for _ in range(n)]


@pytest.fixture(scope="module")
def mixed():
    "A tokenizer, its training text by category."
    parts = {"a": text("a", 60, 1), "b": text("b", 25, 1), "c": text("c", 15, 1)}
    return train_bpe([t for p in parts.values() for t in p], 256 + 45), parts


def recount(merges, pieces, steps):
    "Counts of pairs after some numbers of merges, from scratch each time."
    symbols, numbers, n = pieces
    ends = np.cumsum(numbers)
    for step in steps:
        total = Counter()
        for e, k, w in zip(ends, numbers, n):
            ids = symbols[e - k:e].tolist()
            for a, b, new in merges[:step].tolist():
                i = 0
                while i < len(ids) - 1:
                    if (ids[i], ids[i + 1]) == (a, b): ids[i:i + 2] = [new]
                    i += 1
            for pair in zip(ids, ids[1:]): total[pair] += int(w)
        yield step, total


def counts(trace, step, column):
    found = trace.counts(np.arange(len(trace.keys)), np.full(len(trace.keys), step))[:, column]
    return {(int(k >> 32), int(k & 0xffffffff)): int(c) for k, c in zip(trace.keys, found) if c}


@pytest.mark.parametrize("texts", [["aaaaaaa aaaa aaa aa a"], ["abababab bababa aabbaabb"], text("a", 10, 3) + text("b", 10, 3), ["é日本日本 日本語 日日日日"]], ids=["runs", "alternating", "words", "multibyte"])
def test_replay_equals_recount(texts):
    tok = train_bpe(texts, 256 + 30, pattern=None)
    listed = merge_list(tok)
    trace = trace_pairs(listed, [texts, text("c", 3, 0)])
    for column, t in enumerate((texts, text("c", 3, 0))):
        for step, total in recount(listed.merges, listed.pieces(t), range(0, len(listed.merges) + 1, 3)):
            assert counts(trace, step, column) == dict(total)


def test_the_trainers_pair_is_the_most_frequent(mixed):
    tok, parts = mixed
    trace = trace_pairs(merge_list(tok), [[t for p in parts.values() for t in p]])
    for step in range(len(trace.targets)):
        now = trace.counts(np.arange(len(trace.keys)), np.full(len(trace.keys), step))[:, 0]
        assert now[trace.targets[step]] == now.max()


def test_training_text_costs_nothing_at_the_true_mixture(mixed):
    tok, parts = mixed
    program = Program(trace_pairs(merge_list(tok), list(parts.values())), range(3))
    true = program.pairs/program.pairs.sum()
    rows, z, whole = program.rivals(true, most=100, limit=100_000, tol=1e-6)
    assert whole and len(rows) == 0
    found = program.solve()
    assert found.objective <= 1e-6 and found.gap <= 1e-6
    wrong = program.rivals(np.roll(true, 1), most=100, limit=100_000)[0]
    assert len(wrong) > 10


@pytest.fixture(scope="module")
def noisy(mixed):
    "A program that no mixture satisfies: other samples, and a wrong one."
    return Program(trace_pairs(merge_list(mixed[0]), [text("a", 9, 7), text("b", 9, 8), text("c", 3, 9)], n_merges=25), range(3))


def all_rows(program):
    return np.array([(t, p) for t in np.flatnonzero(program.seen) for p in range(len(program.trace.keys)) if p != program.trace.targets[t]])


def test_lazy_rows_give_the_optimum_of_all_rows(noisy):
    rows = all_rows(noisy)
    alpha, objective, v, u = noisy.minimise(rows, noisy.excess(rows))
    assert objective > 1
    for found in (noisy.solve().objective, noisy.solve(size=60).objective, noisy.solve_lazily(most=3, limit=20)[1]):
        assert found*noisy.scale == pytest.approx(objective, rel=1e-5, abs=1e-2)


def test_matching_prices_a_mixture_as_the_assignment_solver_does(noisy):
    from scipy.optimize import linear_sum_assignment
    rows = all_rows(noisy)
    for seed in range(5):
        alpha = np.random.default_rng(seed).dirichlet(np.ones(3))
        z = noisy.excess(rows) @ alpha
        dense = np.zeros((len(noisy.own), len(noisy.trace.keys)))
        dense[rows[:, 0], rows[:, 1]] = np.maximum(z, 0)
        t, p = linear_sum_assignment(dense, maximize=True)
        listed, weight, whole = noisy.rivals(alpha, most=25, limit=100_000, tol=0)
        ours = weight[heaviest_matching(listed, weight, len(noisy.own))].sum()
        assert ours == pytest.approx(dense[t, p].sum(), abs=1e-3)


def test_two_categories_on_a_grid(mixed):
    from scipy.optimize import linear_sum_assignment
    program = Program(trace_pairs(merge_list(mixed[0]), [text("a", 30, 7), text("b", 30, 8)], n_merges=12), range(2))
    rows = all_rows(program)
    excess, costs = program.excess(rows), []
    for share in np.linspace(0, 1, 1001):
        dense = np.zeros((12, len(program.trace.keys)))
        dense[rows[:, 0], rows[:, 1]] = np.maximum(excess @ [share, 1 - share], 0)
        t, p = linear_sum_assignment(dense[:, dense.any(0)], maximize=True)
        costs.append(dense[:, dense.any(0)][t, p].sum())
    found = program.solve()
    assert found.objective*program.scale <= min(costs) + 1e-2
    assert min(costs) - found.objective*program.scale <= 1e-3*max(costs)
    near = int(round(found.alpha[0]*1000))
    assert costs[near] <= min(costs) + 2e-3*max(costs)


def test_known_mixture_is_found_and_baselines_are_worse(mixed):
    tok, parts = mixed
    size = {k: sum(map(len, p)) for k, p in parts.items()}
    true = {k: s/sum(size.values()) for k, s in size.items()}
    samples = {k: text(k, 200, 5) for k in parts}
    found = infer_mixture(tok, samples, resamples=3)
    assert list(found) == ["a", "b", "c"] and sum(found.values()) == pytest.approx(1)
    assert log10_mse(true, found) < log10_mse(true, dict.fromkeys(true, 1/3)) - 1
    assert set(found.std) == set(found) and all(0 < s < .1 for s in found.std.values())
    assert found.objective > 0 and found.gap <= 1e-3*found.objective + 1e-6


def test_a_missing_category_costs():
    "It is spelt in the letters of another one; a category with letters of its own would leave merges unseen instead."
    tok = train_bpe(text("a", 60, 1) + text("d", 40, 1) + text("c", 20, 1), 256 + 40)
    samples = {k: text(k, 100, 5) for k in "adc"}
    whole, part = (infer_mixture(tok, {k: samples[k] for k in names}, resamples=0) for names in ("adc", "ac"))
    assert part.objective > 2*whole.objective and part.misfit > whole.misfit
    assert infer_mixture(tok, {k: samples[k] for k in "ad"}, resamples=0).unseen > whole.unseen


def test_same_seed_same_answer(mixed):
    samples = {k: text(k, 20, 5) for k in "abc"}
    a, b = (infer_mixture(mixed[0], samples, resamples=2, seed=4) for _ in range(2))
    assert dict(a) == dict(b) and a.std == b.std


def test_bytes_not_pairs(mixed):
    "The same text with letters of three bytes: pairs are shares of symbols, and bytes are asked for."
    samples = {"a": text("a", 50, 5), "b": text("b", 50, 6)}
    found = infer_mixture(mixed[0], samples, resamples=0)
    sizes = {k: sum(len(t) for t in v) for k, v in samples.items()}
    pairs = {k: sum(max(len(w) + (i > 0) - 1, 0) for t in v for i, w in enumerate(t.split(" "))) for k, v in samples.items()}
    raw = {k: found.pairs[k]*sizes[k]/pairs[k] for k in samples}
    for k in samples: assert found[k] == pytest.approx(raw[k]/sum(raw.values()), rel=1e-9)


def test_clean_merges_keeps_one_of_each_block():
    blocks = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("▁", "▁"), ("▁▁", "▁▁"), ("▁", "abc"), ("▁a", "bc")]
    assert clean_merges(blocks) == [("a", "b"), ("b", "c"), ("ab", "c"), ("▁", "abc")]


def test_clean_merges_agrees_with_the_rule_of_the_authors(data_dir):
    "Their rule, written anew: of a block, the split whose sorted ranks of all merges below it come first."
    merges = Tokenizer.load(data_dir/"tokenizers"/"llama.json").merges
    rank, groups, used = {a + b: i for i, (a, b) in enumerate(merges)}, {}, {}
    for a, b in merges: groups.setdefault(a + b, []).append((a, b))
    def below(token):
        if token not in rank: return []
        if token not in used: return [np.inf]
        return below(used[token][0]) + below(used[token][1]) + [rank[token]]
    for token, group in groups.items():
        tied = [(a, b) for a, b in group if not ((b, a) in group and len(a) < len(b))]
        used[token] = min(tied, key=lambda m: sorted(below(m[0]) + below(m[1])))
    ours = {a + b: (a, b) for a, b in clean_merges(merges)}
    assert len(ours) == len([t for t in groups if t.strip("▁")])
    assert sum(used[t] != m for t, m in ours.items()) <= len(ours)//1000


@pytest.mark.parametrize("name", ["gpt-2", "llama"])
def test_published_files_replay(name, data_dir):
    tok = Tokenizer.load(data_dir/"tokenizers"/f"{name}.json")
    texts = ["The quick brown fox jumps.\n\n    return self.value + 12\n", "Les élèves étudient l'été.\n"]
    listed = merge_list(tok)
    trace = trace_pairs(listed, [[t] for t in texts], n_merges=2000)
    for column, t in enumerate(texts):
        for step, total in recount(listed.merges, listed.pieces([t]), (0, 700, 2000)): assert counts(trace, step, column) == dict(total)


def test_input_that_cannot_work(mixed, tmp_path):
    tok, _ = mixed
    good = {"a": ["some text"], "b": ["other text"]}
    for wrong, words in (({"a": ["x"]}, "at least 2"), ({"a": ["xy"], "b": []}, "is empty"), ({"a": "xy", "b": ["xy"]}, "one text"), ([1], "must be a dict")):
        with pytest.raises(ValueError, match=words): infer_mixture(tok, wrong)
    with pytest.raises(ValueError, match="n_merges=0"): infer_mixture(tok, good, n_merges=0)
    with pytest.raises(ValueError, match="no merge of the tokenizer occurs"): infer_mixture(train_bpe(["zqzqzq"], 258), {"a": ["ab ab"], "b": ["cd cd"]}, resamples=0)
    with pytest.raises(ValueError, match="no merges"): infer_mixture(train_bpe(["a"], 256), good)
    from tokenlab.tokenizers.unigram import train_unigram
    with pytest.raises(ValueError, match="no ordered merges"): infer_mixture(train_unigram(text("a", 20, 1), 300), good)
    with pytest.raises(ValueError, match="give a folder"): read_samples([str(tmp_path)])


def test_one_document_and_odd_bytes_are_samples_too(mixed):
    found = infer_mixture(mixed[0], {"a": [" ".join(text("a", 50, 2))], "b": [" ".join(text("b", 50, 2)).encode() + b"\xff"]}, resamples=2)
    assert sum(found.values()) == pytest.approx(1)


def test_deal_keeps_all_text():
    texts = text("a", 30, 1) + ["x\n"*3000, ""]
    dealt = deal(texts, 5, np.random.default_rng(0))
    assert sorted(b"".join(map(b"".join, dealt))) == sorted("".join(texts).encode())
    assert max(sum(map(len, g)) for g in dealt) < 2*min(sum(map(len, g)) for g in dealt)


def test_efficiency_line_is_learnt():
    known = [{"a": .5, "b": .25}, {"a": .3, "b": .9}]
    shares = [{k: e**2 for k, e in row.items()} for row in known]
    slope, intercept = fit_efficiency(known, shares)
    assert (slope, intercept) == (pytest.approx(2), pytest.approx(0, abs=1e-9))
    assert guess_from_efficiency({"a": .5, "b": .5}, (slope, intercept)) == {"a": .5, "b": .5}


def test_a_tokenizer_is_as_efficient_as_itself(mixed):
    assert encoding_efficiency(mixed[0], {"a": text("a", 5, 1)}, {"a": mixed[0]}) == {"a": 1.}


def test_command(mixed, tmp_path, capsys):
    for k in "abc": (tmp_path/"samples"/k).mkdir(parents=True); (tmp_path/"samples"/k/"x.txt").write_text("\n".join(text(k, 60, 5)))
    path = mixed[0].save(tmp_path/"tok.json")
    table = tokenizer_mixture(str(path), samples=[str(tmp_path/"samples")], resamples=2, figure=tmp_path/"shares.png")
    assert list(table.category)[0] == "a" and table["% of bytes"].sum() == pytest.approx(100)
    assert (tmp_path/"shares.png").stat().st_size > 1000 and "misfit" in capsys.readouterr().err
