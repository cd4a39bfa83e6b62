"""How fast the compiled BPE is: encoding beside tiktoken, training beside the tokenizers library.

    python tests/benchmarks/bpe_speed.py [encode] [train-8192] [train-32768] [--megabytes 100] [--rounds 7] [--out results/benchmarks/bpe_speed.json]

Encoding: the published GPT-2 tokenizer, the same ranks and pattern in both libraries, the same texts, one thread and two, warm; ours and theirs in turn, the
figure is the median of the paired ratios. Training: each trainer in a process of its own, two threads, from the same file of texts; peak memory is that of the
process above what texts and libraries take. What is measured is added to the file; parts not asked for stay. Exit status 1 if ids differ or a target is missed.
"""
import argparse, json, os, platform, re, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
from tokenlab.claims import commit, cpu_name
from tokenlab.registry import write_json

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"encode_array": 5., "encode": 3., "encode_array, cold cache": 2., "train": 3.}
ARRAY_TWO, LIST_TWO = "arrays, two threads", "encode_batch, two threads"


def median_of(values): return {"median": statistics.median(values), "least": min(values), "most": max(values), "n": len(values)}


def seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def bandwidth(n: int = 1 << 26) -> dict:
    "MB/s of a copy, and of a plain pass over bytes, the yardstick of any encoder."
    a = np.random.default_rng(0).integers(0, 256, n, np.uint8)
    b = np.empty_like(a)
    copy, add = lambda: np.copyto(b, a), lambda: a.view(np.uint64).sum()
    copy(), add()
    return {"copy": n / 1e6 / min(seconds(copy) for _ in range(5)), "read": n / 1e6 / min(seconds(add) for _ in range(5))}


def encode_texts() -> dict[str, list[str]]:
    from tokenlab.corpora import load
    some = lambda name, n: load(name)["text"][:n]
    return {"English": [t for t in some("shakespeare", 400)], "source code": some("python-code", 300), "521 languages": some("udhr", 1000),
            "manuals, Japanese": some("pydocs-ja", 1000)}


def measure_encode(rounds: int) -> dict:
    import tiktoken
    from tokenlab.corpora import data_file
    from tokenlab.tokenizers.bpe import PATTERNS
    from tokenlab.tokenizers.core import Tokenizer
    from tokenlab.tokenizers.fast_bpe import encode_arrays
    from tokenlab.tokenizers.pretokenize import Pretokenizer
    path = data_file("tokenizers/gpt-2.json")
    start = time.perf_counter()
    fast = Tokenizer.load(path)
    fast.encode("a")
    fast.encode_array("a b")
    jit = time.perf_counter() - start
    theirs = tiktoken.Encoding("same", pat_str=PATTERNS["gpt2"], mergeable_ranks=dict(fast._ids), special_tokens={})
    rows, equal = [], True
    for name, texts in encode_texts().items():
        text = "\n".join(texts)[:4_000_000]
        mb = len(text.encode()) / 1e6
        batch = [text[i:i + 20_000] for i in range(0, len(text), 20_000)]
        equal &= fast.encode(text) == theirs.encode_ordinary(text) and fast.encode_batch(batch, workers=2) == theirs.encode_ordinary_batch(batch, num_threads=2)
        scanner = Pretokenizer("gpt2")
        ways = {"tiktoken": lambda: theirs.encode_ordinary(text), "encode_array": lambda: fast.encode_array(text), "encode": lambda: fast.encode(text),
                "encode_array, cold cache": lambda: (fast._caches.clear(), fast.encode_array(text)), "scan only": lambda: scanner.boundaries(text),
                "tiktoken to numpy": lambda: theirs.encode_to_numpy(text), "tiktoken, two threads": lambda: theirs.encode_ordinary_batch(batch, num_threads=2),
                LIST_TWO: lambda: fast.encode_batch(batch, workers=2), ARRAY_TWO: lambda: encode_arrays(fast, batch, workers=2)}
        times = {way: [] for way in ways}
        for r in range(rounds):
            for way, f in list(ways.items())[::-1 if r % 2 else 1]:
                if way in ("encode_array", "encode"): f()   # warm: the cold run before may have emptied the cache
                times[way].append(seconds(f))
        ratio = lambda way, base="tiktoken": median_of([b / a for a, b in zip(times[way], times[base])])
        rows.append({"text": name, "megabytes": mb, "mb_per_second": {w: median_of([mb / t for t in ts]) for w, ts in times.items()},
                     "ratio": {w: ratio(w) for w in ("encode_array", "encode", "encode_array, cold cache")} |
                              {w: ratio(w, "tiktoken, two threads") for w in (LIST_TWO, ARRAY_TWO)}})
    return {"tokenizer": "gpt-2, as published", "load_and_compile_seconds": jit, "identical_ids": equal, "bandwidth_mb_per_second": bandwidth(), "rows": rows}


def corpus(megabytes: int):
    "Texts of many languages, then source code, until there are enough."
    from tokenlab.corpora import LANGUAGES, load, package_files, walk
    total = 0
    names = ["udhr", *(f"pydocs-{lang}" for lang in LANGUAGES), "shakespeare", "python-code", "python-docs"]
    for name in names:
        for text in load(name)["text"]:
            yield text
            total += len(text.encode())
    for path, _ in walk(Path(np.__file__).parents[1]):       # the installed packages
        if total >= megabytes * 1e6: return
        if not path.endswith(".py"): continue
        try: text = Path(path).read_text(encoding="utf8")
        except UnicodeDecodeError: continue
        yield text
        total += len(text.encode())


