"""How fast speculation is: `speculate` beside `generate`, and beside assisted generation and prompt lookup of `transformers` with the same weights.

    python tests/benchmarks/speculative_speed.py [--prompts 8] [--tokens 96] [--threads 1 2] [--out results/benchmarks/speculative_speed.json]

Target lab-base (5.07M parameters), draft lab-draft, float32, batch 1. Work: beginnings of held-out source files and docstrings at temperature 1 and greedy; functions to copy and to edit.
All programs continue each prompt in turn, in an order that is turned by one with each prompt; the figure is the median over prompts of the ratio of seconds a token to plain decoding on the same prompt.
Plain decoding and speculation run the same target in PyTorch; the draft runs compiled. "compiled" is the other state: the target compiled (`Fused`) in both.
Exit status 1 if a greedy text differs where it should not, or a target is missed.
"""
import argparse, platform, statistics, sys, tempfile, time
from pathlib import Path
import torch
from tokenlab.claims import commit, cpu_name
from tokenlab.generate import Sampler, generate
from tokenlab.lab import load_lab, repetition
from tokenlab.registry import write_json
from tokenlab.speculative.bench import held_out, make, one_run
from tokenlab.speculative.fused import Fused
from tokenlab.speculative.lookup import lab_tasks

ROOT = Path(__file__).resolve().parents[2]
TARGET_DRAFT, TARGET_COPY = 1.4, 2.
OURS = ("draft", "lookup", "n-gram")


def spread(values):
    q = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "q1": q[0], "q3": q[2], "n": len(values)}


def first_difference(lm, prompt, a, b):
    "The gap between the two likeliest tokens where two greedy texts part; None: they do not."
    i = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
    if i is None: return None if len(a) == len(b) else float("inf")
    with torch.inference_mode(): top = lm(torch.tensor([prompt + a[:i]])).logits[0, -1].topk(2).values
    return float(top[0] - top[1])


def work(lm, programs, prompts, tokens, temperature):
    "One kind of work: all programs on all prompts."
    runs, names = {n: [] for n in programs}, list(programs)
    for n in names: programs[n](prompts[0], 0)
    for i, p in enumerate(prompts):
        for n in names[i % len(names):] + names[:i % len(names)]:
            torch.manual_seed(i)
            runs[n].append(programs[n](p, i))
    rows = {}
    for n, these in runs.items():
        base = runs["plain, compiled" if "compiled" in n else "plain"]
        row = {"tokens_per_second": spread([len(ids)/s for s, ids, _ in these]), "times_plain": spread([(a/len(x))/(b/len(y)) for (a, x, _), (b, y, _) in zip(base, these)]),
               "repetition": statistics.mean(repetition(ids) for _, ids, _ in these)}
        calls = [c for *_, c in these if c]
        if calls: row["tokens_per_call"] = sum(len(ids) for _, ids, _ in these)/sum(calls)
        if temperature == 0:
            gaps = [first_difference(lm, p, a[1], b[1]) for p, a, b in zip(prompts, runs["plain"], these)]
            row["identical"], row["largest_gap_where_texts_part"] = sum(g is None for g in gaps), max((g for g in gaps if g is not None), default=None)
        rows[n] = row
    return rows


