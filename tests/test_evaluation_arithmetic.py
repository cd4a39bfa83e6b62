"Problems, prompts, parsing, reports and training batches for sums."
import math
from collections import Counter
import numpy as np, pandas as pd, pytest, torch
from tokenlab.evaluation.arithmetic import (answer_problems, as_number, balanced_problems, build_messages, build_prompt, carries, encode_problems, error_report, errors_by_place, forced_right,
                                            is_match, layouts, number_in, parse_answer, question, random_problems, released_responses, run_addition, sample_addition, token_starts,
                                            train_adder, vocabulary, wrong_places)
from tokenlab.tokenizers.numbers import DigitScheme

def test_sampler_is_uniform_given_the_shorter_addend():
    rng = np.random.default_rng(0)
    seen = Counter(sample_addition((1, 2, 3), rng) for _ in range(40_000))
    possible = {(a, b) for a in range(1, 10) for b in range(10, 100) if a + b >= 100}
    assert set(seen) == possible
    for short in range(1, 10):
        counts = [n for (a, _), n in seen.items() if a == short]
        expected = 40_000/9/len(counts)
        assert len(counts) == short and all(abs(n - expected) < 6*math.sqrt(expected) for n in counts)

def test_sampler_refuses_and_covers():
    rng = np.random.default_rng(1)
    for bad in [(0, 3, 3), (3, 3, 2), (2, 4, 6), (19, 1, 19)]:
        with pytest.raises(ValueError, match="lengths"): sample_addition(bad, rng)
    for l1 in range(1, 10):
        for l2 in range(1, 10):
            for more in (0, 1):
                a, b = sample_addition((l1, l2, max(l1, l2) + more), rng)
                assert (len(str(a)), len(str(b)), len(str(a + b))) == (l1, l2, max(l1, l2) + more) and is_match(a, b) == (more == 0)

def test_formats_are_those_of_the_released_problems():
    "number_in writes what the authors' runs show in their problems and answers."
    assert number_in(2307350, "comma_r2l") == "2,307,350" and number_in(2307350, "foo_l2r") == "230foo735foo0"
    assert question(2307350, 6058422, "dec_r2l") == "2.307.350+6.058.422="
    table = released_responses()
    for form, part in table[table.set.isin(["formats", "separators"])].groupby("form"):
        if form == "foo_r2l" or form.endswith("l2r"): continue      # theirs has "oof"; answers to l2r problems are often grouped otherwise
        right = part[[as_number(x) == a + b for a, b, x in zip(part.a, part.b, part.answer)]]
        same = [number_in(a + b, form) == r.strip() for a, b, r in zip(right.a, right.b, right.response)]
        assert np.mean(same) > .9, form

def test_prompt_and_messages():
    got = build_messages((123, 45), [(111, 22)], "comma_r2l", spaces=1)
    assert [m["content"] for m in got[1:]] == ["111 + 22 = ", "133", "123 + 45 = "]
    assert build_prompt((1234, 5), [(1111, 2)], "nosep", repeat="space_r2l") == "1111+2=1 111+2=1 113\n1234+5="
    assert build_prompt((1, 2)) == "1+2="
    assert build_messages((1234, 5), [(1111, 2)], answer="comma_r2l")[2]["content"] == "1,113"

@pytest.mark.parametrize("text, number", [("8365772", 8365772), ("2oof307oof350", 2307350), ("1 2 3", 123), ("1+2=3", 3), ("1=2=3", 3), ("a 12, b 13", None), ("12,", 12), ("", None), ("=", None), ("-5", 5)], ids=str)
def test_parse(text, number): assert parse_answer(text) == number

def test_report_gives_the_published_numbers():
    table = released_responses()
    acc = lambda *key: 100*error_report(table[(table.set == key[0]) & (table.model == key[1]) & (table.form == key[2]) & (table.spaces == 0)])["accuracy"]
    for form, value in {"nosep": 74.4, "comma_r2l": 97.8, "comma_l2r": 27.8, "space_r2l": 96.7}.items(): assert acc("formats", "gpt-3.5-turbo-0301", form) == pytest.approx(value, abs=.06)
    for form, value in {"nosep": 84.4, "comma_r2l": 98.9, "comma_l2r": 33.3}.items(): assert acc("formats", "gpt-4-0314", form) == pytest.approx(value, abs=.06)
    repeated = {s: 100*error_report(p)["accuracy"] for s, p in table[table.form == "nosep"].groupby("set")}
    assert repeated["repeat comma_r2l"] == pytest.approx(96.7, abs=.06) and repeated["repeat nosep"] == pytest.approx(71.1, abs=.06)
    part = table[(table.set == "lengths") & (table.form == "nosep")]
    places = errors_by_place(part, match=False)
    four = places[places.place == 4]
    assert four.n.sum() == 365 and four.wrong.sum() >= 361
    report = error_report(part[[not is_match(a, b) for a, b in zip(part.a, part.b)]])
    assert report["errors at token starts"] > .97 > .5 > report["starts by chance"]

