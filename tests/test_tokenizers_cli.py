"The tokenizer commands: from files to ids and back, options by algorithm, colours, errors of one line."
import io, re, shlex
import pytest, tokenizers
from tokenlab.cli import main
from tokenlab.tokenizers import cli
from tokenlab.tokenizers.cli import ALGORITHMS, installed, open_tokenizer, shown, trainer
from tokenlab.tokenizers.core import Tokenizer

TEXT = "\n".join(f"def function_{i}(self, value): return self.value + {i} # by the way, as well as the others" for i in range(300))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path/"code.txt").write_text(TEXT, encoding="utf8")
    (tmp_path/"empty.txt").touch()
    for name in ("noise.bin", "noise.tiktoken"): (tmp_path/name).write_bytes(bytes(range(255, 0, -1))*3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line, capsys):
    "Exit status, output, errors."
    with pytest.raises(SystemExit) as e: main(shlex.split(line))
    out = capsys.readouterr()
    return e.value.code or 0, out.out, out.err


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a not in ("domain", "lib")])
@pytest.mark.filterwarnings("ignore")
def test_round_trip(algorithm, folder, capsys):
    if algorithm not in installed(): pytest.skip(f"{algorithm} is not installed")
    status, out, err = run(f"tokenizer train code.txt --algorithm {algorithm} --vocab-size 560 --out t.json --special-tokens '<|endoftext|>'", capsys)
    assert (status, out[:6]) == (0, "t.json"), err
    tok = Tokenizer.load(folder/"t.json")
    assert "<|endoftext|>" in tok.special_tokens
    status, out, _ = run("tokenizer encode t.json 'self.value + 17'", capsys)
    assert list(map(int, out.split())) == tok.encode("self.value + 17")
    assert run(f"tokenizer decode t.json {out.strip()}", capsys)[1] == "self.value + 17\n"


def test_options_reach_the_trainer(folder, capsys):
    run("tokenizer train code.txt --vocab-size 300 --out p.json --pattern o200k --min-frequency 3", capsys)
    assert Tokenizer.load(folder/"p.json").pattern == "o200k"
    run("tokenizer train code.txt --algorithm superbpe --vocab-size 300 --out s.json --transition .95", capsys)
    assert any(b" " in t.strip() for t in Tokenizer.load(folder/"s.json").tokens[280:])


@pytest.mark.parametrize("algorithm", ["bpe", "superbpe", "unigram", "wordpiece", "character"])
@pytest.mark.filterwarnings("ignore")
def test_digit_groups_are_learnt_and_kept(algorithm, folder, capsys):
    (folder/"sums.txt").write_text("".join(f"{i} + 1234567 = {i + 1234567}, as shown\n" for i in range(100000, 100400)))
    for digits, groups in [("single", ["1", "2", "3", "4", "5", "6", "7"]), ("l2r", ["123", "456", "7"]), ("r2l", ["1", "234", "567"])]:
        status, _, err = run(f"tokenizer train sums.txt --algorithm {algorithm} --digits {digits} --vocab-size 620 --out d.json", capsys)
        assert status == 0, err
        tok = Tokenizer.load(folder/"d.json")
        numbers = [t for t in tok.tokens if any(48 <= b < 58 for b in t) and t not in tok.special_tokens]
        assert tok.pattern.digits == digits and max(map(len, numbers)) <= (1 if digits == "single" else 3)
        ends = {sum(map(len, groups[:i])) for i in range(1, len(groups) + 1)}
        parts = [tok.decode_bytes([i]) for i in tok.encode("1234567")]
        assert ends <= {sum(map(len, parts[:i])) for i in range(1, len(parts) + 1)} and b"".join(parts) == b"1234567"
        assert algorithm != "bpe" or parts == [g.encode() for g in groups]


def test_digit_groups_go_with_a_pattern(folder, capsys):
    run("tokenizer train code.txt --vocab-size 300 --out p.json --pattern o200k --digits r2l", capsys)
    pattern = Tokenizer.load(folder/"p.json").pattern
    assert (pattern.pattern, pattern.digits) == ("o200k", "r2l")


@pytest.mark.parametrize("line, said", [
    ("tokenizer train code.txt --vocab-size 300 --out x.json --algorithm bqe", "no algorithm 'bqe': choose from bpe"),
    ("tokenizer train code.txt --vocab-size 300 --out x.json --transition .5", "bpe has no option --transition"),
    ("tokenizer train missing.txt --vocab-size 300 --out x.json", "missing.txt"),
    ("tokenizer train code.txt --vocab-size 30 --out x.json", "vocab_size 30 is too small"),
    ("tokenizer train code.txt --vocab-size 300 --out code.txt", "code.txt is a file"),
    ("tokenizer train code.txt --vocab-size 300 --out code.txt/x.json", "code.txt is a file"),
    ("tokenizer train code.txt --vocab-size 300 --out x.json --pattern gpt5", "no pattern 'gpt5': choose from gpt2"),
    ("tokenizer train code.txt --vocab-size 300 --out x.json --digits four", "choose single, l2r, r2l"),
    ("tokenizer train code.txt --vocab-size 300 --out x.json --digits r2l --algorithm lib", "lib does not cut text by a pattern"),
    ("tokenizer train code.txt --vocab-size 300 --out x.json --digits r2l --algorithm supertoken", "supertoken does not cut"),
    ("tokenizer train empty.txt --vocab-size 300 --out x.json", "has no text"), ("tokenizer train noise.bin --vocab-size 300 --out x.json", "skipped: 1"),
    ("tokenizer convert noise.bin x.json", "is not JSON"), ("tokenizer convert noise.tiktoken x.json", "line 1"),
    ("tokenizer encode nowhere.json x", "nowhere.json"), ("tokenizer encode lab-bse x", "lab model"),
    ("tokenizer decode lab-base 1 2 three", "'three' is no id"), ("tokenizer decode lab-base 99999999", "99999999"),
    ("tokenizer encode lab-base '<|endoftext|>' --special forbid", "special token")])
