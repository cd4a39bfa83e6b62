"""How fast Mamba's recurrence runs: the compiled scan beside the same in PyTorch, a loop over tokens, and mambapy's parallel scan.

    python tests/benchmarks/selective_scan_speed.py [--rounds 5] [--threads 1] [--out results/benchmarks/selective_scan_speed.json]

Shapes: a training batch of short rows, one row of growing length, and one row at the width of the published Mamba of 130 million parameters. Each contender gets the same steps, rates and
weights; "training" is forward and backward. Figures are the fastest round, after one that is not counted. Exit status 1 if outputs or gradients differ, or if the compiled scan is
not four times as fast as the fastest other in training.
"""
import argparse, platform, sys, time
from datetime import datetime, timezone
from pathlib import Path
import torch
from importlib.metadata import version
from mambapy.pscan import pscan
from tokenlab.claims import commit, cpu_name
from tokenlab.comparison import fastest
from tokenlab.kernels.scan import selective_scan, stretches
from tokenlab.registry import write_json

ROOT = Path(__file__).resolve().parents[2]
TARGET = 4 # times the fastest other, in training
SHAPES = {"32 rows of 64": (32, 64, 128), "1 row of 256": (1, 256, 128), "1 row of 1,024": (1, 1024, 128), "1 row of 4,096": (1, 4096, 128), "1 row of 1,024, 1,536 channels": (1, 1024, 1536)} # B, T, E


def loop(u, dt, A, B, C, h):
    "All decays and inputs at once, then a loop over tokens."
    out = []
    for a, b, c in zip((dt[..., None]*A).exp().unbind(1), ((dt*u)[..., None]*B[:, :, None]).unbind(1), C.unbind(1)):    # to index by t would take the gradient quadratic time
        h = a*h + b
        out.append((h @ c[..., None])[..., 0])
    return torch.stack(out, 1), h


def blelloch(u, dt, A, B, C, h):
    "mambapy's scan; it starts from zero."
    hs = pscan((dt[..., None]*A).exp(), (dt*u)[..., None]*B[:, :, None])
    return (hs @ C[..., None])[..., 0], hs[:, -1]


CONTENDERS = {"tokenlab": selective_scan, "tokenlab, PyTorch": stretches, "loop": loop, "mambapy": blelloch}


def layer(B: int, T: int, E: int, N: int = 16):
    "Inputs of a selective scan as Mamba initialises it."
    rng = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(*s, generator=rng)
    A = -torch.arange(1, N + 1).float().expand(E, N).contiguous()
    return [x.requires_grad_() for x in (draw(B, T, E), .03*draw(B, T, E).exp(), A, draw(B, T, N), draw(B, T, N), torch.zeros(B, E, N))]


def train(f, given, weight):
    "Output and gradients."
    y, _ = f(*given)
    return [y.detach(), *torch.autograd.grad((y*weight).sum(), given[:5])]


def infer(f, given, weight):
    with torch.no_grad(): return f(*given)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5); parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT/"results"/"benchmarks"/"selective_scan_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows, same = [], True
    for shape, sizes in SHAPES.items():
        given, weight = layer(*sizes), torch.randn(*sizes, generator=torch.Generator().manual_seed(1))
        truth = train(blelloch, given, weight)
        for who, f in CONTENDERS.items():
            same &= all((x - y).abs().max() <= 2e-5*y.abs().max() for x, y in zip(train(f, given, weight), truth))
            for what, call in (("forward", infer), ("training", train)):
                rows.append(dict(shape=shape, who=who, what=what, ms=1e3*fastest(lambda: call(f, given, weight), args.rounds, time.perf_counter, warmup=1)))
                print(f"{shape:31} {who:18} {what:9} {rows[-1]['ms']:9.2f} ms", flush=True)
    ms = {(r["shape"], r["what"], r["who"]): r["ms"] for r in rows}
    gain = {what: [min(ms[s, what, who] for who in CONTENDERS if who != "tokenlab")/ms[s, what, "tokenlab"] for s in SHAPES] for what in ("forward", "training")}
    least, most = {what: min(v) for what, v in gain.items()}, {what: max(v) for what, v in gain.items()}
    print("against the fastest other:", ", ".join(f"{what} {least[what]:.1f} to {most[what]:.1f} times as fast" for what in gain))
    versions = {p: version(p) for p in ("torch", "numba", "mambapy")} | {"python": platform.python_version()}
    write_json(args.out, dict(kind="benchmark", benchmark="selective_scan_speed", device=f"{cpu_name()}, {args.threads} thread(s), best of {args.rounds} rounds, warm", same_results=bool(same), least=least, most=most, rows=rows,
                              versions=versions, **commit(), date=datetime.now(timezone.utc).isoformat(timespec="seconds")))
    return int(not same or least["training"] < TARGET)


if __name__ == "__main__": sys.exit(main())
