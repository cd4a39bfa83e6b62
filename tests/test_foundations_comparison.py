"Comparison: nobody is flattered. Same work and seeds, failed runs stay, gates before speed, timing with a clock we control."
import gc
import math
import sys
import numpy as np
import pandas as pd
import pytest
import torch
from tokenlab import comparison as module
from tokenlab.comparison import Comparison, compare, compare_command, differences, equal, paired_timing, plot, shared, summary


class Clock:
    "Time passes only when `spend` is called."
    def __init__(self): self.now = 0.
    def spend(self, seconds): self.now += seconds
    def __call__(self): return self.now


def steady(value, seconds=1., clock=None, log=None, name=""):
    def run(work, *, seed):
        if log is not None: log.append((name, work, seed))
        if clock: clock.spend(seconds)
        return {"loss": value + seed}
    return run


def test_same_work_and_seeds_for_all_and_turns_are_taken():
    log = []
    df = compare({n: steady(1., log=log, name=n) for n in "ab"}, {"x": "X", "y": "Y"}, seeds=(5, 7), progress=False)
    assert sorted(log) == sorted((n, w, s) for n in "ab" for w in "XY" for s in (5, 7))
    assert [log[i][0] for i in range(0, 8, 2)] == ["a", "b", "a", "b"]  # who goes first changes
    assert list(df.columns) == ["method", "work", "seed", "loss", "seconds", "error"] and len(df) == 8
    assert df["method"].tolist() == ["a"]*4 + ["b"]*4 and df["work"].tolist() == ["x", "x", "y", "y"]*2


def test_the_harness_holds_the_clock():
    clock = Clock()
    df = compare({"a": steady(0, 2., clock), "b": steady(0, 3., clock)}, None, clock=clock, progress=False)
    assert summary(df)["seconds"].tolist() == [2, 3] and summary(df)["seconds ±"].tolist() == [0, 0]


def test_budget_is_passed_to_all_only_if_given():
    seen = []
    def method(work, *, seed, budget=None):
        seen.append(budget)
        return {}
    compare({"a": method, "b": method}, 0, seeds=[0], progress=False)
    compare({"a": method, "b": method}, 0, seeds=[0], budget=64, progress=False)
    assert seen == [None, None, 64, 64]


def test_failed_run_is_a_row_of_its_own_and_keeps_no_number():
    def sometimes(work, *, seed):
        if seed == 2: raise RuntimeError("lost")
        return {"loss": 0.}
    df = compare({"plain": steady(1.), "flaky": sometimes}, None, progress=False)
    row = df[(df.method == "flaky") & (df.seed == 2)].iloc[0]
    assert len(df) == 6 and row.error == "RuntimeError: lost" and math.isnan(row.loss) and math.isnan(row.seconds)
    told = summary(df).set_index("method")
    assert told.loc["flaky", ["runs", "failed"]].tolist() == [2, 1]
    assert told.loc["plain", "loss"] == 1.5  # seeds 0 and 1 only: the work that both completed


def test_a_method_that_never_runs_does_not_empty_the_table():
    def never(work, *, seed): raise ValueError("no")
    told = summary(compare({"a": steady(1.), "never": never}, None, progress=False)).set_index("method")
    assert told.loc["a", "runs"] == 3 and told.loc["never", "failed"] == 3 and math.isnan(told.loc["never", "loss"])
    everything = summary(compare({"never": never}, None, progress=False))
    assert everything[["runs", "failed"]].values.tolist() == [[0, 3]]


def test_interrupt_is_not_swallowed():
    def stop(work, *, seed): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): compare({"a": stop}, None, progress=False)


@pytest.mark.parametrize("answer,why", [([1, 2], "lengths 3 and 2"), ([1, 2, 4], "output differs"), ((1, 2, 3), "output differs")])
def test_gate_fails_a_method_whose_output_differs(answer, why):
    methods = {"truth": lambda work, *, seed: [1, 2, 3], "fast": lambda work, *, seed: answer}
    df = compare(methods, None, measure=lambda work, out: {"tokens": len(out)}, same=equal, seeds=[0], progress=False)
    assert df.error.notna().tolist() == [False, True] and why in df.error[1]
    assert df.tokens[0] == 3 and math.isnan(df.tokens[1]) and math.isnan(df.seconds[1])


