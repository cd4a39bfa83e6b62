"Corpora: ugly input, splits that stay, copies, mirrors; packing against brute force."
import gzip, json, os
from functools import partial
from pathlib import Path
import numpy as np
import pytest
import torch
from tokenlab import corpora
from tokenlab.corpora import Blocks, contents, load, manifest, pack, pack_stream, passages, split_of
from tokenlab.tokenizers.core import ByteTokenizer

EOS = "<|endoftext|>"


class Letters:
    "One token a byte, no end of text."
    def encode(self, text): return list(text.encode())
    def decode_bytes(self, ids): return bytes(ids)


def total(data): return contents(data).set_index("split").loc["all"].to_dict()


@pytest.fixture
def ugly(tmp_path):
    "A folder as people have them."
    folder = tmp_path/"my corpus"
    (folder/"sub dir").mkdir(parents=True)
    (folder/"plain.txt").write_text("plain words\n")
    (folder/"sub dir"/"copy of plain.txt").write_bytes(b"plain words  \r\n")
    (folder/"bom.txt").write_bytes("\ufeffwith a mark".encode("utf8"))
    (folder/"latin.txt").write_bytes("naïve".encode("latin-1"))
    (folder/"utf16.txt").write_bytes("wide".encode("utf-16"))
    (folder/"image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    (folder/"nothing.txt").touch()
    (folder/"blank.txt").write_text(" \n\n")
    (folder/"sub dir"/"loop").symlink_to(folder)
    (folder/"broken.txt").symlink_to(tmp_path/"gone")
    os.mkfifo(folder/"pipe")
    (folder/"rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "first row"}\n\n{"other": 1}\n{"text": "second \\u00e9"}\n{"text": "\\ud800"}\n{"te'))
    (folder/"cut.txt.gz").write_bytes(gzip.compress(b"words " * 1000)[:-20])
    (folder/".git").mkdir()
    (folder/".git"/"config").write_text("hidden")
    return folder


def test_ugly_folder(ugly, capsys):
    data = load(ugly)
    assert dict(zip(data["source"], data["text"])) == {
        "bom.txt": "with a mark", "plain.txt": "plain words\n", "rows.jsonl.gz#0": "first row", "rows.jsonl.gz#3": "second é"}
    assert total(data) == {"documents": 4, "bytes": 41, "binary": 2, "not UTF-8": 1, "unreadable": 2, "malformed": 3,
                           "not a file": 1, "empty": 2, "duplicate": 1}
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "2 binary" in err and "1 duplicate" in err and "1 not UTF-8" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path):
    (tmp_path/"a.txt").write_text("a")
    (tmp_path/"b.txt").write_text("b")
    (tmp_path/"b.txt").chmod(0)
    assert total(load(tmp_path))["unreadable"] == 1


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="has no text"): load(tmp_path)
    (tmp_path/"zero.txt").touch()
    with pytest.raises(ValueError, match="1 empty.*UTF-8 text"): load(tmp_path/"zero.txt")
    with pytest.raises(FileNotFoundError, match="no file matches"): load(str(tmp_path/"*.nope"))
    with pytest.raises(FileNotFoundError, match="no file or folder"): load(tmp_path/"nope")
    with pytest.raises(ValueError, match="unknown corpus 'shakespear'.*did you mean shakespeare"): load("shakespear")
    with pytest.raises(ValueError, match="choose from python-code"): load("qqqq")
    with pytest.raises(ValueError, match="choose from train"): load("python-code", split="validation")
    with pytest.raises(ValueError, match="no text"): load(tmp_path, streaming=True)


def test_glob_and_spaces(ugly):
    data = load(f"{ugly}/**/*plain.txt")
    assert data["source"][:] == ["plain.txt"] and total(data)["duplicate"] == 1, total(data)
    assert load(f"{ugly}/sub dir/copy*")["source"][:] == ["copy of plain.txt"]
    assert load(f"{ugly}/s*/**")["source"][:] == ["sub dir/copy of plain.txt"]
    odd = ugly/"with [brackets].txt"
    odd.write_text("in brackets")
    assert load(odd)["text"][:] == ["in brackets"]


def test_split_is_a_function_of_the_path(tmp_path):
    assert [split_of(s) for s in ("json/decoder.py", "abc.py", "typing.py")] == ["train", "valid", "test"]
    for i in range(60): (tmp_path/f"f{i}.txt").write_text(f"document {i}")
    parts = {s: set(load(tmp_path, split=s)["source"]) for s in corpora.SPLITS}
    assert set.union(*parts.values()) == set(load(tmp_path)["source"]) and sum(map(len, parts.values())) == 60
    (tmp_path/"f0.txt").unlink()
    (tmp_path/"new.txt").write_text("new")
    for name, old in parts.items(): assert set(load(tmp_path, split=name)["source"]) - {"new.txt"} == old - {"f0.txt"}


