"The tokenizer protocol: exact return, special tokens, files."
import json
from pathlib import Path
import numpy as np
import pytest, torch
from hypothesis import given, strategies as st
from tokenlab.tokenizers.core import (BYTE_ORDER, ByteTokenizer, Tokenizer, as_bytes, as_text, cut, from_chars, printable, sidecar_path, to_chars)

EOT = "<|endoftext|>"
tok = ByteTokenizer([EOT, "<|pad|>"])


@given(st.one_of(st.text(), st.binary()))
def test_bytes_come_back(x):
    data = x.encode() if isinstance(x, str) else x
    assert tok.decode_bytes(tok.encode(x)) == data
    assert tok.decode_bytes(tok.encode(x, special="allow")) == data
    ids, offsets = tok.encode_array(x)
    assert ids.tolist() == tok.encode(x) and offsets[0] == 0 and offsets[-1] == len(data)
    assert all(tok.token_bytes(int(i)) == data[a:b] for i, a, b in zip(ids, offsets, offsets[1:]))


@given(st.binary())
def test_text_form_of_bytes_is_exact(data):
    assert as_bytes(as_text(data)) == data
    assert from_chars(to_chars(data)) == data


def test_surrogate_bytes_are_not_text():
    "A lone surrogate written as three bytes is invalid UTF-8, and still comes back."
    assert tok.decode_bytes(tok.encode(b"\xed\xa0\x80")) == b"\xed\xa0\x80"
    for text in ("\ud800", "ab\udc80c"):
        with pytest.raises(ValueError, match="lone surrogate"): tok.encode(text)


def test_bytes_do_not_open_the_door_for_surrogates():
    "Encoding invalid bytes must not make the `str` that carries them acceptable."
    assert tok.encode(b"\x80") == [0x80]
    with pytest.raises(ValueError, match="lone surrogate"): tok.encode("\udc80")


def test_empty():
    assert tok.encode("") == tok.encode(b"") == [] and tok.decode([]) == "" and tok.decode_bytes([]) == b"" and tok.encode_batch([]) == []
    ids, offsets = tok.encode_array("")
    assert ids.shape == (0,) and ids.dtype == np.int32 and offsets.tolist() == [0] and offsets.dtype == np.int64


def test_special_tokens_by_permission():
    text = f"a{EOT}b<|pad|>"
    assert tok.encode(text) == list(text.encode())
    assert tok.encode(text, special="allow") == [97, 256, 98, 257]
    assert tok.encode(text, special=["<|pad|>"]) == [97, *EOT.encode(), 98, 257]
    assert tok.encode(text, special=[]) == list(text.encode())
    assert tok.encode("plain", special="forbid") == list(b"plain")
    with pytest.raises(ValueError, match="contains the special token"): tok.encode(text, special="forbid")
    with pytest.raises(ValueError, match="choose"): tok.encode(text, special="yes")
    with pytest.raises(ValueError, match="no special tokens"): tok.encode(text, special=["<|other|>"])
    assert tok.encode_batch([text], special="allow") == [[97, 256, 98, 257]]


def test_a_tokenizer_without_special_tokens_checks_the_argument_too():
    plain = ByteTokenizer()
    for special in ("ignore", "allow", "forbid", []): assert plain.encode("a<s>", special=special) == list(b"a<s>")
    with pytest.raises(ValueError, match="choose"): plain.encode("a", special="yes")
    with pytest.raises(ValueError, match="no special tokens"): plain.encode("a", special=["<s>"])


def test_longest_special_token_wins():
    t = ByteTokenizer(["<a>", "<a>b"])
    assert t.encode("<a>b<a>c", special="allow") == [257, 256, 99]


def test_decode_takes_arrays_and_tensors_and_refuses_padding():
    assert tok.decode(np.array([97, 98])) == tok.decode(torch.tensor([97, 98])) == tok.decode(iter([97, 98])) == "ab"
    assert tok.decode([97, 256], skip_special=True) == "a" and tok.decode_bytes([97, 256]) == b"a" + EOT.encode()
    for bad in (-1, 258):
        with pytest.raises(ValueError, match="not in the vocabulary"): tok.decode([97, bad])
    with pytest.raises(UnicodeDecodeError): tok.decode([0xff], errors="strict")


