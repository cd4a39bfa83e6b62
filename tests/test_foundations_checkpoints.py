"Checkpoints: both directions against transformers, and every way a folder can be wrong."
import json, os, subprocess, sys
from dataclasses import replace
import pytest, torch
from safetensors.torch import load_file, save_file
from tokenlab.checkpoints import from_hf, load_lm, save_lm, to_hf
from tokenlab.lm import LM, LMConfig

transformers = pytest.importorskip("transformers")
BASE = LMConfig(97, dim=32, n_layers=4, n_heads=4, n_kv_heads=2, mlp_dim=48, max_len=64, norm_eps=1e-6, rope_theta=5e4, bos_id=1, eos_id=2)
LLAMA3 = {"rope_type": "llama3", "factor": 8., "low_freq_factor": 1., "high_freq_factor": 4., "original_max_position_embeddings": 16}
SHAPES = {
    "llama": ({}, "LlamaForCausalLM"), "llama-untied": (dict(tied=False), "LlamaForCausalLM"), "llama-mha": (dict(n_kv_heads=4), "LlamaForCausalLM"),
    "llama-head_dim": (dict(head_dim=16), "LlamaForCausalLM"), "llama-eos-list": (dict(eos_id=(2, 5)), "LlamaForCausalLM"),
    "llama-linear": (dict(rope_scaling={"rope_type": "linear", "factor": 4.}), "LlamaForCausalLM"), "llama3": (dict(rope_scaling=LLAMA3), "LlamaForCausalLM"),
    "mistral": (dict(window=8), "MistralForCausalLM"), "odd-width": (dict(dim=30, head_dim=8), "MistralForCausalLM"),
    "some-windows": (dict(window=8, window_layers=(0, 2)), "MinistralForCausalLM"),
    "qwen2": (dict(qkv_bias=True, tied=False), "Qwen2ForCausalLM"), "qwen2-window": (dict(qkv_bias=True, window=8, window_layers=(2, 3)), "Qwen2ForCausalLM"),
    "qwen2-all-windows": (dict(qkv_bias=True, window=8), "Qwen2ForCausalLM"),
    "qwen3": (dict(qk_norm=True, head_dim=16), "Qwen3ForCausalLM"), "qwen3-bias": (dict(qk_norm=True, qkv_bias=True), "Qwen3ForCausalLM"),
}


def model(**changes):
    "A small model whose every tensor matters: norms and biases are random too."
    torch.manual_seed(0)
    lm = LM(replace(BASE, **changes))
    with torch.no_grad():
        for p in lm.parameters(): p.normal_(std=.3) if p.ndim > 1 else p.normal_(mean=1., std=.3)
    return lm.eval()


def ids(): return torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path):
    save_lm(model(), tmp_path/"m")
    return tmp_path/"m"


def edit(folder, **changes):
    path = folder/"config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v != "REMOVE"}))


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_transformers_opens_what_we_save(name, tmp_path):
    changes, cls = SHAPES[name]
    lm = model(**changes)
    save_lm(lm, tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == cls and not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    torch.testing.assert_close(theirs(ids()).logits, lm(ids()).logits, rtol=0, atol=1e-4)
    back = load_lm(tmp_path)
    assert back.config == lm.config and torch.equal(back(ids()).logits, lm(ids()).logits)
    eos = lm.config.eos_id
    assert theirs.config.eos_token_id == (list(eos) if isinstance(eos, tuple) else eos) and theirs.config.bos_token_id == 1


def hf(name, **more):
    "A transformers model of a family, all of it random."
    base = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    torch.manual_seed(0)
    m = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name + "Config")(**(base | more)))
    for p in m.parameters(): torch.nn.init.normal_(p, std=.3) if p.ndim > 1 else torch.nn.init.normal_(p, mean=1., std=.3)
    return m.eval()


