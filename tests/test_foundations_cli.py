"The command line: typed functions become commands, nothing is imported to list them, and failure has one line and a status."
import json
import os
import shlex
import signal
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
import numpy as np
import pandas as pd
import pytest
from tokenlab import __version__, registry
from tokenlab.cli import known, main, show, table_text
from tokenlab.registry import Entry, command


class Mode(Enum): fast, slow = "fast", "slow"


@command("zz nested train")
def train(files:list[Path],         # Text files
          vocab_size:int=4096,      # Tokens to end with
          *, pattern:str="gpt2",    # How words are cut
          out:Path|None=None,       # Where to write
          fold_case:bool=False,     # Fold case first
          bytes_:bool=True,         # Fall back to bytes
          special:tuple[str, ...]=("<eos>",), # Special tokens
          limits:tuple[float, float]=(0., 1.), # From, to
          seed:int|str=0,           # Number, or a word
          mode:Mode=Mode.fast,      # How
          kind:Literal["bpe", "unigram"]="bpe", # Which
          device:"torch.device|None"=None)->dict: # noqa: F821  What was given
    """Train a tokenizer.

    A long paragraph that is filled to the width of the terminal, whatever line breaks the author of the docstring
    happened to choose.

        tokenlab zz nested train a.txt   # exactly as
          written   here
    """
    return dict(files=[type(f).__name__ + ":" + str(f) for f in files], vocab_size=vocab_size, pattern=pattern, out=out and type(out).__name__,
                fold_case=fold_case, bytes_=bytes_, special=special, limits=limits, seed=seed, mode=mode.name, kind=kind, device=device)


@command("zz table")
def table(rows:int=2, *, index:bool=False):
    "A table without an annotation."
    df = pd.DataFrame({"name": ["a", "分"], "n": [123456, 7], "x": [1/3, np.nan]})[:rows]
    return df.set_index("name") if index else df


@command("zz fail")
def fail(how:str, *, json:bool=False)->str: # Which exception
    "Fail."
    if how == "file": open("no/such/file")
    raise {"value": ValueError("size is 3;\n   at least 256"), "missing": FileNotFoundError("no corpus 'x'"), "import": ModuleNotFoundError("No module named 'peer'", name="peer"),
           "exists": FileExistsError(17, "File exists", "out"), "rights": PermissionError(13, "Permission denied", "out"), "net": ConnectionError("the hub is silent:\n go online"),
           "refused": ConnectionRefusedError(111, "Connection refused"), "late": TimeoutError("timed out"), "disk": OSError(28, "No space left on device"),
           "http": HTTPError("http://x.org", 404, "Not Found", None, None), "bare": OSError(), "nan": FloatingPointError("the loss is nan in step 3: lower lr"),
           "bug": KeyError("internal"), "sum": ZeroDivisionError("division by zero"), "stop": KeyboardInterrupt(), "empty": ValueError()}[how]


@command("zz required")
def required(*, model:str)->str: # Folder
    "An option without a default."
    return model


def run(line, capsys):
    with pytest.raises(SystemExit) as e: main(shlex.split(line))
    out, err = capsys.readouterr()
    return e.value.code or 0, out, err


def test_arguments_and_options_arrive_typed(capsys):
    status, out, _ = run("zz nested train a.txt b.txt --vocab-size 300 --out o --fold-case --no-bytes --special x --special y --limits 1 2.5 --seed 7 --mode slow --kind unigram", capsys)
    assert status == 0 and json.loads(out) == dict(files=["PosixPath:a.txt", "PosixPath:b.txt"], vocab_size=300, pattern="gpt2", out="PosixPath", fold_case=True, bytes_=False,
                                                   special=["x", "y"], limits=[1, 2.5], seed=7, mode="slow", kind="unigram", device=None)


def test_what_is_not_given_keeps_the_function_s_default(capsys):
    status, out, _ = run("zz nested train a.txt --seed word", capsys)
    made = json.loads(out)
    assert status == 0 and made["seed"] == "word" and made["special"] == ["<eos>"] and made["out"] is None and made["bytes_"] is True and made["mode"] == "fast"