@pytest.mark.parametrize("names, problem", [("<s>", "a list of names"), (["<s>", "<s>"], "twice"), ([""], "empty")])
def test_bad_special_tokens(names, problem):
    with pytest.raises(ValueError, match=problem): ByteTokenizer(names)


@pytest.mark.parametrize("x, problem", [(None, "str or bytes"), (["a"], "encode_batch")])
def test_bad_input(x, problem):
    with pytest.raises(ValueError, match=problem): tok.encode(x)
    with pytest.raises(ValueError, match="several texts"): tok.encode_batch("a")


def test_eos_and_bos_by_name():
    assert (tok.eos_id, tok.bos_id) == (256, None)
    assert ByteTokenizer(["<s>", "</s>"]).bos_id == 256 and ByteTokenizer(["<s>", "</s>"]).eos_id == 257 and ByteTokenizer().eos_id is None


def test_save_and_load(tmp_path):
    path = tok.save(tmp_path)
    assert path == tmp_path/"tokenizer.json" and [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]  # no temporary files left
    for where in (path, tmp_path, str(path)):
        back = Tokenizer.load(where)
        assert type(back) is ByteTokenizer and back.tokens == tok.tokens and back.special_tokens == tok.special_tokens
    assert tok.save(tmp_path/"new"/"folder") == tmp_path/"new"/"folder"/"tokenizer.json"


@given(st.text(max_size=50))
def test_the_tokenizers_library_agrees(text):
    assert tok.to_hf().encode(text).ids == tok.encode(text, special="allow")


class Reversed(ByteTokenizer):
    "A rule that tokenizer.json cannot say."
    def sidecar(self): return {"kind": "reversed"}


def test_sidecar(tmp_path):
    path = Reversed().save(tmp_path)
    assert json.loads(sidecar_path(path).read_text()) == {"kind": "reversed"}
    with pytest.raises(ValueError, match="cannot say: kind"): Reversed().to_hf()
    with pytest.raises(ValueError, match="is a reversed tokenizer"): Tokenizer.load(path)
    ByteTokenizer().save(tmp_path)
    assert not sidecar_path(path).exists() and Tokenizer.load(path).vocab_size == 256


@pytest.mark.parametrize("content, problem", [("not json", "is not JSON"), ("[]", "no tokenizer.json"), ("{}", "no tokenizer.json"),
                                              ('{"model": {"type": "WordLevel", "vocab": []}}', "WordLevel tokenizer")])
def test_bad_files(tmp_path, content, problem):
    (tmp_path/"tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=problem): Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="give a tokenizer.json"): Tokenizer.load(tmp_path/"nowhere.json")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tok.save(tmp_path)
    before = path.read_text()
    monkeypatch.setattr(ByteTokenizer, "to_json", lambda self: {"model": object()})
    with pytest.raises(TypeError): tok.save(tmp_path)
    assert path.read_text() == before and len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_save_leaves_no_temporary_file(tmp_path, monkeypatch):
    def stop(self, target): raise OSError("disk full")
    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(OSError, match="disk full"): tok.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_subclass_must_say_how_it_cuts():
    t = Tokenizer([b"a"])
    with pytest.raises(NotImplementedError, match="how it cuts"): t.encode("a")
    with pytest.raises(ValueError, match="no tokenizer.json form"): t.to_json()
    with pytest.raises(ValueError, match="outside the 1 tokens"): Tokenizer([b"a"], special_tokens={"<s>": 1})


def test_special_token_must_not_spell_a_byte():
    with pytest.raises(ValueError, match="same spelling"): ByteTokenizer(["a"]).to_json()


@given(st.text())
def test_printable_pieces(text):
    pieces = cut(tok, text)
    assert len(pieces) == len(text.encode()) and all(c.isprintable() or c in "\n\t" for p in pieces for c in p)


def test_byte_order_is_gpt2s(data_dir):
    vocab = json.loads((data_dir/"tokenizers"/"gpt-2.json").read_text(encoding="utf8"))["model"]["vocab"]
    assert [vocab[to_chars(bytes([b]))] for b in BYTE_ORDER] == list(range(256))
    assert printable(b"\xf0\x9f a\x07") == "\\xf0\\x9f a\\x07"