def test_split_without_documents(tmp_path):
    (tmp_path/"a.txt").write_text("one")
    other = next(s for s in corpora.SPLITS if s != split_of("a.txt"))
    with pytest.raises(ValueError, match="size=2048"): load(tmp_path, split=other)


def test_one_file_is_cut_into_passages(tmp_path):
    text = "\n\n".join(f"paragraph {i} " + "words "*(i % 90) for i in range(600))
    (tmp_path/"book.txt").write_text(text)
    data = load(tmp_path/"book.txt")
    assert "".join(data["text"]) == text and len(data) > 20 and data["source"][3] == "book.txt#3"
    assert len(load(tmp_path)) == 1 and len(load(tmp_path, size=1000)) > 100 and len(load(tmp_path/"book.txt", size=len(text))) == 1


@pytest.mark.parametrize("size", [0, -1])
def test_size_below_one(size, tmp_path):
    "A negative size ran for ever, 0 quietly meant whole files."
    (tmp_path/"a.txt").write_text("some words\n")
    for act in (lambda: passages("some words", size), lambda: passages("", size), lambda: list(corpora.documents(str(tmp_path), size=size)),
                lambda: load(tmp_path, size=size), lambda: load(tmp_path, size=size, streaming=True), lambda: corpora.corpus(str(tmp_path/"a.txt"), size=size),
                lambda: load("hub:owner/name", size=size), lambda: corpora.images("photos", size=size)):
        with pytest.raises(ValueError, match=f"size={size}: give at least 1"): act()


@pytest.mark.parametrize("name", ["no/such/folder", "gone.txt"])
def test_unknown_path_names_the_remedy(name):
    with pytest.raises(FileNotFoundError, match=f"no file or folder '{name}': check the path.*hub:"): load(name)


@pytest.mark.parametrize("seed", range(20))
def test_passages_lose_nothing(seed):
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list("ab\n\n é"), size=rng.integers(0, 300)))
    size = int(rng.integers(1, 40))
    pieces = passages(text, size)
    assert "".join(pieces) == text and all(pieces) and all(size <= len(p) <= 2*size for p in pieces[:-1])


def test_streaming_gives_the_same(ugly):
    stream = load(ugly, streaming=True)
    for _ in range(2): assert [r["source"] for r in stream] == load(ugly)["source"][:]


def test_processes_give_the_same(tmp_path):
    for i in range(200): (tmp_path/f"{i:03}.txt").write_text(f"text {i // 2}")
    one, two = load(tmp_path), load(tmp_path, processes=2)
    assert one["source"][:] == two["source"][:] and len(one) == 100 and total(one) == total(two)


def test_python_code_and_docs_never_leak():
    train = load("python-code", split="train")
    assert {"test", "tests", "idle_test"}.isdisjoint(p for s in train["source"] for p in s.split("/"))
    assert sum(len(t) for t in train["text"]) > 5e6
    shares = contents(load("python-code")).set_index("split")["bytes"]
    assert .85 < shares["train"]/shares["all"] < .95
    doc, = corpora.read_docs(next(f for f in corpora.stdlib_files() if f[1] == "json/decoder.py"))
    assert doc.source == "json/decoder.py" and "JSONDecoder.decode(self, s" in doc.text and "return obj" not in doc.text


def test_docstrings_import_nothing(tmp_path):
    code = "raise SystemExit\nif True:\n    def f(a, *, b=1):\n        'Does f.'\n"
    assert corpora.docstrings(code, "m") == "m.f(a, *, b=1)\n    Does f."
    assert corpora.docstrings("def broken(", "m") == "" and corpora.docstrings("x = 1", "m") == ""


def test_manifest(ugly):
    import hashlib
    assert dict(manifest(load(ugly)))["bom.txt"] == hashlib.sha256(b"with a mark").hexdigest()


def brute(texts, tokenizer, seq_len, eos):
    "Token by token: rows of (id, segment)."
    flat = [(t, d) for d, text in enumerate(texts) for t in tokenizer.encode(text) + ([] if eos is None else [eos])]
    out = []
    for i in range(0, len(flat), seq_len):
        row, docs = flat[i:i+seq_len], []
        for _, d in row:
            if d not in docs: docs.append(d)
        out.append([(t, docs.index(d)) for t, d in row] + [(-1, -1)]*(seq_len - len(row)))
    return out