def test_help_teaches(capsys):
    status, out, _ = run("zz nested train --help", capsys)
    flat = " ".join(out.split())
    assert status == 0 and "Train a tokenizer." in out and "tokenlab zz nested train [OPTIONS] {files}..." in flat.replace("FILES...", "{files}...")
    assert "a.txt   # exactly as\n" in out and "  written   here" in out  # verbatim
    assert "whatever line breaks the author of the docstring happened to choose." in flat  # filled
    for text in ("--vocab-size", "Tokens to end with", "[default: 4096]", "--fold-case", "--no-fold-case", "--bytes", "[default: gpt2]", "Special tokens", "--json"): assert text in flat, text
    assert "--device" not in out and "traceback" not in out
    assert "--json" not in run("zz required --help", capsys)[1]


def test_root_help_lists_everything_without_importing(capsys, monkeypatch):
    monkeypatch.setattr(registry, "LIVE", registry.LIVE)
    ghost = Entry("command", "zz ghost", "tokenlab.no_such_module", "ghost", "A command whose module cannot be imported.")
    monkeypatch.setattr("tokenlab.cli.registered", lambda kind: [*registry.registered(kind), ghost])
    status, out, _ = run("--help", capsys)
    assert status == 0
    for text in ("papers", "claims", "zz nested train", "Train a tokenizer.", "zz ghost", "cannot be imported."): assert text in " ".join(out.split()), text
    status, out, err = run("zz ghost", capsys)
    assert status == 1 and "No module named 'tokenlab.no_such_module'" in err and "Traceback" not in err and len(err.splitlines()) == 1
    assert run("papers --stage mixers", capsys)[0] == 0


def test_every_command_of_the_package_can_be_built(capsys):
    for words, entry in known().items():
        if not entry.module.startswith("tokenlab."): continue
        status, out, _ = run(" ".join(words) + " --help", capsys)
        assert status == 0 and entry.doc.split()[0] in out, words
        assert f"Usage: tokenlab {' '.join(words)}" in out, f"{words} is hidden by a shorter command"


def test_groups_list_their_commands(capsys):
    status, out, err = run("zz --help", capsys)
    assert status == 0 and "nested train" in out and "A table without an annotation." in out and "papers" not in out
    status, out, err = run("zz nested", capsys)
    assert "Train a tokenizer." in out + err


def test_tables_are_lined_up_and_json_is_exact(capsys):
    assert run("zz table", capsys)[1] == "name        n       x\na     123,456  0.3333\n分          7       –\n"
    assert json.loads(run("zz table --json", capsys)[1]) == [{"name": "a", "n": 123456, "x": 1/3}, {"name": "分", "n": 7, "x": None}]
    assert json.loads(run("zz table --json --index", capsys)[1])[0]["name"] == "a"
    assert run("zz table --rows 0", capsys)[1] == "name  n  x\n(no rows)\n"
    assert json.loads(run("zz table --rows 0 --json", capsys)[1]) == []


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_tables_fit_the_terminal_and_lose_no_word(width):
    df = pd.DataFrame({"slug": ["a", "b"], "title": ["many words that go on and on", "x"], "note": ["another column of some words", "y"], "n": [1, 2]})
    text = table_text(df, width=width)
    assert max(map(len, text.splitlines())) <= max(width, 37)  # 12 + 12 is as narrow as text columns get
    for word in ("many", "another", "words", "on"): assert word in text


def test_show_kinds_of_results(capsys):
    for result, text in ((None, ""), ("text", "text\n"), (Path("a"), "a\n"), ({"a": 1}, '{\n "a": 1\n}\n'), ([1], "[\n 1\n]\n")):
        show(result)
        assert capsys.readouterr().out == text


@pytest.mark.parametrize("how,status,said", [
    ("value", 1, "tokenlab: size is 3; at least 256\n"), ("missing", 1, "tokenlab: no corpus 'x'\n"), ("file", 1, "tokenlab: no/such/file: no such file or directory\n"),
    ("exists", 1, "tokenlab: out: file exists\n"), ("rights", 1, "tokenlab: out: permission denied\n"), ("net", 1, "tokenlab: the hub is silent: go online\n"),
    ("refused", 1, "tokenlab: connection refused\n"), ("late", 1, "tokenlab: timed out\n"), ("disk", 1, "tokenlab: no space left on device\n"),
    ("http", 1, "tokenlab: http://x.org: HTTP Error 404: Not Found\n"), ("bare", 1, "tokenlab: OSError\n"), ("nan", 1, "tokenlab: the loss is nan in step 3: lower lr\n"),
    ("empty", 1, "tokenlab: ValueError\n"), ("stop", 130, "")])
