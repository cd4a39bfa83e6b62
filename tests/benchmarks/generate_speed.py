"""How fast the plain loop is: greedy `generate` beside `transformers`, and what samplers and stops cost.

    python tests/benchmarks/generate_speed.py [--rounds 15] [--tokens 128] [--threads 2] [--out results/benchmarks/generate_speed.json]

Both libraries run the same random weights (a Llama of about 5M parameters, written by `save_lm`, opened by both), float32, batch 1, on the same
threads, warm. Every comparison is paired: A and B run directly after one another, the order swapped each round, and the figure is the median of the
ratios. Exit status 1 if the texts differ, or if a target is missed.
"""
import argparse, platform, statistics, sys, tempfile, time
from pathlib import Path
import torch
from tokenlab.checkpoints import load_lm, save_lm
from tokenlab.claims import commit, cpu_name
from tokenlab.generate import Sampler, generate
from tokenlab.lm import LM, LMConfig
from tokenlab.registry import write_json

ROOT = Path(__file__).resolve().parents[2]
TARGET_SPEED, TARGET_COST = 1.5, .10   # times transformers' tokens/s; extra time over greedy
CONFIG = LMConfig(4096, dim=256, n_layers=6, n_heads=4, max_len=1024)
SAMPLERS = {
    "temperature 0.8": Sampler(.8), "top-k 50": Sampler(.8, top_k=50), "top-p 0.9": Sampler(.8, top_p=.9), "min-p 0.05": Sampler(.8, min_p=.05),
    "repetition penalty 1.2": Sampler(0, repetition_penalty=1.2), "all of them": Sampler(.8, 50, .9, .05, 1.2),
}


class Words:
    "A stand-in tokenizer: id i is a two-byte piece, the first byte a letter, so that stop strings have to be looked for across pieces."
    def encode(self, text): return list(text.encode())
    def token_bytes(self, i): return bytes([97 + i % 26, 97 + i//26 % 26])


def spread(values): 
    "Median and quartiles."
    q = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "q1": q[0], "q3": q[2], "n": len(values)}


def paired(a, b, rounds: int) -> tuple[list[tuple], list[tuple]]:
    "(Wall-clock, processor) seconds of `a()` and `b()`, run in turn, each round starting with the other one; two warm-up rounds are dropped."
    times = [], []
    for r in range(rounds + 2):
        for i in ((0, 1) if r % 2 else (1, 0)):
            start = time.perf_counter(), time.process_time()
            (a, b)[i]()
            if r >= 2: times[i].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return times


def compare(name: str, a, b, tokens: int, rounds: int) -> dict:
    "A row: tokens/s of both, and the paired ratios of times b/a (processor time is less disturbed by other programs than wall-clock time)."
    ta, tb = paired(a, b, rounds)
    return {"name": name, "tokens_per_second": spread([tokens/t for t, _ in ta]), "baseline_tokens_per_second": spread([tokens/t for t, _ in tb]),
            "ratio": spread([y/x for (x, _), (y, _) in zip(ta, tb)]), "processor_time_ratio": spread([y/x for (_, x), (_, y) in zip(ta, tb)])}


def measure(tokens: int, rounds: int, prompt_length: int) -> dict:
    import transformers
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = LM(CONFIG)
        for p in model.parameters():
            if p.ndim > 1: torch.nn.init.normal_(p, std=.08)    # logits far enough apart that float rounding decides nothing
        save_lm(model, folder)
        lm, theirs = load_lm(folder), transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = torch.randint(CONFIG.vocab_size, (prompt_length,), generator=torch.Generator().manual_seed(1)).tolist()
    ids = torch.tensor([prompt])
    theirs.generation_config.update(eos_token_id=None, bos_token_id=None, pad_token_id=0)
    ours_once = lambda **kw: generate(lm, prompt, max_new_tokens=tokens, seed=0, **kw)
    theirs_once = lambda: theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
    text, their_text = ours_once().ids, theirs_once()[0, prompt_length:].tolist()
    absent = next(i for i in range(CONFIG.vocab_size) if i not in text)
    stops = {"stop ids": dict(stop=[absent, absent + 1]), "stop strings": dict(stop=["\n\nUser:", "###", "zzzzzz"], tokenizer=Words())}
    variants = {**{n: dict(sampler=s) for n, s in SAMPLERS.items()}, **stops}
    rows = [compare(n, (lambda kw=kw: ours_once(**kw)), ours_once, tokens, rounds) for n, kw in variants.items()]
    for row in rows:
        row["cost"], row["processor_time_cost"] = (1/row[k]["median"] - 1 for k in ("ratio", "processor_time_ratio"))
        row["ok"] = row["cost"] < TARGET_COST
        if len(ours_once(**variants[row["name"]]).ids) != tokens: raise RuntimeError(f"{row['name']} ended early: its time cannot be compared")
    speed = compare("tokenlab generate, greedy", ours_once, theirs_once, tokens, rounds)
    speed["ok"] = speed["ratio"]["median"] >= TARGET_SPEED
    return {"benchmark": "generate_speed", **commit(), "date": time.strftime("%Y-%m-%d"), "device": f"CPU, {cpu_name()}", "threads": torch.get_num_threads(), "dtype": "float32", "batch": 1,
        "prompt_tokens": prompt_length, "new_tokens": tokens, "compiled": False, "parameters": sum(p.numel() for p in lm.parameters()),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()},
        "baseline": "transformers generate, do_sample=False, default cache and attention", "identical_text": text == their_text,
        "targets": {"speed": TARGET_SPEED, "cost": TARGET_COST}, "greedy": speed, "options": rows}


