"""How fast text is cut into pieces: the compiled scanners beside `regex`, `tokenizers` and `tiktoken`, on one thread.

    python tests/benchmarks/pretokenize_speed.py [--megabytes 8] [--rounds 7] [--out results/benchmarks/pretokenize_speed.json]

Texts: English (the manuals in TOKENLAB_DATA, or the Python documentation), languages (the Universal Declaration in 521 of them, if TOKENLAB_DATA is there), code (the standard library). Every contender cuts the
same text, warm; the figure is the best round. `regex` is given in full for one megabyte, because it is slow. `tiktoken` has each distinct piece in its vocabulary, so that it looks
pieces up and merges nothing. Exit status 1 if the pieces differ, or if a scanner is below 200 MB/s on English.
"""
import argparse, gzip, json, os, platform, sys, sysconfig, time
from datetime import datetime, timezone
from pathlib import Path
os.environ.setdefault("RAYON_NUM_THREADS", "1"); os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np, regex, tiktoken, tokenizers
from tokenlab.claims import commit, cpu_name
from tokenlab.comparison import fastest
from tokenlab.registry import write_json
from tokenlab.tokenizers.bpe import PATTERNS, compile_pattern, split
from tokenlab.tokenizers.pretokenize import Pretokenizer, as_array, class_table, cut_into

ROOT = Path(__file__).resolve().parents[2]
TARGET = 200 # MB/s on English


def texts(megabytes: float) -> dict[str, str]:
    "Name -> about so many megabytes of text."
    def filled(parts):
        text = "\n".join(parts)
        times = int(megabytes * 1e6 / max(1, len(text.encode()))) + 1
        return (text * times).encode()[:int(megabytes * 1e6)].decode(errors="ignore")
    data = Path(os.environ.get("TOKENLAB_DATA", "missing"))
    stdlib = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    found = {"code": filled(p.read_text(encoding="utf8") for p in stdlib)}
    if (data/"parallel").is_dir():
        with gzip.open(data/"parallel"/"pydocs_fr.jsonl.gz", "rt", encoding="utf8") as f: english = [json.loads(line)["en"] for line in f]
        found = {"English": filled(english), **found}
        found["languages"] = filled("\n".join(json.loads(line)["articles"]) for line in (data/"udhr.jsonl").open(encoding="utf8"))
    return found


def contenders(text: str, rule: str):
    "Name -> (bytes it cuts, the call)."
    cutter, table, data = Pretokenizer(rule), class_table(), as_array(text)
    out = np.empty(1 << 16, dtype=np.int64) # used again and again, as an encoder would
    def scan():
        start = 0
        while start < len(data): start = cut_into(data, start, cutter.kind, table, out)[1]
    yield "tokenlab", len(data), scan
    compiled, short = compile_pattern(rule), text[:1_000_000]
    yield "regex", len(short.encode()), lambda: compiled.findall(short)
    peer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERNS[rule]), "isolated")
    yield "tokenizers", len(short.encode()), lambda: peer.pre_tokenize_str(short)
    pieces = [p.encode() for p in dict.fromkeys(split(text, compiled))]
    ranks = {p: i for i, p in enumerate(dict.fromkeys([*(bytes([b]) for b in range(256)), *pieces]))}
    encoding = tiktoken.Encoding("pieces", pat_str=PATTERNS[rule], mergeable_ranks=ranks, special_tokens={})
    assert [ranks[p.encode()] for p in split(short, compiled)] == encoding.encode_ordinary(short)
    yield "tiktoken", len(data), lambda: encoding.encode_ordinary(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=8); parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT/"results"/"benchmarks"/"pretokenize_speed.json")
    args = parser.parse_args()
    rows, same = [], True
    for name, text in texts(args.megabytes).items():
        for rule in ("gpt2", "cl100k", "o200k"):
            short = text[:300_000]
            same &= Pretokenizer(rule).split(short) == [p.encode() for p in Pretokenizer(rule).split_slowly(short)]
            for who, size, call in contenders(text, rule):
                seconds = fastest(call, args.rounds if who == "tokenlab" else 3, time.perf_counter, warmup=1)
                rows.append(dict(text=name, rule=rule, who=who, mb_per_second=size / seconds / 1e6, megabytes=size / 1e6))
                print(f"{name:10} {rule:7} {who:10} {size / seconds / 1e6:8.1f} MB/s", flush=True)
    versions = dict(python=platform.python_version(), numpy=np.__version__, regex=regex.__version__, tokenizers=tokenizers.__version__, tiktoken=tiktoken.__version__)
    english = [r["mb_per_second"] for r in rows if r["who"] == "tokenlab" and r["text"] == "English"]
    missed = [v for v in english if v < TARGET]
    write_json(args.out, dict(benchmark="pretokenize_speed", device=f"{cpu_name()}, one thread, best of {args.rounds} rounds, warm", same_pieces=same, rows=rows,
                              versions=versions, **commit(), date=datetime.now(timezone.utc).isoformat(timespec="seconds")))
    return int(not same or bool(missed))


if __name__ == "__main__": sys.exit(main())
