"Claims: the rule of the verdict on known truths, results that are never half written, and what a stored result must say."
import json
import math
import os
import signal
import subprocess
import sys
import time
import numpy as np
import pytest
from scipy.stats import ttest_rel
from tokenlab import claims as module
from tokenlab import registry
from tokenlab.claims import claim, claim_command, claim_markdown, claims, effects, environment, interval, read_result, run_claim, verdict

SAID = dict(text="The method is higher by one.", source="Table 2", metric="points", baseline="plain", method="ours", setting="a fake")
CALLS = []


def fake(slug, shift, spread, **options):
    "Register a claim whose effect is `shift` with a spread over seeds of `spread`; the luck of a seed is shared and large."
    def run(seed:int)->dict[str, float]:
        CALLS.append(seed)
        rng = np.random.default_rng([seed, len(slug)])
        luck = rng.normal(20, 5)
        return {"baseline": luck, "method": luck + shift + spread*(-1., .2, 1.1, -.3)[seed % 4], "extra": float(seed)}
    run.__module__, run.__name__ = __name__, "run_" + slug.replace("-", "_")
    return claim(slug, **SAID | options)(run)


@pytest.fixture(autouse=True)
def fakes(monkeypatch, tmp_path):
    "Four claims with a known truth, in a registry and a folder of their own."
    monkeypatch.setattr(registry, "LIVE", {})
    monkeypatch.setenv("TOKENLAB_RESULTS", str(tmp_path/"results"))
    CALLS.clear()
    fake("true-effect", 2., .05, margin=1.)
    fake("no-effect", 0., .05, margin=1.)
    fake("wrong-way", -2., .05, margin=1.)
    fake("noisy", 1.2, 8., margin=1.)
    fake("half-effect", .5, .05, margin=1.)
    return tmp_path/"results"


# The rule

@pytest.mark.parametrize("slug, word, why", [
    ("true-effect", "reproduced", "at least the claimed"), ("no-effect", "not reproduced", "not told from zero"),
    ("wrong-way", "not reproduced", "opposite"), ("noisy", "not reproduced", "more seeds"), ("half-effect", "partly", "smaller effect")])
def test_the_verdict_of_each_known_truth(slug, word, why):
    result = run_claim(slug)
    assert result["verdict"] == word and why in result["reason"], result["reason"]


def test_pairing_removes_the_luck_of_the_seed():
    "The luck has a spread of 5, the effect one of 0.05: unpaired, nothing could be seen over 3 seeds."
    result = run_claim("true-effect")
    assert result["spread"]["baseline"] > 1 and result["high"] - result["low"] < .5


def test_the_interval_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    for n in (3, 4, 10):
        for _ in range(20):
            b, m = rng.normal(size=n), rng.normal(.5, 1, size=n)
            peer = ttest_rel(m, b).confidence_interval(.9)
            low, mean, high = interval(effects(b, m))
            assert np.allclose([low, high], [peer.low, peer.high]) and math.isclose(mean, (m - b).mean())


def words(true, n, trials=3000, **claim):
    "The share of each verdict when effects are normal with spread 1 around `true`."
    rng = np.random.default_rng(1)
    found = [verdict([10.]*n, 10 + rng.normal(true, 1, n), **claim).verdict for _ in range(trials)]
    return {w: found.count(w)/trials for w in ("reproduced", "partly", "not reproduced")}


@pytest.mark.parametrize("n", [3, 6])
def test_error_rates_are_those_promised(n):
    "5 % exactly at the border (binomial spread 0.4 %), for any word that says more than the truth."
    at_zero, at_needed = words(0., n, margin=2.), words(2., n, margin=2.)
    assert .035 < 1 - at_zero["not reproduced"] < .065
    assert .035 < at_needed["reproduced"] < .065
    assert words(1., n, margin=2.)["reproduced"] < .02
    assert words(-1., n, margin=2.)["not reproduced"] > .99
    assert .035 < words(-2., n, margin=-2.)["reproduced"] < .065      # just as bad as is not allowed any more