def test_errors_are_one_line_and_a_status(how, status, said, capsys):
    assert run(f"zz fail {how}", capsys) == (status, "", said)


def test_missing_package_names_the_remedy(capsys):
    status, _, err = run("zz fail import", capsys)
    assert status == 1 and "No module named 'peer'" in err and "pip install" in err


@pytest.mark.parametrize("line", ["--traceback zz fail value", "zz fail value --traceback"])
def test_traceback_on_request(line):
    with pytest.raises(ValueError, match="at least 256"): main(shlex.split(line))


def test_traceback_by_environment(monkeypatch, capsys):
    monkeypatch.setenv("TOKENLAB_DEBUG", "0")
    assert run("zz fail value", capsys)[0] == 1
    monkeypatch.setenv("TOKENLAB_DEBUG", "1")
    with pytest.raises(ValueError): main(["zz", "fail", "value"])


@pytest.mark.parametrize("how,error", [("bug", KeyError), ("sum", ZeroDivisionError)])
def test_a_bug_is_not_hidden(how, error):
    with pytest.raises(error): main(["zz", "fail", how])


@pytest.mark.parametrize("line,said", [
    ("paper", "Did you mean papers?"), ("zz nested trian", "Did you mean zz nested train?"), ("train", "zz nested train"), ("qqqqqq", "tokenlab --help"),
    ("zz nested train", "files"), ("zz nested train a --vocab-size many", "--vocab-size"), ("zz nested train a --nope", "--nope"), ("zz required", "--model"),
    ("zz nested train a --kind x", "unigram")])
def test_usage_errors_have_status_2(line, said, capsys):
    status, out, err = run(line, capsys)
    assert status == 2 and said.lower() in err.lower() and out == ""


def test_version(capsys): assert run("--version", capsys)[:2] == (0, f"tokenlab {__version__}\n")


LINES = """from tokenlab.cli import main
from tokenlab.registry import command
@command("zz lines")
def lines(n:int)->str:
    "Lines with signs."
    return "– 分 a line\\n"*n
@command("zz prints")
def prints(n:int): print("x\\n"*n)
main()"""


def process(*args, **env):
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # as in a user's shell
    return subprocess.Popen([sys.executable, "-c", LINES, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered | env)


@pytest.mark.parametrize("n", ["1", "100", "100000"])
@pytest.mark.parametrize("name", ["lines", "prints"])
def test_a_reader_that_leaves_is_no_error(name, n):
    p = process("zz", name, n)
    p.stdout.close()
    assert p.stderr.read() == "" and p.wait(30) == 141
    p.stderr.close()


def test_closed_stdout_is_no_error():
    done = subprocess.run(["sh", "-c", f"{shlex.quote(sys.executable)} -c 'from tokenlab.cli import main; main()' papers >&-"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_terminal_without_the_signs_still_gets_its_lines():
    out, err = process("zz", "lines", "1", PYTHONIOENCODING="ascii", PYTHONUTF8="0").communicate(timeout=60)
    assert (out.strip(), err) == ("? ? a line", "")


def test_help_imports_no_stage():
    code = "import sys\nfrom tokenlab.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sorted(m for m in sys.modules if m.startswith('tokenlab') or m in ('torch', 'pandas', 'numpy', 'rich')))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    assert said == "tokenlab tokenlab.cli tokenlab.registry"


def test_shell_completion_knows_commands_and_options():
    complete = lambda line, at: process(_TOKENLAB_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(at)).communicate(timeout=60)[0].split()
    assert "papers" in complete("tokenlab pap", 1)
    assert {"--stage", "--status"} <= set(complete("tokenlab papers --st", 2))


def test_interrupting_a_process_gives_130(tmp_path):
    code = ("import signal, time, tokenlab.cli as c\nfrom tokenlab.registry import command\nsignal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background job ignores it\n@command('wait')\ndef wait():\n    'Wait.'\n    print('ready', flush=True)\n    time.sleep(60)\n"
            "c.main(['wait'])")
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "ready\n"
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=30)
    assert p.returncode == 130 and "Traceback" not in err