@pytest.mark.parametrize("seed", range(25))
def test_pack_equals_brute_force(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(corpora, "chunks", partial(corpora.chunks, size=int(rng.integers(1, 80))))
    texts = ["".join(rng.choice(list("abé 語"), size=rng.integers(0 if seed % 2 else 1, 30))) for _ in range(rng.integers(1, 20))]
    tokenizer, eos = (ByteTokenizer([EOS]), ByteTokenizer([EOS]).eos_id) if seed % 2 else (Letters(), None)
    seq_len = int(rng.integers(2, 17))
    blocks, want = pack(texts, tokenizer, seq_len), brute(texts, tokenizer, seq_len, eos)
    batch = blocks[:]
    assert [list(zip(*row)) for row in zip(batch["ids"].tolist(), batch["segments"].tolist())] == want
    flat = batch["ids"].flatten()
    assert flat[flat >= 0].tolist() == [t for text in texts for t in tokenizer.encode(text) + ([] if eos is None else [eos])]
    assert blocks.nbytes_text == sum(len(t.encode()) for t in texts) and blocks.tokens == int((flat >= 0).sum())
    size = int(rng.integers(1, 5))
    streamed = list(pack_stream(iter(texts), tokenizer, seq_len, batch_size=size))
    for key in ("ids", "segments"): assert torch.equal(torch.cat([b[key] for b in streamed]), batch[key])
    assert all(len(b["ids"]) == size for b in streamed[:-1])


def test_blocks_index():
    blocks = pack(["abcdefghij"], ByteTokenizer([EOS]), 4)
    assert len(blocks) == 3 and blocks[0]["ids"].shape == (1, 4) and blocks[0]["ids"].dtype == torch.int64
    for index in ([0, 2], torch.tensor([0, 2]), np.array([0, 2]), slice(0, 3, 2)): assert blocks[index]["ids"].tolist() == blocks[[0, -1]]["ids"].tolist()
    assert blocks[[]]["ids"].shape == (0, 4)
    with pytest.raises(IndexError): blocks[3]
    assert len(list(blocks)) == 3


def test_pack_drop_last_and_errors():
    blocks = pack(["abc", "defg"], ByteTokenizer([EOS]), 6, drop_last=True)
    assert (len(blocks), blocks.tokens, blocks.nbytes_text) == (1, 6, 5)
    with pytest.raises(ValueError, match="drop_last=False"): pack(["a"], ByteTokenizer([EOS]), 60, drop_last=True)
    with pytest.raises(ValueError, match="list of documents"): pack("abc", ByteTokenizer([EOS]), 6)
    with pytest.raises(ValueError, match="seq_len=1"): pack(["abc"], ByteTokenizer([EOS]), 1)
    with pytest.raises(ValueError, match="nothing to pack"): pack([], ByteTokenizer([EOS]), 6)
    assert 256 > pack(["abc"], ByteTokenizer([EOS]), 6, eos_id=-1).ids.max() and pack(["abc"], ByteTokenizer([EOS]), 6, eos_id=0).ids[-1] == 0
    for act in (pack, lambda *a, **k: next(pack_stream(*a, **k))):
        with pytest.raises(ValueError, match="eos_id=-7"): act(["abc"], ByteTokenizer([EOS]), 6, eos_id=-7)


def test_pack_stream_errors():
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size={size}: give at least 1"): next(pack_stream(["abc"], ByteTokenizer([EOS]), 2, batch_size=size))
    for texts in ([], iter([]), [""]):
        with pytest.raises(ValueError, match="nothing to pack"): list(pack_stream(texts, Letters(), 2))
    assert len(list(pack_stream(["ab", ""], Letters(), 2))) == 1, "a stream that ends with a full batch is not empty"


def test_processes_keep_the_order():
    assert list(corpora.spread(abs, range(-40, 0), 2)) == list(range(40, 0, -1))


def test_pack_processes_give_the_same():
    texts = [chr(97 + i % 26) * 4000 for i in range(300)]
    one, two = (pack(texts, ByteTokenizer([EOS]), 100, processes=p) for p in (1, 2))
    assert np.array_equal(one.ids, two.ids) and np.array_equal(one.starts, two.starts) and one.ids.dtype == np.uint16


def test_mirrors(data_dir):
    assert "First Citizen" in load("shakespeare")["text"][0]
    assert len(load("humaneval")) == 164 and "def " in load("humaneval")["canonical_solution"][0] + load("humaneval")["text"][0]
    assert load("gsm8k", split="test")["answer"][0]
    assert load("spec-bench")["category"][0] == "writing"
    assert "droits" in dict(zip(*(load("udhr")[c][:] for c in ("source", "text"))))["udhr/fra"]
    assert "about.po" in load("pydocs-fr")["source"][0]


def zipped(files):
    "A zip archive as a code host serves it: everything below one folder."
    import io, zipfile
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items(): archive.writestr("repo-main/" + name, content)
    return out.getvalue()


@pytest.fixture
def offline_source(monkeypatch, tmp_path):
    "No mirror, an empty cache, and a public source that serves what the test gives it."
    import io
    served = {}
    monkeypatch.delenv("TOKENLAB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(next(v for k, v in served.items() if k in url)))
    return served


def test_public_declarations(offline_source):
    article = "<article><h2>A</h2><p>Free &amp; equal.</p><ol><li><p>In <b>rights</b>.</p></li><li>Too.</li></ol></article>"
    page = '<html data-code="xx" dir="rtl" lang="x"><title>Xish</title>' + article*30
    offline_source["wooorm/udhr"] = zipped({"declaration/xxx.html": page, "declaration/part.html": page.replace(article, "", 1), "readme.md": "no"})
    data = corpora.parallel("udhr")
    assert len(data) == 30 and data[1] == dict(code="xxx", name="Xish", dir="rtl", article=2, text="Free & equal.\nIn rights.\nToo.", source="udhr/xxx#2")
    assert len(load("udhr")) == 1


def test_public_manuals(offline_source):
    po = 'msgid ""\nmsgstr "Language: fr"\n\n#: a.rst:3\nmsgid ""\n"One \\"two\\"\\n"\n"three"\nmsgstr "Un"\n\n#, fuzzy, python-format\nmsgid "a"\nmsgstr "b"\n\nmsgid "x"\nmsgstr "x"\n'
    offline_source["python-docs-fr"] = zipped({"library/a.po": po, "b.po": 'msgid "yes"\nmsgstr "oui"', "README": ""})
    assert corpora.parallel("pydocs-fr").to_list() == [dict(en="yes", text="oui", source="pydocs-fr/b.po"),
                                                      dict(en='One "two"\nthree', text="Un", source="pydocs-fr/library/a.po")]


def test_public_pictures_and_sound(offline_source):
    import io, wave
    from PIL import Image
    jpeg, sound = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (32, 32), (200, 10, 10)).save(jpeg, "JPEG")
    with wave.open(sound, "wb") as file:
        file.setnchannels(1); file.setsampwidth(2); file.setframerate(8000); file.writeframes(np.array([0, 2**14, -2**15], "<i2").tobytes())
    offline_source["CIFAR-10"] = zipped({f"{part}/{name}/000{i}.jpg": jpeg.getvalue() for part in ("train", "test") for name in ("cat", "ship") for i in range(3)})
    offline_source["spoken-digit"] = zipped({"recordings/7_theo_2.wav": sound.getvalue(), "recordings/7_theo_9.wav": sound.getvalue(), "README.md": "no"})
    found = corpora.images("cifar10", split="test")
    assert found.pixels.shape == (6, 32, 32, 3) and found.labels.tolist() == [3]*3 + [8]*3 and abs(int(found.pixels[0, 0, 0, 0]) - 200) < 5
    row, = corpora.speech()
    assert row["samples"].tolist() == [0, .5, -1] and (row["digit"], row["speaker"], row["take"], row["rate"]) == (7, "theo", 2, 8000)


def test_images(data_dir, tmp_path, capsys):
    parts = [corpora.images("cifar10", split=s) for s in corpora.SPLITS]
    assert [len(p.pixels) for p in parts] == [7606, 394, 2000] and parts[0].pixels.dtype == np.uint8 and set(parts[2].labels) == set(range(10))
    assert sum(len(corpora.images("digits", split=s).pixels) for s in corpora.SPLITS) == 1797
    assert corpora.images("digits", size=16).pixels.shape == (1797, 16, 16, 1)
    from PIL import Image
    for name in ("cats/a.png", "dogs/b.png"):
        (tmp_path/name).parent.mkdir()
        Image.new("RGB" if "a" in name else "L", (30, 20), 100).save(tmp_path/name)
    (tmp_path/"cats"/"broken.png").write_bytes(b"\x89PNG")
    found = corpora.images(tmp_path, size=8)
    assert found.pixels.shape == (2, 8, 8, 3) and found.names == ("cats", "dogs") and "skipped: 1" in capsys.readouterr().err
    (tmp_path/"empty").mkdir()
    with pytest.raises(ValueError, match="no readable picture"): corpora.images(tmp_path/"empty")
    with pytest.raises(ValueError, match="choose digits"): corpora.images("mnist")


def test_images_skip_what_is_no_file(tmp_path):
    "Opening a pipe would wait for ever for a writer, so it happens in a process with a time limit."
    import subprocess, sys
    from PIL import Image
    Image.new("RGB", (8, 8)).save(tmp_path/"a.png")
    os.mkfifo(tmp_path/"pipe.png")
    (tmp_path/"gone.png").symlink_to(tmp_path/"nowhere")
    code = "import sys; from tokenlab.corpora import images; print(images(sys.argv[1], size=4).pixels.shape)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=20)
    assert done.stdout == "(1, 4, 4, 3)\n" and "1 pictures; skipped: 2" in done.stderr


def test_unknown_timbre():
    with pytest.raises(ValueError, match="'flute'.*sine, square, saw, organ"): corpora.tone(69, "flute")


def test_speech_and_tones(data_dir):
    data = corpora.speech()
    assert len(data) == 300 and set(data["digit"]) == set(range(10)) and len(set(data["speaker"])) == 6 and abs(data[0]["samples"]).max() <= 1
    assert sum(len(corpora.speech(split=s)) for s in corpora.SPLITS) == 300
    one, two, other = corpora.tones(5, seed=1), corpora.tones(5, seed=1), corpora.tones(5, seed=2)
    assert np.array_equal(one[3]["samples"], two[3]["samples"]) and not np.array_equal(one[3]["samples"], other[3]["samples"])


def test_parallel(data_dir):
    data = corpora.parallel("udhr", languages=["fra", "eng"])
    assert len(data) == 60 and data[0]["text"].startswith("Tous les") and len(corpora.parallel("udhr")) == 521*30
    assert all(len(set(t.split("\n"))) == len(t.split("\n")) for t in data["text"]), "paragraphs are not repeated"
    assert {"en", "text", "source"} == set(corpora.parallel("pydocs-ja").column_names)
    with pytest.raises(ValueError, match="no language engl.*did you mean eng"): corpora.parallel("udhr", languages=["engl"])


def test_mirror_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    for folder in (None, str(tmp_path)):
        monkeypatch.delenv("TOKENLAB_DATA") if folder is None and "TOKENLAB_DATA" in os.environ else monkeypatch.setenv("TOKENLAB_DATA", folder or "")
        with pytest.raises(ConnectionError, match="TOKENLAB_DATA.*karpathy"): load("shakespeare")


def test_public_source_is_kept(monkeypatch, tmp_path):
    import io
    asked = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TOKENLAB_DATA", str(tmp_path/"empty"))
    row = json.dumps(dict(task_id="HumanEval/0", prompt="def f():", test="", entry_point="f", canonical_solution="pass"))
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: asked.append(url) or io.BytesIO(gzip.compress(row.encode())))
    for _ in range(2): assert load("humaneval")["text"][:] == ["def f():"]
    assert len(asked) == 1 and (tmp_path/"tokenlab"/"prompts"/"humaneval.jsonl").exists()