def test_a_true_effect_is_found_and_more_seeds_find_it_sooner():
    assert words(8., 3, 500, margin=2.)["reproduced"] > .95
    assert words(4., 10, 500, margin=2.)["reproduced"] > .95 > words(4., 3, 500, margin=2.)["reproduced"]


def test_a_mean_beyond_the_threshold_is_not_enough():
    assert verdict([0, 0, 0], [1., 2., 3.], margin=1.9).verdict == "partly"
    assert verdict([0, 0, 0], [1.9, 2., 2.1], margin=1.8).verdict == "reproduced"
    assert verdict([0, 0, 0], [-1., 2., 5.], margin=1.).verdict == "not reproduced"


def test_a_mean_in_the_right_direction_is_not_partly():
    v = verdict([0, 0, 0], [-.5, .5, .6], margin=1.)
    assert v.effect > 0 and v.verdict == "not reproduced" and "more seeds" in v.reason


def test_lower_is_better_mirrors_higher():
    b, m = [4., 5., 6.], [2., 2.6, 2.9]
    down = verdict(b, m, better="lower", margin=1.5)
    up = verdict([-x for x in b], [-x for x in m], margin=1.5)
    assert (down.verdict, down.low, down.high) == (up.verdict, up.low, up.high) and down.verdict == "reproduced"
    assert verdict(b, m, margin=1.5).verdict == "not reproduced"


def test_factors_are_ratios_and_scale_free():
    b, m = [2., 30., 400.], [4.1, 62., 810.]     # about doubled at any size; the differences are hopeless
    v = verdict(b, m, factor=2.)
    assert v.verdict == "reproduced" and v.unit == "ratio" and 2.01 < v.low < v.effect < v.high < 2.09
    assert verdict(b, m, margin=1.).verdict == "not reproduced"
    assert verdict(m, b, factor=2., better="lower").verdict == "reproduced"
    assert verdict(b, m, factor=3.).verdict == "partly"
    assert verdict(m, b, factor=1.).verdict == "not reproduced"


def test_equal_values_improve_nothing_and_exact_thresholds_are_met():
    for claimed in (dict(margin=0.), dict(factor=1.), dict(margin=1.)):
        v = verdict([3., 4., 5.], [3., 4., 5.], **claimed)
        assert v.verdict == "not reproduced" and "no effect" in v.reason
    assert verdict([.1, .2, .3], [.1 + 1e-17, .2 + 1e-15, .3], margin=0.).verdict == "not reproduced"
    assert verdict([1., 1., 1.], [1.1, 1.1, 1.1], margin=.1).verdict == "reproduced" 
    assert verdict([.1]*3, [.3]*3, margin=.2).verdict == "reproduced"                  # .3 - .1 < .2 in floats
    assert verdict([3.]*3, [9.]*3, factor=3.).verdict == "reproduced"


def test_no_worse_is_a_negative_margin():
    b = [10., 11., 12.]
    assert verdict(b, [9.95, 11., 11.96], margin=-.5).verdict == "reproduced"
    assert verdict(b, [8., 9.1, 10.], margin=-.5).verdict == "not reproduced"
    v = verdict(b, [9.2, 11.5, 12.], margin=-.5)
    assert v.verdict == "not reproduced" and "cannot be excluded" in v.reason
    assert verdict(b, b, margin=-.5).verdict == verdict(b, b, factor=.99).verdict == "reproduced"


@pytest.mark.parametrize("b, m, options, message", [
    ([1, 2, 3], [1, 2, 3], {}, "either factor= or margin="), ([1, 2, 3], [1, 2, 3], dict(factor=2, margin=1), "either"),
    ([1, 2], [1, 2], dict(margin=0), "at least 3"), ([], [], dict(margin=0), "at least 3"), ([1, 2, 3], [1, 2], dict(margin=0), "paired by seed"),
    ([1, 2, math.nan], [1, 2, 3], dict(margin=0), "finite"), ([0, 2, 3], [1, 2, 3], dict(factor=2), "use margin="),
    ([1, 2, 3], [1, 2, 3], dict(factor=-1), "positive"), ([1, 2, 3], [1, 2, 3], dict(margin=math.inf), "must be a number"),
    ([1, 2, 3], [1, 2, 3], dict(margin=0, better="more"), "'higher' or 'lower'")])
