"The lab models: what ships loads anywhere, was trained on the training split alone, and predicts better than the baselines."
import json, time
from pathlib import Path
from statistics import median
import pytest, torch
from tokenlab import corpora, lab
from tokenlab.tokenizers.core import ByteTokenizer

NAMES = ["lab-base", "lab-draft"]


def test_both_are_there_and_small():
    assert lab.lab_names() == NAMES
    sizes = [sum(p.stat().st_size for p in lab.lab_folder(n).iterdir()) for n in NAMES]
    assert max(sizes) <= 12e6 and sum(sizes) <= 40e6
    assert {p.suffix for n in NAMES for p in lab.lab_folder(n).iterdir()} == {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("name", NAMES)
def test_loads_fast_and_equals_transformers(name):
    transformers = pytest.importorskip("transformers")
    lm, tokenizer = lab.load_lab(name)
    times = []
    for _ in range(5):
        start = time.process_time()
        lab.load_lab(name)
        times.append(time.process_time() - start)
    assert median(times) < .5
    ids = torch.tensor([tokenizer.encode("class Node:\n    def __init__(self")])
    peer = transformers.AutoModelForCausalLM.from_pretrained(lab.lab_folder(name), dtype=torch.float32)
    with torch.inference_mode(): torch.testing.assert_close(lm.eval()(ids).logits, peer.eval()(ids).logits, atol=1e-4, rtol=0)
    assert lm.config.eos_id == tokenizer.eos_id == tokenizer.vocab_size - 1


def test_stored_as_bfloat16_and_loaded_as_asked():
    assert lab.load_lab("lab-draft")[0].dtype == torch.float32
    assert lab.load_lab("lab-draft", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_the_two_share_their_tokenizer():
    text = "def f(x):\n    return x + 1  # äöü 漢字\n"
    (_, a), (_, b) = map(lab.load_lab, NAMES)
    assert a.encode(text) == b.encode(text) and a.decode(a.encode(text)) == text


@pytest.mark.parametrize("name", NAMES)
def test_nothing_held_out_was_trained_on(name):
    manifest = json.loads((lab.lab_folder(name)/"manifest.json").read_text(encoding="utf8"))
    assert set(manifest) == set(lab.CORPORA)
    for rows in manifest.values():
        assert len(rows) > 100 and all(corpora.split_of(source) == "train" and len(sha) == 64 for source, sha in rows)


def test_predicts_held_out_code_better_than_xz_and_the_draft_is_between():
    from tokenlab.baselines import xz_bits_per_byte
    from tokenlab.lm import bits_per_byte
    texts = sorted(corpora.load("python-code", split="valid")["text"], key=len)[5:12]
    bits = {name: bits_per_byte(*lab.load_lab(name), texts, stride=512) for name in NAMES}
    assert bits["lab-base"] < bits["lab-draft"] and bits["lab-base"] < .8*xz_bits_per_byte(texts)


def test_stored_measurement_belongs_to_the_weights_shipped():
    folder = Path(__file__).parents[1]/"results"/"lab"
    if not folder.is_dir(): pytest.skip("no results/lab here: measurements are kept in the repository")
    for name, found in lab.lab_report(folder).items():
        assert found["parameters"] == sum(p.numel() for p in lab.load_lab(name)[0].parameters())
        assert f"{found['bits_per_byte']['all']:.3f}" in (lab.lab_folder(name)/"README.md").read_text(encoding="utf8")


def test_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match="choose from lab-draft"): lab.load_lab("lab-draf")


def test_a_small_pair_is_trained_resumed_and_saved(tmp_path, monkeypatch):
    tokenizer = ByteTokenizer(["<|endoftext|>"])
    blocks = corpora.pack(["the cat sat on the mat. "*40]*8, tokenizer, 64, drop_last=True)
    monkeypatch.setattr(lab, "SHAPES", {"lab-base": dict(dim=32, n_layers=2, n_heads=2), "lab-draft": dict(dim=16, n_layers=1, n_heads=1)})
    monkeypatch.setattr(lab, "prepare", lambda out: (blocks, tokenizer, {"x": []}))
    for name in NAMES: lab.train_lab(name, out=tmp_path, steps=40, compile=False)
    base, draft = (lab.load_from(tmp_path/n)[0] for n in NAMES)
    random = lab.new_lab("lab-draft", tokenizer, seed=1)
    ids = blocks[[0, 1]]["ids"]
    assert lab.overlap(base, draft, ids) > .1 + lab.overlap(base, random, ids)
    before = (tmp_path/"lab-base"/"model.safetensors").read_bytes()
    lab.train_lab("lab-base", out=tmp_path, steps=40, compile=False)          # nothing left to do: the same weights again
    assert (tmp_path/"lab-base"/"model.safetensors").read_bytes() == before