@pytest.mark.parametrize("name, more", [
    ("Llama", {}), ("Llama", dict(tie_word_embeddings=True, head_dim=16, rms_norm_eps=1e-5)), ("Llama", dict(eos_token_id=[3, 4, 5])),
    ("Llama", dict(rope_parameters=LLAMA3 | {"rope_theta": 5e5})), ("Llama", dict(rope_parameters={"rope_type": "linear", "factor": 2., "rope_theta": 1e4})),
    ("Mistral", dict(sliding_window=8)), ("Mistral", dict(sliding_window=None)),
    ("Qwen2", {}), ("Qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=2)), ("Qwen2", dict(tie_word_embeddings=True)),
    ("Qwen3", dict(head_dim=16)), ("Qwen3", dict(head_dim=8, use_sliding_window=True, sliding_window=8, layer_types=["sliding_attention", "full_attention"]*2)),
])
@torch.no_grad()
def test_we_open_what_transformers_saves(name, more, tmp_path):
    theirs = hf(name, **more)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path/"model.safetensors.index.json").exists()
    lm = load_lm(tmp_path)
    torch.testing.assert_close(lm(ids()).logits, theirs(ids()).logits, rtol=0, atol=1e-4)
    eos = theirs.config.eos_token_id
    assert lm.config.eos_id == (tuple(eos) if isinstance(eos, list) else eos)