def test_bad_input_is_refused(b, m, options, message):
    with pytest.raises(ValueError, match=message): verdict(b, m, **options)


# The decorator and the index

def test_the_decorator_checks_at_once_and_returns_the_function():
    run = fake("again", 1., .1, factor=1.01)
    assert set(run(0)) == {"baseline", "method", "extra"}
    for bad in (dict(), dict(factor=1., margin=1.), dict(margin=1., better="up")):
        with pytest.raises(ValueError): claim("x", **SAID, **bad)
    with pytest.raises(ValueError, match="no slug"): claim("../x", **SAID, margin=1.)


def test_the_static_index_sees_the_claim_and_the_result_is_not_stale(fakes, tmp_path, monkeypatch):
    "A module of the package with a claim: found in its text, measured, and listed without being imported."
    source = ('from tokenlab.claims import claim\n@claim("kangaroo", text="T" " U", source="Table 1", metric="points", baseline="b", method="m",\n'
              '       setting="s", better="lower", margin=0.5)\ndef run(seed:int)->dict[str, float]:\n    return {"baseline": 2. + seed, "method": 1. + seed}\n')
    package = tmp_path/"tokenlab"
    (package/"data").mkdir(parents=True)
    (package/"kangaroo.py").write_text(source)
    monkeypatch.setattr(registry, "PACKAGE", package), monkeypatch.setattr(module, "PACKAGE", package)
    monkeypatch.setattr(registry, "INDEX", package/"data"/"index.json")
    registry.write_index()
    registry.LIVE.clear()
    monkeypatch.setattr(sys.modules["tokenlab"], "__path__", [*sys.modules["tokenlab"].__path__, str(package)])
    try:
        assert claims().iloc[0][["slug", "claim", "verdict"]].tolist() == ["kangaroo", "T U", "not run"]
        assert "tokenlab.kangaroo" not in sys.modules
        assert run_claim("kangaroo")["verdict"] == "reproduced"
        registry.LIVE.clear()
        assert claims().iloc[0].stale == ""
        (package/"kangaroo.py").write_text("# a comment\n\n" + source)
        assert claims().iloc[0].stale == ""
        (package/"kangaroo.py").write_text(source.replace("1. + seed", "1.1 + seed"))
        assert claims().iloc[0].stale == "code changed"
        (package/"kangaroo.py").write_text(source.replace("0.5", "0.4"))
        registry.write_index()
        assert claims().iloc[0].stale == "claim changed"
        registry.INDEX.write_text("[]")
        assert claims().iloc[0].stale == "no claim in the code"
    finally: sys.modules.pop("tokenlab.kangaroo", None)


def test_claims_of_the_package_are_literal_and_one_a_paper():
    found = [e for e in registry.registered("claim") if e.module.startswith("tokenlab.")]
    assert len({e.name for e in found}) == len(found)
    for e in found:
        assert set(SAID) <= e.options.keys(), e
        assert all(v is not None for v in e.options.values()), f"{e.module}:{e.object}: options of @claim must be literals"


# Running and storing

def test_a_result_says_everything(fakes):
    run_claim("true-effect", seeds=4)
    result = json.loads((fakes/"true-effect.json").read_text())
    assert result["kind"] == "claim" and result["slug"] == "true-effect"
    assert {k: result[k] for k in SAID} == SAID and (result["factor"], result["margin"], result["better"]) == (None, 1., "higher")
    assert result["seeds"] == [0, 1, 2, 3] and [len(v) for v in result["values"].values()] == [4]*3
    b = np.array(result["values"]["baseline"])
    assert math.isclose(result["mean"]["baseline"], b.mean()) and math.isclose(result["spread"]["baseline"], b.std(ddof=1))
    assert result["values"]["extra"] == [0., 1., 2., 3.]
    assert set(result["device"]) == {"cpu", "cores", "threads", "gpu"} and result["device"]["cpu"]
    assert set(result["versions"]) == {"python", "torch", "numpy", "tokenlab"} and all(result["versions"].values())
    assert {"commit", "dirty", "seconds", "seconds_per_seed", "reason", "low", "high", "effect", "needed"} <= result.keys()
    again = verdict(result["values"]["baseline"], result["values"]["method"], margin=1.)
    assert (again.verdict, again.reason) == (result["verdict"], result["reason"])
    assert [p.name for p in fakes.iterdir()] == ["true-effect.json"]