def test_errors_are_one_line(line, said, folder, capsys):
    status, out, err = run(line, capsys)
    assert status == 1 and said in err and err.startswith("tokenlab: ") and err.count("\n") == 1
    assert not (folder/"x.json").exists()


def test_missing_algorithm(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "later", ("not_yet", "train"))
    with pytest.raises(ValueError, match="'later' is not in this installation"): trainer("later")
    monkeypatch.setitem(ALGORITHMS, "half", ("bpe", "train_nothing"))
    with pytest.raises(ValueError, match="has no train_nothing"): trainer("half")


def test_nothing_is_imported_beforehand():
    import subprocess, sys
    code = "import sys, tokenlab.tokenizers.cli; print([m for m in ('tokenlab.tokenizers.superbpe', 'tokenlab.tokenizers.lib', 'torch', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_standard_input(folder, capsys, monkeypatch):
    class Pipe: buffer = io.BytesIO("naïve\n".encode())
    monkeypatch.setattr(cli.sys, "stdin", Pipe)
    ids = run("tokenizer encode lab-base -", capsys)[1]
    assert open_tokenizer("lab-base").decode(map(int, ids.split())) == "naïve\n"


def test_training_from_standard_input(folder, capsys, monkeypatch):
    class Pipe: buffer = io.BytesIO(TEXT.encode())
    monkeypatch.setattr(cli.sys, "stdin", Pipe)
    assert run("tokenizer train - --vocab-size 300 --out piped.json", capsys)[0] == 0
    run("tokenizer train code.txt --vocab-size 300 --out named.json", capsys)
    assert (folder/"piped.json").read_text() == (folder/"named.json").read_text()
    Pipe.buffer = io.BytesIO(b"abc\xff")
    status, _, err = run("tokenizer train - --vocab-size 300 --out x.json", capsys)
    assert status == 1 and "byte 3 is not UTF-8" in err and not (folder/"x.json").exists()


def test_a_warning_is_one_line(folder, capsys):
    (folder/"short.txt").write_text("abc abc")
    status, out, err = run("tokenizer train short.txt --vocab-size 300 --out s.json", capsys)
    assert status == 0 and err.startswith("tokenlab: the merges ran out") and err.count("\n") == 1


def test_help_teaches(capsys):
    out = run("tokenizer train --help", capsys)[1]
    assert all(f"\n      {name} " in out for name in ALGORITHMS) and "tokenlab tokenizer train notes/*.md" in out


def test_show():
    tok, text = open_tokenizer("lab-base"), "for x in y:\n    print(x)"
    plain, colored = repr(shown(tok, text)), repr(shown(tok, text, color=True))
    n = len(tok.encode(text))
    assert plain.split("\n")[-1].startswith(f"{n} tokens, 24 bytes") and plain.count("|") == n - 1
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain.replace("|", "")
    assert shown(tok, text)._repr_html_().count("<span") == n
    assert "0 tokens" in repr(shown(tok, ""))


def test_file_and_bytes(folder, capsys):
    (folder/"raw.bin").write_bytes(b"\xff\xfe abc")
    ids = run("tokenizer encode lab-base raw.bin --file", capsys)[1]
    assert open_tokenizer("lab-base").decode_bytes(map(int, ids.split())) == b"\xff\xfe abc"


def test_convert(folder, capsys):
    status, out, err = run("tokenizer convert lab-base copy.json", capsys)
    assert status == 0 and "copy.json" in out
    theirs = tokenizers.Tokenizer.from_file(str(folder/"copy.json"))
    assert theirs.encode(TEXT).ids == open_tokenizer("lab-base").encode(TEXT)
    run("tokenizer train code.txt --vocab-size 400 --out t.json", capsys)
    assert run("tokenizer convert t.json t.tiktoken", capsys)[0] == 0
    assert run("tokenizer convert t.tiktoken u.json --pattern gpt2", capsys)[0] == 0
    assert Tokenizer.load(folder/"u.json").encode(TEXT) == Tokenizer.load(folder/"t.json").encode(TEXT)


def test_published(data_dir, capsys):
    ids = run("tokenizer encode gpt-2 'hello world'", capsys)[1]
    assert ids.split() == ["31373", "995"]
