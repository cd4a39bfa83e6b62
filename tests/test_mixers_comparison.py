"The comparison of mixers: counts that can be checked by hand, tasks that can be solved, rows that merge."
import json, math, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
import pytest, torch
import torch.nn.functional as F
from tokenlab.mixers import comparison as c
from tokenlab.mixers.core import MIXERS, mixers_of


def test_flops_of_products_attention_and_fourier():
    a, b, q = torch.randn(8, 4), torch.randn(4, 16), torch.randn(1, 2, 64, 8)
    with c.Flops() as count: a @ b
    assert count.total == 2*8*4*16
    for causal, share in ((False, 1), (True, 2)):
        with c.Flops() as count: F.scaled_dot_product_attention(q, q, q, is_causal=causal)
        assert count.total == 2*2*2*64*64*8//share
    x = torch.randn(3, 256)
    with c.Flops() as count: torch.fft.rfft(x)
    assert count.total == 5*3*256*8
    with c.Flops() as count: a.T.reshape(-1).clone()
    assert count.total == 0


def test_flops_against_pytorchs_own_counter():
    from torch.utils.flop_counter import FlopCounterMode
    m, x = MIXERS["linear"](16, heads=2, seq_len=64), torch.randn(1, 64, 16)
    with torch.no_grad():
        with FlopCounterMode(display=False) as theirs: m(x)
        with c.Flops() as ours: m(x)
    assert theirs.get_total_flops() < ours.total < 1.3*theirs.get_total_flops()      # and the element-wise work of the feature map


def test_peak_memory():
    x = torch.randn(300, 300)
    size = 300*300*4
    assert c.peak_bytes(lambda: x @ x) == size
    assert c.peak_bytes(lambda: (x + 1) + (x + 2)) == 3*size
    assert 3*size <= c.peak_bytes(lambda: [x + 1 for _ in range(3)]) < 3*size + 64
    assert c.peak_bytes(lambda: x.view(-1)) == 0


def test_exponents():
    assert c.exponent([1, 2, 4], [5, 20, 80]) == pytest.approx(2)
    assert math.isnan(c.exponent([1], [2])) and c.exponent([1, 2, 4], [1, math.nan, 4]) == pytest.approx(1)


def test_subquadratic_mixers_are():
    frame = c.cost(["window", "pooling", "convolution", "linear", "s4d", "selective", "attention", "random"], (256, 512, 1024))
    assert frame.error.isna().all()
    t = c.exponents(frame).set_index("method")
    for name in ("window", "pooling", "convolution", "linear", "s4d", "selective"): assert .8 < t.loc[name, "FLOPs"] < 1.3 and t.loc[name, "memory"] < 1.3, name
    assert t.loc["random", "memory"] > 1.7 and t.loc["attention", "FLOPs"] > 1.4
    state = frame.pivot(index="method", columns="length", values="state MB")
    assert (state.loc["linear"].nunique(), state.loc["window"].nunique()) == (1, 1) and state.loc["attention", 1024] == 4*state.loc["attention", 256]


def test_limits_leave_lengths_out():
    frame = c.cost(["random", "identity"], (128, 256, 512, 1024), most_mb=.9)
    assert frame[frame.method == "random"].error.notna().tolist() == [False, False, True, True] and frame[frame.method == "identity"].error.isna().all()


def test_every_mixer_can_do_every_task_of_its_form():
    for name in mixers_of("causal"):
        assert c.small_lm(name, vocab_size=20, seq_len=16, seed=0)(torch.ones(1, 8, dtype=torch.long)).logits.shape == (1, 8, 20)
    for name in MIXERS: assert c.Forecaster(name)(torch.zeros(2, 96)).shape == (2, 24)


def test_attention_recalls_and_identity_cannot():
    "Two pairs, fifty steps. Without a mixer the token before gives away the last value at the first question, half of the times it is asked: 7/16 in all."
    work = lambda B, seed: c.associative(B, 2, seed, symbols=4)
    answers = {n: c.on_recall(n, work, budget=50)["right answers"] for n in ("attention", "identity")}
    assert answers["attention"] > .9 and answers["identity"] < .47, answers


def test_rows_merge_and_processes_do_not_lose_each_other(tmp_path):
    path = tmp_path/"deep"/"mixers.json"
    rows = lambda i: [{"task": "text", "method": f"m{i}", "seed": s, "x": 1.} for s in range(3)]
    with ThreadPoolExecutor(8) as pool: list(pool.map(lambda i: c.merge(path, rows(i)), range(12)))
    stored = json.loads(path.read_text())["rows"]
    assert len(stored) == 36 and not list(path.parent.glob("*.lock"))
    c.merge(path, [{"task": "text", "method": "m3", "seed": 1, "x": float("nan")}])
    assert sum(r["x"] is None for r in json.loads(path.read_text())["rows"]) == 1
    path.write_text("{")
    with pytest.raises(ValueError, match="no stored comparison"): c.merge(path, rows(1))
    assert path.read_text() == "{"


def test_the_command(tmp_path):
    out = tmp_path/"r.json"
    for seeds in ("0", "1"): c.compare_mixers(task="series", mixers="identity,fnet", seeds=seeds, steps=2, out=out)
    frame = c.stored_frame("series", out)
    assert sorted(zip(frame.method, frame.seed)) == [("fnet", 0), ("fnet", 1), ("identity", 0), ("identity", 1)] and (frame.budget == 2).all()
    assert list(c.compare_mixers(task="cost", mixers="identity", lengths="64,128").columns)[:3] == ["method", "theory", "time"]
    for kw, said in ((dict(task="sound"), "choose from text"), (dict(mixers="atention"), "no mixer 'atention'"), (dict(task="text", mixers="fnet"), "needs the causal form"), (dict(seeds="0,0"), "different whole numbers"), (dict(task="cost", lengths="x"), "lengths='x'"),
                     (dict(steps=0), "steps=0"), (dict(task="recall", corpus="udhr"), "takes none"), (dict(task="cost", mixers="fnet"), "no causal form"), (dict(task="cost", device="cud"), "choose cpu or cuda")):
        with pytest.raises(ValueError, match=said): c.compare_mixers(**kw)


def test_compare_finds_it_and_the_longer_command_wins():
    from tokenlab.comparison import load_comparison
    frame = load_comparison("mixers").run({"tiny": {"train": ["abc "*600], "valid": ["abc "*20]}}, only=["identity"], seeds=(0,), budget=2, progress=False)
    assert frame.error.isna().all() and frame.method.tolist() == ["attention", "identity"]
    run = lambda *args: subprocess.run([sys.executable, "-c", "from tokenlab.cli import main; main()", *args], capture_output=True, text=True)
    told = run("compare", "mixers", "--help").stdout
    assert "--task" in told and "Usage: tokenlab compare mixers" in told and "{stage}" in run("compare", "--help").stdout