def test_the_commit_is_that_of_the_checkout_and_results_do_not_make_it_dirty(tmp_path, monkeypatch):
    def git(*args): return subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *args],
                                          check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path/"tokenlab").mkdir()
    (tmp_path/"tokenlab"/"x.py").write_text("1")
    monkeypatch.setattr(module, "PACKAGE", tmp_path/"tokenlab")
    assert module.commit() == {"commit": None, "dirty": None}
    git("init"), git("add", "."), git("commit", "-m", "x")
    assert module.commit() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path/"results").mkdir()
    (tmp_path/"results"/"a.json").write_text("{}")
    assert module.commit()["dirty"] is False
    (tmp_path/"tokenlab"/"x.py").write_text("2")
    assert module.commit()["dirty"] is True
    (tmp_path/"site"/"tokenlab").mkdir(parents=True)
    monkeypatch.setattr(module, "PACKAGE", tmp_path/"site"/"tokenlab")
    assert module.commit() == {"commit": None, "dirty": None}      # inside another project's checkout


def test_a_stopped_run_goes_on_where_it_was(fakes):
    ready = []
    def run(seed):
        CALLS.append(seed)
        if seed == 2 and not ready: raise RuntimeError("power cut")
        return {"baseline": 1. + seed, "method": 3. + seed}
    run.__module__, run.__name__ = __name__, "run_stops"
    claim("stops", **SAID, margin=1.)(run)
    with pytest.raises(RuntimeError) as caught: run_claim("stops")
    assert "in seed 2 of claim 'stops'; 2 seeds are kept" in caught.value.__notes__[0]
    assert [p.name for p in fakes.iterdir()] == ["stops.seeds.tmp"] and not (fakes/"stops.json").exists()
    ready.append(1)
    assert run_claim("stops")["values"]["baseline"] == [1., 2., 3.]
    assert CALLS == [0, 1, 2, 2] and [p.name for p in fakes.iterdir()] == ["stops.json"]


def test_seeds_of_another_claim_or_code_are_not_mixed_in(fakes, monkeypatch, capsys):
    def stop(seed):
        CALLS.append(seed)
        if seed == 2: raise KeyboardInterrupt
        return {"baseline": 1., "method": 3. + seed}
    stop.__module__, stop.__name__ = __name__, "run_stop"
    claim("stop", **SAID, margin=1.)(stop)
    with pytest.raises(KeyboardInterrupt): run_claim("stop")
    claim("stop", **SAID, margin=2.)(stop)
    with pytest.raises(KeyboardInterrupt): run_claim("stop")
    monkeypatch.setattr(module, "digest", lambda paths: "other")
    with pytest.raises(KeyboardInterrupt): run_claim("stop")
    (fakes/"stop.seeds.tmp").write_text('{"key"')
    with pytest.raises(KeyboardInterrupt): run_claim("stop")
    assert CALLS == [0, 1, 2]*4 and capsys.readouterr().err.count("starting over") == 2


def test_code_and_commit_are_those_the_run_began_with(fakes, monkeypatch):
    "The tree is edited and committed while seed 1 runs: the result must speak for what was loaded."
    tree = {"commit": "old", "code": "1"}
    def run(seed):
        if seed == 1: tree.update(commit="new", code="2")
        return {"baseline": 1., "method": 3.}
    run.__module__, run.__name__ = __name__, "run_edited"
    claim("edited", **SAID, margin=1.)(run)
    monkeypatch.setattr(module, "commit", lambda: {"commit": tree["commit"], "dirty": False})
    monkeypatch.setattr(module, "claim_digest", lambda entry: tree["code"])
    result = run_claim("edited")
    assert (result["commit"], result["code"]) == ("old", "1") and claims().set_index("slug").stale["edited"] == "code changed"