def measure(n, tokens, threads):
    import transformers
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    (lm, tokenizer), (draft, _) = load_lab("lab-base"), load_lab("lab-draft")
    with tempfile.TemporaryDirectory() as d:
        for name, m in (("a", lm), ("b", draft)): m.save_pretrained(Path(d)/name)
        theirs, assistant = (transformers.AutoModelForCausalLM.from_pretrained(Path(d)/x, dtype=torch.float32).eval() for x in "ab")
    for m in (theirs, assistant): m.generation_config.update(pad_token_id=0)
    tasks = lab_tasks(tokenizer, max(n//2, 2))
    kinds = {"held-out text": [tokenizer.encode(t) for t in held_out(n)], **{k: v for k, v in tasks.items() if k in ("copy", "edit")}}
    fused, result = Fused(lm), {}
    for kind, prompts in kinds.items():
        for t in ((1., 0.) if kind == "held-out text" else (0.,)):
            settings = dict(max_new_tokens=tokens, sampler=Sampler(t))
            def ours(model, way):
                def run(p, seed):
                    s, g = one_run(model, p, way, seed=seed, **settings)
                    return s, g.ids, g.target_calls
                return run
            def hf(**kw):
                def run(p, seed):
                    ids, s = torch.tensor([p]), time.perf_counter()
                    out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=t > 0, temperature=1. if t else None, top_k=0 if t else None, max_new_tokens=tokens, **kw)
                    return time.perf_counter() - s, out[0, len(p):].tolist(), None
                return run
            programs = {"plain": ours(lm, None), **{m: ours(lm, make(m, lm, draft)) for m in OURS}, "plain, compiled": ours(fused, None), "draft, compiled": ours(fused, make("draft", fused, draft)), "lookup, compiled": ours(fused, make("lookup", fused)),
                "transformers": hf(), "transformers, assisted": hf(assistant_model=assistant), "transformers, prompt lookup": hf(prompt_lookup_num_tokens=10)}
            result[f"{kind}, temperature {t:g}"] = work(lm, programs, prompts, tokens, t)
    return result


def judge(by_threads):
    "What was asked, and what was met."
    found = {}
    for threads, r in by_threads.items():
        text = r["held-out text, temperature 1"]
        speed = lambda part, name: part[name]["tokens_per_second"]["median"]
        found[threads] = {"draft": text["draft"]["times_plain"]["median"], "draft_met": text["draft"]["times_plain"]["median"] >= TARGET_DRAFT,
            "draft_faster_than_transformers": speed(text, "draft") > speed(text, "transformers, assisted")}
        for kind in ("copy", "edit"):
            part = r[f"{kind}, temperature 0"]
            best = max(("lookup", "n-gram"), key=lambda m: part[m]["times_plain"]["median"])
            found[threads] |= {kind: part[best]["times_plain"]["median"], f"{kind}_met": part[best]["times_plain"]["median"] >= TARGET_COPY, f"{kind}_faster_than_transformers": speed(part, best) > speed(part, "transformers, prompt lookup")}
        gaps = [row["largest_gap_where_texts_part"] for part in r.values() for name, row in part.items() if name in OURS and row.get("largest_gap_where_texts_part") is not None]
        found[threads]["greedy_text_ok"] = max(gaps, default=0) < 1e-3
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--prompts", type=int, default=8)
    p.add_argument("--tokens", type=int, default=96)
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--out", type=Path, default=ROOT/"results"/"benchmarks"/"speculative_speed.json")
    a = p.parse_args()
    import transformers
    by_threads = {str(t): measure(a.prompts, a.tokens, t) for t in a.threads}
    verdict = judge(by_threads)
    write_json(a.out, {"benchmark": "speculative_speed", **commit(), "date": time.strftime("%Y-%m-%d"), "device": f"CPU, {cpu_name()}", "dtype": "float32", "batch": 1, "new_tokens": a.tokens,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}, "targets": {"draft": TARGET_DRAFT, "copy and edit": TARGET_COPY}, "verdict": verdict, "threads": by_threads})
    for threads, r in by_threads.items():
        print(f"\n{threads} thread(s)")
        for kind, part in r.items():
            print(f"  {kind}")
            for name, row in part.items():
                x = row["times_plain"]
                print(f"    {name:28}{row['tokens_per_second']['median']:8.0f} tokens/s {x['median']:6.2f} ({x['q1']:.2f}-{x['q3']:.2f}) times plain  repetition {row['repetition']:.2f}  {row.get('tokens_per_call', 0):5.2f} a call  {row.get('identical', '-')} identical")
    print(verdict)
    sys.exit(0 if all(v for r in verdict.values() for k, v in r.items() if k.endswith(("_met", "_ok", "transformers"))) else 1)


if __name__ == "__main__": main()