@torch.no_grad()
def test_old_spellings(tmp_path):
    "Files from before transformers 5: rope_theta and rope_scaling with `type`, torch_dtype, stored rotary frequencies."
    theirs = hf("Llama", rope_parameters={"rope_type": "linear", "factor": 2., "rope_theta": 3e4})
    theirs.save_pretrained(tmp_path)
    edit(tmp_path, rope_parameters="REMOVE", rope_theta=3e4, rope_scaling={"type": "linear", "factor": 2.}, dtype="REMOVE", torch_dtype="float32", head_dim="REMOVE")
    t = load_file(tmp_path/"model.safetensors")
    save_file(t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tmp_path/"model.safetensors")
    torch.testing.assert_close(load_lm(tmp_path)(ids()).logits, theirs(ids()).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_first_window_layer_without_layer_types(tmp_path):
    "Older Qwen files say from which layer on the window holds, and nothing else."
    theirs = hf("Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    theirs.save_pretrained(tmp_path)
    edit(tmp_path, layer_types="REMOVE")
    lm = load_lm(tmp_path)
    assert lm.config.window_layers == (1, 2, 3)
    torch.testing.assert_close(lm(ids()).logits, theirs(ids()).logits, rtol=0, atol=1e-4)


def test_published_configs():
    "Configs as published (the keys that matter), against transformers' own reading of them."
    smol = dict(model_type="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
    c = from_hf(smol)
    assert (c.n_heads, c.n_kv_heads, c.head_dim, c.tied, c.eos_id, c.norm_eps) == (9, 3, 64, True, 0, 1e-5)
    qwen = dict(model_type="qwen2", vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                max_position_embeddings=32768, max_window_layers=24, rms_norm_eps=1e-6, rope_theta=1e6, sliding_window=32768, tie_word_embeddings=True, use_sliding_window=False)
    c = from_hf(qwen)
    assert (c.window, c.qkv_bias, c.qk_norm, c.rope_theta, c.bos_id) == (None, True, False, 1e6, None)
    c = from_hf(dict(model_type="mistral", vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                     max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False))
    assert (c.window, c.window_layers, c.tied, c.bos_id, c.eos_id) == (4096, None, False, 1, 2)
    assert from_hf(dict(qwen, model_type="qwen3")).head_dim == transformers.Qwen3Config().head_dim == 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept_and_can_be_asked_for(dtype, tmp_path):
    lm = model().to(dtype)
    save_lm(lm, tmp_path)
    assert {t.dtype for t in load_file(tmp_path/"model.safetensors").values()} == {dtype}
    back = load_lm(tmp_path)
    assert all(p.dtype == dtype and torch.equal(p, q) for p, q in zip(back.parameters(), lm.parameters()))
    assert back.head.weight is back.embed.weight and not back.training and all(p.requires_grad for p in back.parameters())
    assert load_lm(tmp_path, dtype="bfloat16").dtype == load_lm(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).dtype == dtype


def test_bf16_logits_equal_transformers(tmp_path):
    save_lm(model(qk_norm=True).bfloat16(), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad(): torch.testing.assert_close(load_lm(tmp_path)(ids()).logits, theirs(ids()).logits, rtol=.05, atol=.5)


def test_nothing_stays_without_memory(saved):
    lm = load_lm(saved, dtype=torch.bfloat16)
    tensors = [*lm.parameters(), *lm.buffers(), *(t for m in lm.modules() for t in vars(m).values() if isinstance(t, torch.Tensor))]
    assert tensors and not any(t.is_meta for t in tensors)


def test_mixed_types_follow_the_config(saved):
    t = load_file(saved/"model.safetensors")
    save_file({n: x.bfloat16() if x.ndim > 1 else x for n, x in t.items()}, saved/"model.safetensors")
    edit(saved, torch_dtype="bfloat16")
    assert {p.dtype for p in load_lm(saved).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("limit", [1, 5_000, 20_000, 10**9])
def test_shards(limit, tmp_path):
    lm = model(tied=False)
    save_lm(lm, tmp_path, max_shard_bytes=limit)
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    if limit == 10**9: assert files == ["model.safetensors"] and not (tmp_path/"model.safetensors.index.json").exists()
    else:
        index = json.loads((tmp_path/"model.safetensors.index.json").read_text())
        assert sorted(set(index["weight_map"].values())) == files and index["metadata"]["total_size"] == sum(p.nbytes for p in lm.parameters())
        for f in files:
            part = load_file(tmp_path/f)
            assert len(part) == 1 or sum(t.nbytes for t in part.values()) <= limit
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad(): torch.testing.assert_close(theirs(ids()).logits, lm(ids()).logits, rtol=0, atol=1e-4)
    assert torch.equal(load_lm(tmp_path)(ids()).logits, lm(ids()).logits)


def test_saving_again_replaces_the_checkpoint_and_nothing_else(tmp_path):
    (tmp_path/"tokenizer.json").write_text("{}")
    for limit, n in ((5_000, 2), (20_000, 2), (10**9, 1), (5_000, 2)):
        save_lm(model(n_layers=n), tmp_path, max_shard_bytes=limit)
        assert load_lm(tmp_path).config.n_layers == n
    assert (tmp_path/"tokenizer.json").exists() and not (tmp_path/"model.safetensors").exists() and not list(tmp_path.glob(".*"))
    assert len(list(tmp_path.glob("*.safetensors"))) == len(set(json.loads((tmp_path/"model.safetensors.index.json").read_text())["weight_map"].values()))


def test_a_failed_save_leaves_the_old_checkpoint(saved, monkeypatch):
    import tokenlab.checkpoints as ck
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    calls = []
    def full(tensors, path, **kw):
        calls.append(path)
        if len(calls) == 2: raise OSError("No space left on device")
        path.write_bytes(b"half")
    monkeypatch.setattr(ck, "save_file", full)
    with pytest.raises(OSError, match="No space"): save_lm(model(n_layers=2), saved, max_shard_bytes=5_000)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_loaded_weights_do_not_depend_on_the_file(saved):
    lm, other = load_lm(saved), model(rope_theta=1e3)
    want = lm(ids()).logits
    with torch.no_grad(): other.embed.weight.zero_()
    save_lm(other, saved)
    assert torch.equal(lm(ids()).logits, want)
    lm = load_lm(saved)
    size = (saved/"model.safetensors").stat().st_size
    with (saved/"model.safetensors").open("r+b") as f: f.write(b"\xff"*size)        # in place
    assert torch.equal(lm(ids()).logits, other(ids()).logits)


def test_loading_draws_no_random_weights(saved):
    "The model is never built with memory at random, the global generator is left alone, and no compiler is imported."
    state = torch.get_rng_state()
    load_lm(saved)
    assert torch.equal(torch.get_rng_state(), state)
    code = "import sys; from tokenlab.checkpoints import load_lm; load_lm(sys.argv[1]); print('torch._inductor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_peak_memory_is_about_one_model(tmp_path):
    "In a process of its own: loading a 64 MB model takes less than two of them."
    save_lm(LM(LMConfig(2000, dim=512, n_layers=5, n_heads=8, max_len=64)), tmp_path)
    size = (tmp_path/"model.safetensors").stat().st_size
    code = ("import sys, torch; from tokenlab.checkpoints import load_lm\n"
            "anon = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1])*1024\n"
            "import threading, time; top = [a := anon()]; stop = False\n"
            "def watch():\n while not stop: top[0] = max(top[0], anon()); time.sleep(.001)\n"
            "t = threading.Thread(target=watch); t.start(); lm = load_lm(sys.argv[1]); stop = True; t.join(); print(max(top[0], anon()) - a)")
    if not os.path.exists("/proc/self/status"): pytest.skip("needs /proc")
    used = int(subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout)
    assert .9*size < used < 1.5*size, (used, size)


def test_import_is_light():
    code = "import sys, tokenlab.checkpoints; print([m for m in ('transformers', 'datasets', 'matplotlib', 'numba', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- everything that can be wrong -----------------------------------------------------------------------------

def test_folder_errors(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="no folder.*hf download"): load_lm(tmp_path/"nothing")
    with pytest.raises(ValueError, match="is a file: give the folder"): load_lm(saved/"model.safetensors")
    with pytest.raises(FileNotFoundError, match="has no config.json"): load_lm(tmp_path)
    (saved/"model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"): load_lm(saved)
    (saved/"config.json").write_text("{")
    (saved/"model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="config.json is not valid JSON"): load_lm(saved)
    (saved/"config.json").write_text("[]")
    with pytest.raises(ValueError, match="not a JSON object"): load_lm(saved)
    with pytest.raises(ValueError, match="is a file: give a folder"): save_lm(model(), saved/"config.json")


def test_pickles_are_refused_unopened(saved):
    class Bomb:
        def __reduce__(self): return os.system, ("touch " + str(saved/"ran"),)
    (saved/"model.safetensors").unlink()
    torch.save({"x": Bomb()}, saved/"pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pickle weights \(pytorch_model.bin\).*save_pretrained"): load_lm(saved)
    assert not (saved/"ran").exists()


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file(saved, keep):
    path = saved/"model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors cannot be read.*truncated or damaged, copy or download it again"): load_lm(saved)


def test_git_lfs_stub(saved):
    (saved/"model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ValueError, match="git lfs pull"): load_lm(saved)


def test_missing_extra_and_misshapen_tensors_are_all_named(saved):
    t = load_file(saved/"model.safetensors")
    gone = ["model.layers.0.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight", "model.norm.weight"]
    for n in gone: del t[n]
    t |= {"model.layers.9.extra": torch.ones(1), "score.weight": torch.ones(2), "model.layers.1.mlp.up_proj.weight": torch.ones(3, 5)}
    save_file(t, saved/"model.safetensors")
    with pytest.raises(ValueError) as e: load_lm(saved)
    said = str(e.value)
    for n in [*gone, "model.layers.9.extra", "score.weight", "model.layers.1.mlp.up_proj.weight (3, 5) instead of (48, 32)"]: assert n in said
    assert "3 tensors missing" in said and "2 tensors not part of the model" in said and "1 tensors of the wrong shape" in said


def test_missing_shards_are_all_named(tmp_path):
    save_lm(model(), tmp_path, max_shard_bytes=20_000)
    names = sorted(tmp_path.glob("*.safetensors"))
    names[0].unlink(); names[2].unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks 2 of {len(names)} shards: {names[0].name}, {names[2].name}"): load_lm(tmp_path)


def test_an_index_cannot_point_outside(tmp_path):
    save_lm(model(), tmp_path, max_shard_bytes=20_000)
    (tmp_path/"model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match="points outside its folder"): load_lm(tmp_path)
    (tmp_path/"model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"): load_lm(tmp_path)


@pytest.mark.parametrize("changes, match", [
    (dict(model_type="gpt2"), "'gpt2' is not supported: LM holds llama, mistral, ministral, qwen2, qwen3"), (dict(model_type="REMOVE"), "None is not supported"),
    (dict(hidden_act="gelu"), "activation 'gelu'"), (dict(mlp_bias=True), "mlp_bias"), (dict(num_local_experts=8), "mixture of experts"),
    (dict(quantization_config={"quant_method": "gptq"}), "dequantize"), (dict(rope_scaling={"rope_type": "yarn", "factor": 4.}), "'yarn' is not supported"),
    (dict(rope_parameters={"rope_type": "dynamic", "factor": 2.}), "'dynamic' is not supported"), (dict(partial_rotary_factor=.5), "only 0.5 of each head"),
    (dict(rope_parameters={"full_attention": {"rope_theta": 1e4}}), "for each layer type"), (dict(layer_types=["chunked_attention"]*4), "chunked_attention"),
    (dict(hidden_size="REMOVE", vocab_size=None), "lacks vocab_size, hidden_size"),
    (dict(model_type="lama"), "nearest name is 'llama'"), (dict(model_type="Qwen3"), "nearest name is 'qwen3'"), (dict(model_type=["llama"]), "is not supported"),
    (dict(rope_scaling={"rope_type": "linear"}), "'linear': factor is missing"), (dict(rope_scaling={"rope_type": "linear", "factor": "4"}), "factor is '4'"),
    *[(dict(rope_scaling={k: v for k, v in LLAMA3.items() if k != gone}), f"'llama3': {gone} is missing") for gone in LLAMA3 if gone != "rope_type"],
    (dict(rope_scaling="linear"), "rope_scaling='linear': give an object"), (dict(rope_theta="big"), "rope_theta='big'"), (dict(rope_theta=0), "rope_theta=0"),
    *[({k: bad}, f"{k}={bad!r}: give a whole number of 1 or more") for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings") for bad in ("32", 0, 2.5)],
    (dict(max_position_embeddings=None), "max_position_embeddings=None"), (dict(sliding_window="8"), "sliding_window='8'"), (dict(rms_norm_eps="tiny"), "rms_norm_eps='tiny'"),
    (dict(layer_types=["full_attention"]), "give 4 names"), (dict(layer_types=4), "layer_types=4"), (dict(bos_token_id="<s>"), "bos_token_id='<s>'"), (dict(eos_token_id=[2, "x"]), "eos_token_id"),
])
def test_configs_that_lm_cannot_hold(saved, changes, match):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=match): load_lm(saved)


def test_output_bias_of_attention(tmp_path):
    "Llama with attention_bias: opened if the bias of the output projection is zero, refused if it is not."
    theirs = hf("Llama", attention_bias=True)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"output biases.*layers.0.self_attn.o_proj.bias.*layers.3.self_attn.o_proj.bias"): load_lm(tmp_path)
    for layer in theirs.model.layers: torch.nn.init.zeros_(layer.self_attn.o_proj.bias)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad(): torch.testing.assert_close(load_lm(tmp_path)(ids()).logits, theirs(ids()).logits, rtol=0, atol=1e-4)


def test_tied_config_with_another_head(saved):
    t = load_file(saved/"model.safetensors")
    save_file(t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()}, saved/"model.safetensors")
    load_lm(saved)
    save_file(t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1}, saved/"model.safetensors")
    with pytest.raises(ValueError, match="lm_head.weight differs"): load_lm(saved)


def test_integer_weights_and_types(saved):
    t = load_file(saved/"model.safetensors")
    save_file(t | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, saved/"model.safetensors")
    with pytest.raises(ValueError, match=r"not floating point: model.norm.weight \(I8\)"): load_lm(saved)
    save_file(t, saved/"model.safetensors")
    for dtype in ("bf16", torch.int8): 
        with pytest.raises(ValueError, match="dtype="): load_lm(saved, dtype=dtype)


def test_what_save_refuses(tmp_path):
    class Id(torch.nn.Module):
        def forward(self, x, **kw): return x
    with pytest.raises(ValueError, match="block 0, 1, 2, 3 mixes tokens with Id.*save_model"): save_lm(LM(BASE, mixer=lambda *a, **k: Id()), tmp_path/"m")
    lm = model()
    lm.blocks[1].adapter = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="model.layers.1.adapter.weight is not part of it.*adapter.bias"): save_lm(lm, tmp_path/"m")
    lm = model()
    lm.embed = torch.nn.Embedding(99, 32)
    with pytest.raises(ValueError, match=r"embed_tokens.weight is \(99, 32\) instead of \(97, 32\)"): save_lm(lm, tmp_path/"m")
    lm = model()
    lm.head.weight = torch.nn.Parameter(lm.head.weight + 1)
    with pytest.raises(ValueError, match="tied=False"): save_lm(lm, tmp_path/"m")
    with pytest.raises(ValueError, match="max_shard_bytes=0"): save_lm(model(), tmp_path/"m", max_shard_bytes=0)
    assert not (tmp_path/"m").exists()


def test_untied_config_with_shared_memory(tmp_path):
    lm = model(tied=False)
    lm.head.weight, lm.blocks[2].mlp = lm.embed.weight, lm.blocks[1].mlp
    save_lm(lm, tmp_path)
    assert torch.equal(load_lm(tmp_path)(ids()).logits, lm(ids()).logits)


def test_config_round_trip():
    for changes, _ in SHAPES.values():
        c = replace(BASE, **changes)
        assert from_hf(json.loads(json.dumps(to_hf(c)))) == c


@pytest.mark.cuda
def test_cuda(saved):
    lm = load_lm(saved, device="cuda")
    assert {t.device.type for t in [*lm.parameters(), *lm.buffers()]} == {"cuda"}