def test_an_old_result_stays_whole_while_a_new_one_fails(fakes, monkeypatch):
    run_claim("true-effect")
    before = (fakes/"true-effect.json").read_bytes()
    real = module.Path.replace
    def fail(self, target):
        if str(target).endswith(".json"): raise OSError("disk full")
        return real(self, target)
    monkeypatch.setattr(module.Path, "replace", fail)
    with pytest.raises(OSError): run_claim("true-effect")
    assert (fakes/"true-effect.json").read_bytes() == before and read_result("true-effect")["verdict"] == "reproduced"


def test_killed_in_the_middle_nothing_half_written_is_left(tmp_path):
    "A real process, killed while it measures seed after seed; the second run counts on the first one's seeds."
    (tmp_path/"tokenlab"/"data").mkdir(parents=True)                # a copy, so that nobody edits the package in between
    for name in ("__init__.py", "registry.py", "catalogue.py", "claims.py", "data/papers.json"):
        (tmp_path/"tokenlab"/name).write_bytes((registry.PACKAGE/name).read_bytes())
    script = tmp_path/"job.py"
    script.write_text('import sys, time\nfrom tokenlab.claims import claim, run_claim\n'
                      '@claim("job", text="t", source="s", metric="m", baseline="b", method="m", setting="s", margin=0.)\n'
                      'def job(seed):\n    print("seed", seed, flush=True)\n    time.sleep(.02 if len(sys.argv) > 1 else .4)\n    return {"baseline": 1., "method": 2.}\n'
                      'print(run_claim("job", seeds=4, out="out")["verdict"])\n')
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() != "seed 2\n": pass
    time.sleep(.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [p.name for p in (tmp_path/"out").iterdir()] == ["job.seeds.tmp"]
    done = subprocess.run([sys.executable, str(script), "fast"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert done == "seed 2\nseed 3\nreproduced\n" and [p.name for p in (tmp_path/"out").iterdir()] == ["job.json"]


@pytest.mark.parametrize("values, message", [
    ({"baseline": 1.}, "must return a dict"), (3., "must return a dict"), ({"baseline": 1., "method": math.nan}, "method is not a finite"),
    ({"baseline": 1., "method": 2., "loss": math.inf}, "loss is not a finite")])
def test_what_is_no_measurement_is_refused(fakes, values, message):
    def run(seed): return values
    run.__module__, run.__name__ = __name__, "run_bad"
    claim("bad", **SAID, margin=1.)(run)
    with pytest.raises(ValueError, match=f"claim 'bad', seed 0.*{message}"): run_claim("bad")
    assert not list(fakes.iterdir())


def test_seeds_must_agree_on_the_names(fakes):
    def run(seed): return {"baseline": 1., "method": 2., f"x{seed}": 1.}
    run.__module__, run.__name__ = __name__, "run_names"
    claim("names", **SAID, margin=1.)(run)
    with pytest.raises(ValueError, match="different names"): run_claim("names")
    assert not (fakes/"names.json").exists()


def test_numpy_and_torch_scalars_are_stored_as_numbers(fakes):
    import torch
    def run(seed): return {"baseline": np.float32(1.), "method": torch.tensor(2.), "n": np.int64(3)}
    run.__module__, run.__name__ = __name__, "run_scalars"
    claim("scalars", **SAID, margin=.5)(run)
    assert run_claim("scalars")["values"] == {"baseline": [1.]*3, "method": [2.]*3, "n": [3.]*3}


# Reading and listing

def test_reading_names_the_remedy(fakes):
    with pytest.raises(FileNotFoundError, match="run `tokenlab claim true-effect`"): read_result("true-effect")
    run_claim("true-effect")
    assert read_result("true-effect")["path"].endswith("true-effect.json")
    (fakes/"true-effect.json").write_text('{"kind": "claim", ')
    with pytest.raises(ValueError, match="is broken: delete it"): read_result("true-effect")
    assert claims().set_index("slug").verdict["true-effect"] == "unreadable"


def test_the_table_lists_all_claims_and_no_benchmark(fakes):
    run_claim("half-effect")
    (fakes/"benchmarks").mkdir()
    (fakes/"benchmarks"/"generate.json").write_text(json.dumps({"kind": "claim", "slug": "generate", "verdict": "reproduced"}))
    (fakes/"speed.json").write_text(json.dumps({"kind": "benchmark", "slug": "speed"}))
    table = claims().set_index("slug")
    assert {"true-effect", "no-effect", "wrong-way", "noisy", "half-effect"} <= set(table.index) and not {"generate", "speed"} & set(table.index)
    assert table.verdict["half-effect"] == "partly" and table.verdict["noisy"] == "not run"
    assert table.effect["half-effect"].startswith("0.5") or table.effect["half-effect"].startswith("0.4")
    assert "(plain)" in table.baseline["half-effect"] and table.stale["half-effect"] == ""


def test_no_claim_at_all_gives_an_empty_table(monkeypatch, fakes, tmp_path):
    registry.LIVE.clear()
    monkeypatch.setattr(registry, "INDEX", tmp_path/"none.json")
    assert len(claims()) == 0 and "slug" in claims().columns
    with pytest.raises(ValueError, match="Slugs with a claim: none yet"): run_claim("kangaroo")


def test_unknown_slugs_list_the_nearest_and_those_with_a_claim():
    with pytest.raises(ValueError, match="no paper 'true-efect'; nearest: true-effect.*Slugs with a claim: aded, .*half-effect"): run_claim("true-efect")
    with pytest.raises(ValueError, match="paper 'few-shot-learners' has no claim yet. Slugs with a claim: .*noisy"): run_claim("few-shot-learners")
    with pytest.raises(ValueError, match="nearest: kangaroo"): run_claim("kangoroo")


def test_two_claims_for_one_paper_are_an_error_but_a_notebook_goes_first():
    def other(seed): return {"baseline": 1., "method": 1.}
    claim("noisy", **SAID, margin=1.)(other)
    with pytest.raises(ValueError, match="2 claims for 'noisy'"): run_claim("noisy")
    def draft(seed): return {"baseline": 1., "method": 5.}
    draft.__module__ = "__main__"
    claim("noisy", **SAID, margin=1.)(draft)
    assert run_claim("noisy")["object"] == "__main__:draft"


def test_the_command_prints_the_verdict_and_where_it_is(fakes, tmp_path):
    text = claim_command("wrong-way", seeds=3, out=tmp_path/"deep"/"er")
    assert "verdict   not reproduced: the opposite of the claim" in text and str(tmp_path/"deep"/"er"/"wrong-way.json") in text
    assert (tmp_path/"deep"/"er"/"wrong-way.json").exists() and not fakes.exists()
    with pytest.raises(ValueError, match="at least 3 seeds, not 1"): claim_command("wrong-way", seeds=1)
    with pytest.raises(ValueError, match="is a file"): claim_command("wrong-way", out=tmp_path/"deep"/"er"/"wrong-way.json")


def test_markdown_for_notebooks(fakes):
    fake("bars", 2., .01, margin=1., metric="bits|byte")
    assert "not measured yet" in claim_markdown("bars")
    run_claim("bars")
    text = claim_markdown("bars")
    assert "**reproduced**" in text and "bits\\|byte" in text and all(line.replace("\\|", "").count("|") == 3 for line in text.splitlines())


def test_a_gpu_is_named_only_if_it_was_used():
    import torch
    found = environment()["device"]["gpu"]
    assert (found is None) == (not torch.cuda.is_available() or torch.cuda.max_memory_allocated() == 0)


def test_import_is_light():
    code = "import sys, tokenlab.claims; print([m for m in ('pandas', 'torch', 'numpy', 'scipy', 'tqdm', 'matplotlib', 'transformers', 'numba') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
