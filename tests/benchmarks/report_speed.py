"""How long the report takes: five published tokenizers on a hundred languages, every measure, one process.

    python tests/benchmarks/report_speed.py [--languages 100] [--out results/benchmarks/report_speed.json]

Reads the tokenizers and the declaration of human rights in TOKENLAB_DATA; loading the tokenizers, compiled code from the cache, tables and page are all inside the time. Exit status 1 above 60 seconds.
"""
import argparse, sys, time
from pathlib import Path
from tokenlab.claims import commit, device
from tokenlab.registry import write_json

ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS, TARGET = ["gpt-2", "gpt-neox", "llama", "mistral", "claude"], 60


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--languages", type=int, default=100)
    options.add_argument("--out", type=Path, default=ROOT/"results"/"benchmarks"/"report_speed.json")
    given = options.parse_args()
    from tokenlab.corpora import parallel
    codes = list(dict.fromkeys(parallel("udhr")["code"]))
    chosen = ["eng", *[c for c in codes if c != "eng"][::max(1, len(codes)//given.languages)]][:given.languages]
    texts = list(parallel("udhr", languages=chosen)["text"])
    start, cpu = time.perf_counter(), time.process_time()
    from tokenlab.evaluation.report import report, report_html
    found = report(TOKENIZERS, {"declarations": texts}, parallel="udhr", languages=chosen, progress=False)
    page = report_html(found)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    write_json(given.out, dict(benchmark="report_speed", device=device(), **commit(), tokenizers=TOKENIZERS, languages=len(chosen), bytes=sum(len(t.encode()) for t in texts), seconds=seconds, cpu_seconds=cpu,
                               page_bytes=len(page.encode()), target_seconds=TARGET, table={k: {m: v for m, v in row.items() if v == v} for k, row in found.table.drop(columns="MB/s").T.to_dict().items()}))
    print(f"{len(TOKENIZERS)} tokenizers x {len(chosen)} languages: {seconds:.1f} s, {cpu:.1f} s of CPU")
    return int(seconds > TARGET)


if __name__ == "__main__": sys.exit(main())