def test_report_on_ugly_rows():
    rows = [dict(a=1, b=1, answer=None), dict(a=1, b=1, answer=float("nan")), dict(a=1, b=1, answer=pd.NA), dict(a=1, b=1, answer=2.0), dict(a=1, b=1, answer=33)]
    r = error_report(rows)
    assert (r["accuracy"], r["no answer"], r["wrong length"], r["n right length"]) == (.2, .6, 1., 0) and math.isnan(r["mismatch"])
    assert error_report(pd.DataFrame([dict(a=1, b=1, answer=3)]))["errors at token starts"] == 1.
    with pytest.raises(ValueError, match="no answers"): error_report([])
    with pytest.raises(ValueError, match="different lengths"): wrong_places(12, 345)
    assert len(errors_by_place([dict(a=1, b=1, answer=None)])) == 0

def test_carries_and_starts():
    rng = np.random.default_rng(2)
    for a, b in rng.integers(0, 10**8, (200, 2)).tolist():
        assert carries(a, b) == sum((a % 10**i + b % 10**i) >= 10**i for i in range(1, 10))
    assert token_starts(1234567, DigitScheme("r2l")) == [0, 1, 4] and token_starts(7, DigitScheme("l2r", 2)) == [0]

@pytest.mark.parametrize("k", [1, 2, 3])
def test_bulk_encoding_is_the_layouts_cut(k):
    a, b = random_problems(60, 1, 6, np.random.default_rng(k))
    words = vocabulary(k)
    for name, layout in layouts(k).items():
        found = encode_problems(a, b, layout, k)
        for i in range(60):
            q, r = layout.cut(int(a[i]), int(b[i]))
            assert [words[t] for t in found["ids"][i].tolist() if t >= 0] == q + r, name
            at = [j for j, t in enumerate(found["targets"][i].tolist()) if t >= 0]
            assert at == list(range(len(q) - 1, len(q) + len(r) - 1)) and [words[found["targets"][i, j]] for j in at] == r

def test_layouts_differ_only_where_they_say():
    l = layouts(2)
    assert l["right to left in questions only"].cut(123, 4)[1] == l["left to right"].cut(123, 4)[1] != l["right to left"].cut(123, 4)[1]
    assert l["left to right"].cut(1234, 12)[0] == l["right to left"].cut(1234, 12)[0]      # even lengths are cut alike

def test_balanced_problems():
    tests = balanced_problems(100, 2, 4, seed=3)
    kinds = Counter((len(str(a)), len(str(b)), is_match(a, b)) for a, b in tests)
    assert len(tests) >= 100 and len(kinds) == 18 and len(set(kinds.values())) == 1
    assert tests == balanced_problems(100, 2, 4, seed=3) != balanced_problems(100, 2, 4, seed=4)

def test_forced_and_greedy_agree_and_training_learns():
    layout, tests = layouts(1)["right to left"], balanced_problems(40, 1, 1)
    lm, curve = train_adder(layout, k=1, lengths=(1, 1), steps=150, rows=32, dim=32, layers=1, heads=2, tests=tests, points=2)
    rows = answer_problems(lm, tests, layout, k=1)
    assert [r["answer"] == r["a"] + r["b"] for r in rows] == forced_right(lm, tests, layout, 1).tolist()
    assert error_report(rows)["accuracy"] > .5 and list(curve) == [75*32, 150*32]

def test_runner_on_a_transformers_model():
    transformers = pytest.importorskip("transformers")
    from tokenlab.lm import HFLM
    from tokenlab.tokenizers.core import ByteTokenizer
    torch.manual_seed(0)
    model = HFLM(transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=256, n_positions=256, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None)))
    rows = run_addition(model, ByteTokenizer(), [(12, 345), (7, 8), (99, 1)], form="comma_r2l", shots=2, max_new_tokens=5, batch=2)
    assert [(r["a"], r["b"]) for r in rows] == [(12, 345), (7, 8), (99, 1)] and all(isinstance(r["response"], str) for r in rows)
    assert error_report(rows)["n"] == 3

def test_runner_reads_a_perfect_model(monkeypatch):
    "What a model answers after 'a+b=' of the LAST line is what is read."
    from types import SimpleNamespace
    import tokenlab.evaluation.arithmetic as module
    def oracle(lm, prompts, **options):
        assert options["stop"] == "\n"
        lines = [p.rsplit("\n", 1)[-1].rstrip("=").replace(",", "") for p in prompts]
        return [SimpleNamespace(text=f"{sum(map(int, l.split('+'))):,}\nnonsense 12") for l in lines]
    monkeypatch.setattr(module, "generate", oracle)
    problems = balanced_problems(36, 5, 7)
    assert error_report(run_addition(None, None, problems, form="comma_r2l", shots=3))["accuracy"] == 1.