def test_gate_without_a_truth_or_with_a_broken_check():
    def dead(work, *, seed): raise OSError("gone")
    df = compare({"truth": dead, "b": lambda work, *, seed: {"output": 1}}, None, same=equal, seeds=[0], progress=False)
    assert df.error[1] == "not checked: truth failed"
    df = compare({"a": lambda work, *, seed: {"output": 1}, "b": lambda work, *, seed: {"output": 1}}, None, same=lambda x, y: 1/0, seeds=[0], progress=False)
    assert df.error[1].startswith("outputs could not be compared: ZeroDivisionError")


def test_baseline_can_be_named():
    methods = {"wrong": lambda work, *, seed: {"output": 2}, "truth": lambda work, *, seed: {"output": 1}, "same": lambda work, *, seed: {"output": 1}}
    df = compare(methods, None, same=equal, baseline="truth", seeds=[0], progress=False)
    assert df.error.notna().tolist() == [True, False, False]


@pytest.mark.parametrize("result,why", [(3., "got float"), ({"seed": 1}, "harness's"), (None, "got NoneType")])
def test_what_is_not_metrics_is_an_error_of_that_run(result, why):
    assert why in compare({"a": lambda work, *, seed: result}, None, seeds=[0], progress=False).error[0]


def test_bad_plans_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="no methods"): compare({}, None)
    for seeds in ((), (1, 1)):
        with pytest.raises(ValueError, match="different numbers"): compare({"a": steady(1.)}, None, seeds=seeds)
    with pytest.raises(ValueError, match="none of the methods: a"): compare({"a": steady(1.)}, None, baseline="b")


def test_spread_is_over_seeds_not_over_pieces_of_work():
    def method(work, *, seed): return {"loss": work + seed, "name": "text", "done": True}
    told = summary(compare({"a": method}, {"low": 0., "high": 100.}, progress=False))
    assert told["loss"][0] == 51 and told["loss ±"][0] == 1 and told["runs"][0] == 6 and "name" not in told


def test_differences_pair_runs_of_one_seed():
    luck = {0: 10., 1: 20., 2: 60.}
    df = compare({"plain": lambda w, *, seed: {"x": luck[seed]}, "ours": lambda w, *, seed: {"x": luck[seed] + 1}}, None, progress=False)
    row = differences(df, "x").iloc[0]
    assert (row["method"], row["pairs"], row["plain"], row["difference"], row["±"], row["higher"]) == ("ours", 3, 30, 1, 0, 3)
    with pytest.raises(ValueError, match="choose from x, seconds"): differences(df, "y")


def test_plot_shows_every_method_and_seed():
    def never(work, *, seed): raise ValueError("no")
    df = compare({"a": steady(1.), "never": never, "b": steady(2.)}, None, progress=False)
    fig = plot(df, ["loss", "seconds"], better={"loss": "lower"})
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "never", "b"] and [t.get_text() for t in ax.texts] == ["2", "no value", "3"]
    assert [sorted(line.get_xdata()) for line in ax.lines if line.get_marker() == "o"] == [[1, 2, 3], [], [2, 3, 4]]
    assert ax.get_xlabel() == "loss (lower is better)" and all(a.yaxis_inverted() for a in fig.axes)
    with pytest.raises(ValueError, match="choose from loss, seconds"): plot(df, ["speed"])


@pytest.mark.parametrize("a,b,same", [
    ([1, 2], [1, 2], True), ([1, 2], (1, 2), False), ([1], [1.], False), ([], [], True), ("ab", "ab", True), (b"a", "a", False), (None, None, True),
    (torch.tensor([1., float("nan")]), torch.tensor([1., float("nan")]), True), (torch.ones(3, 1), torch.ones(1, 4), False),
    (torch.ones(2), torch.ones(2, dtype=torch.float64), False), (torch.empty(0), torch.ones(1), False), (torch.ones(2), np.ones(2, np.float32), False),
    (np.array([1, 2]), np.array([1, 2]), True), (np.array([1, 2]), np.array([1, 3]), False), ({"a": [1]}, {"a": [1], "b": 0}, False),
    ({"a": [torch.ones(1)]}, {"a": [torch.ones(1)]}, True), (float("nan"), float("nan"), True), (True, 1, False)])
def test_equal(a, b, same): assert equal(a, b) is same and equal(b, a) is same


def test_timing_takes_turns_after_a_green_check():
    clock, log = Clock(), []
    def program(name, seconds):
        def run():
            log.append(name)
            clock.spend(seconds*(10 if log.count(name) == 1 else 1))  # the first call compiles
            return [1, 2]
        return run
    t = paired_timing(program("a", 3.), program("b", 2.), names=("a", "b"), runs=4, warmup=2, clock=clock)
    assert log == ["a", "b"]*6
    assert t.first == (30, 20) and t.medians == (3, 2) and t.ratio == (1.5, 1.5, 1.5) and t.seconds == ((3,)*4, (2,)*4)
    assert "b is 1.50 times as fast as a" in str(t) and "of 4 pairs" in str(t) and "threads" in str(t)
    assert t.frame()["median"].tolist() == [3, 2] and t.frame()["first call"].tolist() == [30, 20]