def test_hub(monkeypatch):
    import datasets
    rows = datasets.Dataset.from_dict({"content": [f"row {i}" for i in range(100)], "n": range(100)}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.IterableDatasetDict(train=rows))
    monkeypatch.setattr(corpora, "at_hand", lambda: None)
    data = list(load("hub:someone/something", split="valid"))
    assert data and all(r.keys() == {"text", "source"} and split_of(r["source"]) == "valid" for r in data)
    assert len(list(load("hub:someone/something"))) == 100
    with pytest.raises(ValueError, match="choose column= from content, n"): load("hub:someone/something", column="body")
    def offline(*a, **k): raise ConnectionError("no route")
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConnectionError, match="go online"): load("hub:someone/something")
    def missing(*a, **k): raise datasets.exceptions.DatasetNotFoundError("no such")
    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(FileNotFoundError, match="check the id"): load("hub:someone/something")


def test_hub_own_splits(monkeypatch):
    import datasets
    parts = {n: datasets.Dataset.from_dict({"text": [f"{n} {i}" for i in range(5)]}).to_iterable_dataset() for n in ("train", "validation")}
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.IterableDatasetDict(parts))
    monkeypatch.setattr(corpora, "at_hand", lambda: None)
    assert [r["text"] for r in load("hub:a/b", split="valid")] == [f"validation {i}" for i in range(5)]
    assert [r["text"] for r in load("hub:a/b", split="train")] == [f"train {i}" for i in range(5)]


def test_hub_offline_is_said_at_once(monkeypatch):
    import time
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="no network.*go online"): load("hub:someone/something")
    assert time.perf_counter() - start < 5


def test_import_is_light():
    import subprocess, sys
    code = "import sys, tokenlab.corpora; print([m for m in ('torch', 'datasets', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