def memory(what: str) -> float:
    "Megabytes of this process: VmRSS (now) or VmHWM (at the highest since the last reset). The maximum of getrusage is inherited from the parent, and no use."
    return int(re.search(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def reset_peak() -> float:
    "Begin to look for the peak; megabytes in use now."
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def train_child(engine: str, path: str, vocab_size: int) -> dict:
    "Train one tokenizer in this process."
    texts = [json.loads(line) for line in open(path, encoding="utf8")]
    report, start = {}, time.perf_counter()
    if engine == "tokenizers":
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers
        hf = tokenizers.Tokenizer(models.BPE())
        hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        start = time.perf_counter()
        before = reset_peak()
        hf.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
        report["seconds"] = time.perf_counter() - start
        report["memory_mb"], report["process_mb"] = memory("VmHWM") - before, memory("VmHWM")
        merges = [tuple(m) for m in json.loads(hf.to_str())["model"]["merges"]]
    else:
        from tokenlab.tokenizers import fast_bpe
        from tokenlab.tokenizers.bpe import train_bpe
        from tokenlab.tokenizers.core import to_chars
        train_bpe(["warm up", "warm"], 260, workers=2)
        report["compile_seconds"] = time.perf_counter() - start
        before = reset_peak()
        start = time.perf_counter()
        pieces = fast_bpe.count_pieces(texts, workers=2)
        report["count_seconds"] = time.perf_counter() - start
        tokens, merges = fast_bpe.learn_merges(pieces, vocab_size)
        report["seconds"] = time.perf_counter() - start
        report["memory_mb"], report["process_mb"] = memory("VmHWM") - before, memory("VmHWM")
        report["distinct_pieces"], report["pieces"] = len(pieces), pieces.total()
        merges = [(to_chars(tokens[a]), to_chars(tokens[b])) for a, b in merges]
    return report | {"merges": merges}


def measure_train(vocab_size: int, megabytes: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path, total = Path(folder)/"texts.jsonl", 0
        with path.open("w", encoding="utf8") as f:
            for text in corpus(megabytes):
                f.write(json.dumps(text) + "\n")
                total += len(text.encode())
        result = {}
        for engine in ("tokenlab", "tokenizers"):
            env = os.environ | {"RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "1"}
            out = subprocess.run([sys.executable, __file__, "--child", engine, str(path), str(vocab_size)], env=env, capture_output=True, text=True, check=True)
            result[engine] = json.loads(out.stdout.splitlines()[-1])
    ours, theirs = result["tokenlab"].pop("merges"), result["tokenizers"].pop("merges")
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
    return {"vocab_size": vocab_size, "megabytes": total / 1e6, "threads": 2, **result, "ratio": result["tokenizers"]["seconds"] / result["tokenlab"]["seconds"],
            "identical_merges": ours == theirs, "merges": len(ours), "first_difference": first, "shared_merges": len(set(map(tuple, ours)) & set(map(tuple, theirs)))}


def table(r: dict) -> str:
    lines = [f"{r['device']}"]
    if e := r.get("encode"):
        lines += [f"load and compile: {e['load_and_compile_seconds']:.1f} s; copy {e['bandwidth_mb_per_second']['copy']:.0f} MB/s; same ids: {e['identical_ids']}"]
        for row in e["rows"]:
            lines += [f"{row['text']} ({row['megabytes']:.1f} MB): " + ", ".join(f"{w} {v['median']:.0f}" for w, v in row["mb_per_second"].items()),
                      "    times tiktoken: " + ", ".join(f"{w} {v['median']:.1f}" for w, v in row["ratio"].items())]
    for t in r.get("train", {}).values():
        lines.append(f"V {t['vocab_size']}, {t['megabytes']:.0f} MB: {t['tokenlab']['seconds']:.1f} s and {t['tokenlab']['memory_mb']:.0f} MB, tokenizers {t['tokenizers']['seconds']:.1f} s and "
                     f"{t['tokenizers']['memory_mb']:.0f} MB: {t['ratio']:.1f} times; same merges: {t['identical_merges']} (first difference {t['first_difference']}, {t['shared_merges']} of {t['merges']} shared)")
    return "\n".join(lines)


def met(r: dict) -> bool:
    e, ok = r.get("encode"), True
    if e: ok &= e["identical_ids"] and all(row["ratio"][w]["median"] >= t for row in e["rows"] for w, t in TARGETS.items() if w in row["ratio"])
    for t in r.get("train", {}).values(): ok &= t["ratio"] >= TARGETS["train"] and t["tokenlab"]["memory_mb"] <= t["tokenizers"]["memory_mb"]
    return ok


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("parts", nargs="*", default=["encode", "train-8192", "train-32768"])
    p.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    p.add_argument("--megabytes", type=int, default=100)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--out", type=Path, default=ROOT/"results"/"benchmarks"/"bpe_speed.json")
    a = p.parse_args()
    if a.child: print(json.dumps(train_child(a.child[0], a.child[1], int(a.child[2])))); return
    import numba, tiktoken, tokenizers
    result = json.loads(a.out.read_text()) if a.out.exists() else {}
    result |= {"benchmark": "bpe_speed", **commit(), "date": time.strftime("%Y-%m-%d"), "device": f"CPU, {cpu_name()}", "targets": TARGETS,
               "versions": {"numba": numba.__version__, "numpy": np.__version__, "tiktoken": tiktoken.__version__, "tokenizers": tokenizers.__version__, "python": platform.python_version()}}
    for part in a.parts:
        if part == "encode": result["encode"] = measure_encode(a.rounds)
        else: result.setdefault("train", {})[part.removeprefix("train-")] = measure_train(int(part.removeprefix("train-")), a.megabytes)
        write_json(a.out, result)
    print(table(result))
    sys.exit(0 if met(result) else 1)


if __name__ == "__main__": main()