def test_the_accelerator_is_waited_for_inside_the_timed_span(monkeypatch):
    clock = Clock()
    pending = [0.]
    def settle(): clock.spend(pending[0]); pending[0] = 0.
    monkeypatch.setattr(module, "settle", settle)
    def launch(): pending[0] += 2.  # returns at once, the work is done later
    t = paired_timing(launch, launch, runs=2, clock=clock)
    assert t.seconds == ((2, 2), (2, 2))
    pending[0] = 50.  # work that somebody else left behind
    assert paired_timing(launch, launch, runs=1, clock=clock).first == (2, 2)


def test_timing_quartiles_come_from_pairs():
    clock = Clock()
    costs = iter([1, 1] + [2, 1, 4, 1, 6, 1, 8, 1, 10, 1])
    def program(): clock.spend(next(costs))
    assert paired_timing(program, program, runs=5, clock=clock).ratio == (4, 6, 8)


def test_timing_drift_does_not_decide():
    clock, factor = Clock(), [1.]
    def program():
        clock.spend(factor[0])
        factor[0] *= 1.05
    t = paired_timing(program, program, clock=clock)
    assert abs(t.ratio[1] - 1/1.05) < 1e-9  # one step of drift, not seven


def test_nothing_is_timed_if_outputs_differ():
    log = []
    def b(): log.append(1); return [1]
    with pytest.raises(ValueError, match=r"lengths 2 and 1; not timed"): paired_timing(lambda: [1, 2], b)
    assert log == [1]
    unchecked = paired_timing(lambda: [1, 2], b, same=None, runs=1, names=("a", "b"))
    assert not unchecked.checked and "not compared" in str(unchecked)
    for wrong in (dict(runs=0), dict(warmup=0)):
        with pytest.raises(ValueError, match="at least 1"): paired_timing(b, b, **wrong)


def test_timing_names_dtype_and_leaves_the_collector_as_it_was():
    t = paired_timing(torch.neg, torch.neg, torch.ones(2, dtype=torch.bfloat16), runs=1)
    assert t.dtype == "bfloat16" and t.threads == torch.get_num_threads() and t.device and gc.isenabled()
    def fails():
        fails.calls += 1
        if fails.calls > 2: raise RuntimeError("late")
    fails.calls = 0
    with pytest.raises(RuntimeError): paired_timing(fails, fails)
    assert gc.isenabled()


def make():
    c = Comparison("toy", prepare=lambda corpus: corpus, measure=lambda work, out: {"size": len(out)}, same=equal, better={"size": "lower"})
    c.method("plain")(lambda work, *, seed: work)
    c.method("copy")(lambda work, *, seed: str(work))
    c.method("short")(lambda work, *, seed: work[:1])
    return c


def test_comparison_of_a_stage_gates_and_keeps_the_baseline():
    df = make().run("text", only=["short"], seeds=[0], progress=False)
    assert df["method"].tolist() == ["plain", "short"] and "lengths 4 and 1" in df.error[1]
    with pytest.raises(ValueError, match="choose from plain, copy, short"): make().run("text", only=["x"])
    with pytest.raises(ValueError, match="already"): make().method("plain")(len)


def test_command_runs_the_comparison_of_a_stage(monkeypatch):
    stage = type(sys)("tokenlab.toy.comparison")
    stage.comparison = make()
    monkeypatch.setattr(module, "stages", lambda: ["toy"])
    monkeypatch.setitem(sys.modules, "tokenlab.toy", type(sys)("tokenlab.toy"))
    monkeypatch.setitem(sys.modules, "tokenlab.toy.comparison", stage)
    told = compare_command("toy", corpus="abc", seeds=2)
    assert told[["method", "runs", "failed"]].values.tolist() == [["plain", 2, 0], ["copy", 2, 0], ["short", 0, 2]]
    assert len(compare_command("toy", corpus="abc", methods=["copy"], seeds=2, runs=True)) == 4
    with pytest.raises(ValueError, match="stages that have one: toy"): compare_command("tokenisers")
    with pytest.raises(ValueError, match="at least 1"): compare_command("toy", seeds=0)
    stage.comparison.prepare = None
    with pytest.raises(ValueError, match="no prepare"): compare_command("toy")