def table(r: dict) -> str:
    s = r["greedy"]
    lines = [f"{r['device']}, {r['threads']} threads, {r['dtype']}, batch {r['batch']}, {r['prompt_tokens']} + {r['new_tokens']} tokens, {r['parameters']:,} parameters, "
             f"torch {r['versions']['torch']}, transformers {r['versions']['transformers']}", "",
             f"{'':26}{'tokens/s':>10}{'quartiles':>14}", f"{'tokenlab, greedy':26}{s['tokens_per_second']['median']:10.0f}{quartiles(s['tokens_per_second']):>14}",
             f"{'transformers, greedy':26}{s['baseline_tokens_per_second']['median']:10.0f}{quartiles(s['baseline_tokens_per_second']):>14}",
             f"{'ratio (paired)':26}{s['ratio']['median']:10.2f}{s['ratio']['q1']:7.2f}-{s['ratio']['q3']:.2f}   target {r['targets']['speed']}: {'met' if s['ok'] else 'MISSED'}",
             f"{'ratio of processor time':26}{s['processor_time_ratio']['median']:10.2f}{s['processor_time_ratio']['q1']:7.2f}-{s['processor_time_ratio']['q3']:.2f}",
             f"identical text: {'yes' if r['identical_text'] else 'NO'}", "", f"{'option':26}{'tokens/s':>10}{'cost':>9}{'processor':>11}   target < {r['targets']['cost']:.0%}"]
    lines += [f"{o['name']:26}{o['tokens_per_second']['median']:10.0f}{o['cost']:9.1%}{o['processor_time_cost']:11.1%}   {'met' if o['ok'] else 'MISSED'}" for o in r["options"]]
    return "\n".join(lines)


def quartiles(s: dict) -> str: return f"{s['q1']:.0f}-{s['q3']:.0f}"


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=15, help="paired rounds of each comparison")
    p.add_argument("--tokens", type=int, default=128, help="new tokens of each run")
    p.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--out", type=Path, default=ROOT/"results"/"benchmarks"/"generate_speed.json")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    result = measure(a.tokens, a.rounds, a.prompt)
    write_json(a.out, result)
    print(table(result))
    sys.exit(0 if result["identical_text"] and result["greedy"]["ok"] and all(o["ok"] for o in result["options"]) else 1)


if __name__ == "__main__": main()
