"""How fast unigram training is: `train_unigram` beside sentencepiece's trainer, same text, same vocabulary size, one thread each.

    python tests/benchmarks/unigram_speed.py [--megabytes 20] [--vocab 8000] [--rounds 1] [--out results/benchmarks/unigram_speed.json]

The text is Python code, its documentation, and (where the data mirror is) the manuals in seven languages, up to so many megabytes, as lines. Compiled code is warmed up on a small corpus first; that time is printed apart. Each
trainer runs in this process, in turn. The two do not make the same vocabulary (ours is over bytes and cuts with GPT-2's pattern; sentencepiece is over
characters with byte fallback and cuts at spaces); bytes per token on held-out files stand beside the seconds. The ratio is that of processor seconds. Exit status 1 if ours is slower.
"""
import argparse, platform, statistics, sys, tempfile, time
from pathlib import Path
import sentencepiece
from tokenlab.claims import commit, cpu_name
from tokenlab.corpora import LANGUAGES, load, parallel
from tokenlab.registry import write_json
from tokenlab.tokenizers.unigram import train_unigram


def timed(fn):
    "Result, wall-clock seconds and processor seconds."
    wall, cpu = time.perf_counter(), time.process_time()
    return fn(), time.perf_counter() - wall, time.process_time() - cpu


def take(texts, megabytes):
    "The first texts, about so many megabytes."
    out, size = [], 0
    for text in texts:
        if size >= megabytes * 1e6: break
        out.append(text)
        size += len(text.encode())
    return out


def corpus():
    "Texts from what is at hand."
    for name in ("python-code", "python-docs"): yield from load(name, split="train")["text"][:]
    try:
        for language in LANGUAGES: yield from parallel(f"pydocs-{language}")["text"][:]
    except (FileNotFoundError, OSError, ValueError) as e: print(f"without the manuals: {e}")


def theirs(lines, vocab, folder):
    "A sentencepiece model on one thread."
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix=f"{folder}/m", vocab_size=vocab, model_type="unigram", byte_fallback=True, num_threads=1,
                                             normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, max_sentence_length=1 << 20, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_file=f"{folder}/m.model")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=30)
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", default="results/benchmarks/unigram_speed.json")
    args = parser.parse_args()
    lines = [l for t in take(corpus(), args.megabytes) for l in t.splitlines(keepends=True)]
    valid = take(load("python-code", split="valid")["text"][:], 1)
    size = sum(len(l.encode()) for l in lines)
    _, jit, _ = timed(lambda: train_unigram(lines[:2000], 600))
    seconds = {"tokenlab": [], "sentencepiece": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            ours, wall, cpu = timed(lambda: train_unigram(lines, args.vocab))
            seconds["tokenlab"].append((wall, cpu))
            sp, wall, cpu = timed(lambda: theirs([l.rstrip("\n") for l in lines], args.vocab, folder))
            seconds["sentencepiece"].append((wall, cpu))
    nbytes = sum(len(t.encode()) for t in valid)
    tokens = {"tokenlab": sum(len(ours.encode(t)) for t in valid), "sentencepiece": sum(len(sp.encode(l)) for t in valid for l in t.splitlines())}
    rows = [dict(trainer=name, seconds=round(statistics.median(w for w, _ in runs), 2), processor_seconds=round(statistics.median(c for _, c in runs), 2),
                 megabytes=round(size / 1e6, 1), vocab_size=args.vocab, bytes_per_token=round(nbytes / tokens[name], 3)) for name, runs in seconds.items()]
    ratio = rows[1]["processor_seconds"] / rows[0]["processor_seconds"] # one thread each: what else the machine does is left out
    write_json(args.out, dict(rows=rows, ratio=round(ratio, 2), warm_up_seconds=round(jit, 2), rounds=args.rounds, threads=1, cpu=cpu_name(), python=platform.python_version(),
                              sentencepiece=sentencepiece.__version__, **commit()))
    for row in rows: print(row)
    print(f"sentencepiece takes {ratio:.2f} times as many processor seconds; compiling took {jit:.1f} s")
    return int(ratio < 1)


if __name__ == "__main__": sys.exit(main())
