"""All rows of the comparison of tokenizers on Python's manual, three seeds: the table and figure of the notebook.

    python tests/benchmarks/tokenizers_comparison.py [--seeds 3] [--only NAME ...] [--out results/benchmarks/tokenizers_comparison.json]

2,048 tokens; the small model reads 150 kB once. A run that is in the file already, with the same sources, is not repeated, so that the work can be done in parts. The speeds are those of one thread on whatever machine this is,
busy or not; bits, bytes and shares are the same on any.
"""
import argparse, json, os, warnings
from datetime import datetime, timezone
from pathlib import Path
from pydoc_data.topics import topics
from tokenlab.claims import commit, cpu_name, digest
from tokenlab.comparison import compare
from tokenlab.registry import PACKAGE, write_json
from tokenlab.tokenizers.comparison import METHODS, Work, comparison

ROOT = Path(__file__).resolve().parents[2]
SETTING = dict(corpus="Python's manual (pydoc_data), every eighth page held out", vocab_size=2048, lm_bytes=150_000)


def work() -> Work:
    "Python's manual, every eighth page held out."
    pages = [t for _, t in sorted(topics.items())]
    return Work([t for i, t in enumerate(pages) if i % 8], pages[::8], vocab_size=SETTING["vocab_size"], lm_bytes=SETTING["lm_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=ROOT/"results"/"benchmarks"/"tokenizers_comparison.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    code = digest([PACKAGE/"tokenizers"/"comparison.py"])
    kept = json.loads(args.out.read_text()) if args.out.exists() else {}
    rows = kept["rows"] if kept.get("code") == code and kept.get("setting") == SETTING else []
    for seed in range(args.seeds):
        for name in args.only:
            if any((r["method"], r["seed"]) == (name, seed) for r in rows): continue
            run = compare({name: comparison.methods[name]}, work(), seeds=[seed], progress=False)
            rows += json.loads(run.to_json(orient="records"))
            print(rows[-1], flush=True)
            rows.sort(key=lambda r: (list(METHODS).index(r["method"]), r["seed"]))
            write_json(args.out, {"kind": "benchmark", "setting": SETTING, "code": code, "cpu": cpu_name(), "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or None,
                                  "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), **commit(), "rows": rows})


if __name__ == "__main__": main()
