"""Data mixture inference on twenty known mixtures and on published tokenizers: the tables and figures of its notebook.

    python tests/benchmarks/data_mixture.py [--mixtures 20] [--only recovered gpt-2 ...] [--out results/benchmarks/data_mixture.json]

Work that is in the file already, with the same sources, is not repeated, so that it can be done in parts.
"""
import argparse, json, time, warnings
from datetime import datetime, timezone
from pathlib import Path
from tokenlab.claims import commit, cpu_name, digest
from tokenlab.corpora import load
from tokenlab.evaluation.mixture import categories, fit_efficiency, guess_from_efficiency, infer_mixture, recover, take
from tokenlab.registry import PACKAGE, write_json
from tokenlab.tokenizers.cli import open_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ("gpt-2", "gpt-neox", "claude", "llama", "mistral")
FEWER, PART = (125, 500), 2
EXTRA = 4   # mixtures that are also inferred from fewer merges, and without one category


def published_samples() -> dict[str, list[str]]:
    "Thirteen categories, up to 1 MB each."
    found = {k: take(samples, 1_000_000) for k, (_, samples) in categories().items()}
    return found | {k: take(load(name)["text"], 1_000_000) for k, name in (("shakespeare", "shakespeare"), ("pl", "pydocs-pl"), ("tr", "pydocs-tr"))}


def inferred(name: str, merges: int) -> dict:
    "One published tokenizer."
    samples, start = published_samples(), time.process_time()
    m = infer_mixture(open_tokenizer(name), samples, n_merges=merges, resamples=2, groups=4, gap=1e-2, seconds=600)
    return dict(shares=dict(m), std=m.std, pairs=m.pairs, objective=m.objective, gap=m.gap, misfit=m.misfit, merges=m.merges, unseen=m.unseen, slack=m.slack, n_merges=merges, seconds=time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mixtures", type=int, default=20)
    parser.add_argument("--most", type=int, default=1000, help="mixtures in this call")
    parser.add_argument("--merges", type=int, default=None, help="of the published lists, from the first; unset: all")
    parser.add_argument("--only", nargs="*", default=["recovered", *PUBLISHED])
    parser.add_argument("--out", type=Path, default=ROOT/"results"/"benchmarks"/"data_mixture.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    code = digest([PACKAGE/"evaluation"/"mixture.py"])
    kept = json.loads(args.out.read_text()) if args.out.exists() else {}
    if kept.get("code") != code: kept = {"recovered": [], "published": {}}

    def write() -> None:
        write_json(args.out, {"kind": "benchmark", "setting": dict(mixtures="5 to 10 of 10 categories, 3 MB to train 2,000 merges, samples of 2 MB a category", parts_of=PART), "code": code, "cpu": cpu_name(),
                              "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), **commit(), "recovered": kept["recovered"], "published": kept["published"]})

    done = len(kept["recovered"])
    while "recovered" in args.only and len(kept["recovered"]) < min(args.mixtures, done + args.most):
        first = len(kept["recovered"]) < EXTRA
        kept["recovered"] += recover(PART, seed=100 + len(kept["recovered"])//PART, fewer=FEWER if first else (), leave_out=first)
        for row in kept["recovered"]:                                     # the line of TEE from all other mixtures
            others = [r for r in kept["recovered"] if r is not row]
            row["tee"] = guess_from_efficiency(row["efficiency"], fit_efficiency([r["efficiency"] for r in others], [r["true"] for r in others]))
        write()
    for name in PUBLISHED:
        if name in args.only and name not in kept["published"]:
            kept["published"][name] = inferred(name, args.merges)
            print(name, kept["published"][name]["shares"], kept["published"][name]["misfit"], f"{kept['published'][name]['seconds']:.0f} s", flush=True)
            write()


if __name__ == "__main__": main()
