"""Keep notebooks and package in step, and run the notebooks.

    python tools/notebooks.py export [NB ...]   clean notebooks -> package, static index
    python tools/notebooks.py check             fail if `export` would change anything
    python tools/notebooks.py test [NB ...]     run each notebook in a fresh process (nothing is written)
    python tools/notebooks.py refresh [NB ...]  run each notebook, slow cells included, and store its outputs
"""
import argparse, hashlib, json, os, re, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS, PACKAGE = ROOT/"nbs", ROOT/"tokenlab"
LIMIT_TEST, LIMIT_REFRESH = 120, 1800  # seconds for one notebook: a hang guard, not the budget
BUDGET = 20                            # seconds one notebook should take in `test` on one thread


def notebooks(paths: list[str]) -> list[Path]:
    "The notebooks named, or all of them; names that start with `_` (templates) are not run."
    if paths: return [Path(p).resolve() for p in paths]
    return sorted(p for p in NBS.rglob("*.ipynb") if not any(q.startswith((".", "_")) for q in p.relative_to(NBS).parts))


def directives(source: str) -> dict[str, str]:
    "The `#| name: value` lines of a cell."
    return {m[1]: m[2].strip() for m in re.finditer(r"^#\|\s*([\w-]+):?(.*)$", source, re.M)}


def is_skipped(cell, flags: set[str]) -> bool:
    "Is this cell switched off (`eval: false`), or does it need a flag (`slow`, `cuda`) that is not given?"
    if cell.cell_type != "code": return True
    found = directives(cell.source)
    return found.get("eval", "").lower() == "false" or bool(({"slow", "cuda"} - flags) & found.keys())


def last_redraw(text: str) -> str:
    "Of a progress bar that redraws its line, the last state."
    return re.sub(r"[^\n]*\r(?=[^\n])", "", text)


def run_one(path: Path, flags: set[str], write: bool) -> None:
    "Run one notebook in this process; on an error show the cell and exit with status 1."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    os.environ["IN_TEST"] = "" if write else "1"
    os.chdir(path.parent)
    nb, shell = read_nb(path), CaptureShell(mpl_format="png")
    shell._fname = path
    try: shell.run_all(nb, exc_stop=True, preproc=lambda cell: is_skipped(cell, flags))
    except Exception: sys.exit(shell.prettytb(fname=path))
    if not write: return
    for cell in nb.cells:
        for out in cell.get("outputs", []):
            if out["output_type"] == "stream": out["text"] = last_redraw("".join(out["text"])).splitlines(True)
    staged = path.with_suffix(".ipynb.tmp")
    write_nb(nb, staged)
    staged.replace(path)
    clean([path])


def spawn(path: Path, flags: set[str], write: bool) -> tuple[Path, float, str]:
    "Run one notebook in a fresh process with one thread; return its path, seconds and error text."
    env = dict(os.environ, MPLBACKEND="agg", PYTHONHASHSEED="0", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1",
               OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", MKL_NUM_THREADS="1")
    cmd = [sys.executable, __file__, "_one", str(path), "--flags", " ".join(flags)] + ["--write"] * write
    start = time.perf_counter()
    try:
        done = subprocess.run(cmd, env=env, capture_output=True, text=True, timeout=LIMIT_REFRESH if write else LIMIT_TEST)
        error = "" if done.returncode == 0 else (done.stderr or done.stdout or f"exit status {done.returncode}")
    except subprocess.TimeoutExpired: error = f"{path}: no end within the limit of {LIMIT_REFRESH if write else LIMIT_TEST} s"
    return path, time.perf_counter() - start, error


def run_all(paths: list[str], flags: set[str], write: bool, jobs: int) -> int:
    "Run notebooks `jobs` at a time, print the slowest and the sum; return the number that failed."
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(spawn, p, flags, write) for p in notebooks(paths)]
        results = []
        for future in futures:
            path, seconds, error = future.result()
            results.append((seconds, path, error))
            print(f"{'FAIL' if error else 'ok':>4} {seconds:6.1f} s  {path.relative_to(ROOT)}", flush=True)
            if error: print(error[-6000:], flush=True)
    failed = sum(bool(e) for *_, e in results)
    for seconds, path, _ in sorted(results, reverse=True)[:5]:
        note = f"  (over the budget of {BUDGET} s)" if seconds > BUDGET and not (write or flags) else ""
        print(f"slowest: {seconds:6.1f} s  {path.name}{note}")
    print(f"notebooks: {len(results) - failed} passed, {failed} failed, sum {sum(s for s, *_ in results):.0f} s")
    return failed


def clean(paths: list[Path]) -> None:
    "Strip counts, metadata and addresses, as nbdev does, and widget state, which nbdev keeps."
    from execnb.nbio import read_nb, write_nb
    from nbdev.clean import clean_nb
    for path in paths:
        before = path.read_text(encoding="utf8")
        nb = json.loads(before)
        clean_nb(nb)
        nb["metadata"].pop("widgets", None)
        for cell in nb["cells"]:
            for out in cell.get("outputs", []): out.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        staged = path.with_suffix(".ipynb.tmp")
        write_nb(nb, staged)
        if staged.read_text(encoding="utf8") == before: staged.unlink()
        else: staged.replace(path)


def export(paths: list[str] = ()) -> None:
    "Clean notebooks, notebooks to package, then the static index of papers, claims, commands and sections."
    clean([Path(p).resolve() for p in paths] or [p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts])
    from nbdev.doclinks import nbdev_export
    from nbdev.export import nb_export
    os.chdir(ROOT)
    if paths:
        for path in paths: nb_export(path)
    else: nbdev_export()
    subprocess.run([sys.executable, "-c", "from tokenlab.registry import write_index; write_index()"], check=True)
    write_readme()


def write_readme() -> None:
    "README.md is index.ipynb as Markdown: prose as it is, code fenced, plain-text outputs below it."
    index = NBS/"index.ipynb"
    if not index.exists(): return
    parts = ["<!-- made from nbs/index.ipynb by `make export`: do not edit -->"]
    for cell in json.loads(index.read_text(encoding="utf8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown": parts.append(source.replace("](images/", "](nbs/images/"))
        elif not {"hide", "default_exp"} & directives(source).keys(): parts.append(fenced(source, cell["outputs"]))
    staged = ROOT/"README.md.tmp"
    staged.write_text("\n\n".join(parts) + "\n", encoding="utf8")
    staged.replace(ROOT/"README.md")


def fenced(source: str, outputs: list) -> str:
    "A code cell and what it printed, as Markdown."
    code = re.sub(r"^#\|.*\n", "", source, flags=re.M).strip()
    texts = ["".join(out.get("text", out.get("data", {}).get("text/plain", ""))).strip("\n") for out in outputs]
    shown = "\n".join(t for t in texts if t)
    return f"```python\n{code}\n```" + (f"\n\n```text\n{shown}\n```" if shown else "")


def digest() -> dict[str, str]:
    "A hash of every file that `export` may write."
    files = [p for p in [ROOT/"README.md", *NBS.rglob("*.ipynb"), *PACKAGE.rglob("*")] if p.is_file() and "__pycache__" not in p.parts]
    return {str(p.relative_to(ROOT)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check() -> int:
    "Export and see whether anything moved; also no module without its notebook."
    before = digest()
    export()
    after = digest()
    moved = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    orphans = [m for m in sorted(PACKAGE.rglob("*.py")) if m.name != "__init__.py" and m.name != "_modidx.py" and not has_notebook(m)]
    for name in moved: print(f"out of step: {name}  (run `make export` and commit)")
    for module in orphans: print(f"no notebook exports {module.relative_to(ROOT)}: delete it")
    print(f"export: {len(after)} files, {len(moved)} out of step, {len(orphans)} orphans")
    return len(moved) + len(orphans)


def has_notebook(module: Path) -> bool:
    "Does the notebook exist that a generated module names in its header?"
    match = re.search(r"File to edit: (\S+?\.ipynb)", module.read_text(encoding="utf8")[:2000])
    return bool(match) and (module.parent/match[1]).resolve().exists()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["export", "check", "test", "refresh", "_one"])
    parser.add_argument("notebooks", nargs="*")
    parser.add_argument("--flags", default="", help="cells to run that are skipped otherwise: 'slow', 'cuda' or both")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time")
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    flags = set(args.flags.split())
    if args.command == "_one": return run_one(Path(args.notebooks[0]), flags, args.write) or 0
    if args.command == "export": return export(args.notebooks) or 0
    if args.command == "check": return check()
    if args.command == "test": return run_all(args.notebooks, flags, write=False, jobs=args.jobs)
    import torch
    return run_all(args.notebooks, flags | {"slow"} | ({"cuda"} if torch.cuda.is_available() else set()), write=True, jobs=1)


if __name__ == "__main__": sys.exit(min(main(), 1))
