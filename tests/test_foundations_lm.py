"LM beside transformers with the same weights; caches, trees, packing, split runs; HFLM; bits per byte."
import copy, functools, math, sys
from dataclasses import replace

import pytest
import torch
import torch.nn as nn
from torch.testing import assert_close

from tokenlab.generate import generate
from tokenlab.lm import LM, CacheProtocol, HFLM, LMConfig, bits_per_byte, sdpa, use_rule

transformers = pytest.importorskip("transformers")
V, T = 97, 40
LLAMA3 = {"rope_type": "llama3", "factor": 4., "low_freq_factor": 1., "high_freq_factor": 4., "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 2.5}
BASE = LMConfig(V, dim=32, n_layers=3, n_heads=4, n_kv_heads=2, mlp_dim=48, max_len=128, norm_eps=1e-6, tied=False)
CASES = {
    "llama": ("Llama", BASE),
    "llama-mha-tied": ("Llama", replace(BASE, n_kv_heads=4, tied=True)),
    "llama-mqa": ("Llama", replace(BASE, n_kv_heads=1)),
    "llama3": ("Llama", replace(BASE, rope_theta=500_000., rope_scaling=LLAMA3)),
    "linear": ("Llama", replace(BASE, rope_scaling=LINEAR)),
    "mistral": ("Mistral", replace(BASE, window=7)),
    "qwen2": ("Qwen2", replace(BASE, qkv_bias=True, tied=True)),
    "qwen2-mixed-windows": ("Qwen2", replace(BASE, qkv_bias=True, window=5, window_layers=(1, 2))),
    "qwen3": ("Qwen3", replace(BASE, head_dim=24, qk_norm=True)),
    "qwen3-tied": ("Qwen3", replace(BASE, head_dim=10, qk_norm=True, tied=True)),
}


def theirs(family: str, c: LMConfig):
    "A random transformers model of the same shape, every vector (norms, biases) random too."
    extra = {}
    if family == "Mistral": extra = dict(sliding_window=c.window)
    if family in ("Qwen2", "Qwen3") and c.window: extra = dict(use_sliding_window=True, sliding_window=c.window, max_window_layers=min(c.window_layers))
    config = getattr(transformers, family + "Config")(
        vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.mlp_dim, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim, max_position_embeddings=c.max_len, rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tied,
        rope_parameters={"rope_theta": c.rope_theta, **(c.rope_scaling or {"rope_type": "default"})}, attn_implementation="eager",
        bos_token_id=None, eos_token_id=None, pad_token_id=None, **extra)
    torch.manual_seed(1)
    hf = getattr(transformers, family + "ForCausalLM")(config).eval().requires_grad_(False)
    for p in hf.parameters(): p.copy_(torch.randn_like(p)*(.15 if p.ndim > 1 else .3) + (p.ndim == 1))
    return hf


def ours(c: LMConfig, hf) -> LM:
    names = {"embed": "model.embed_tokens", "blocks": "model.layers", "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
             "mixer": "self_attn", "norm": "model.norm", "head": "lm_head"}
    lm, weights = LM(c).eval().requires_grad_(False), hf.state_dict()
    theirs_of = lambda n: ".".join([names.get(n.split(".")[0], n.split(".")[0]), *(names.get(w, w) if n.startswith("blocks") else w for w in n.split(".")[1:])])
    found = {n: weights[theirs_of(n)] for n in lm.state_dict()}
    assert len(set(map(theirs_of, found))) == len({n for n in weights})
    lm.load_state_dict(found)
    return lm


@functools.cache
def made(name: str):
    "(LM, transformers model) with the same weights."
    family, c = CASES[name]
    hf = theirs(family, c)
    return ours(c, hf), hf


@pytest.fixture(params=CASES)
def pair(request): return made(request.param)


@pytest.fixture(params=["llama", "mistral", "qwen3"])
def lm(request): return made(request.param)[0]


def tokens(*shape, seed=0): return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))
def near(a, b): assert_close(a, b, atol=1e-4, rtol=1e-4)


def tree(parents):
    mask = torch.eye(len(parents), dtype=torch.bool)
    for n, p in enumerate(parents):
        if p >= 0: mask[n] |= mask[p]
    return mask


PARENTS = [-1, 0, 0, 1, 1, 2, 3]
DEPTH = torch.tensor([0, 1, 1, 2, 2, 2, 3])
PATHS = [[0, 1, 3, 6], [0, 1, 4], [0, 2, 5]]


# ---- parity with transformers

def test_logits_equal(pair):
    lm, hf = pair
    ids = tokens(2, T)
    want = hf(ids).logits
    assert want.std() > .3                       # a check that could not fail would be no check
    near(lm(ids).logits, want)


def test_hidden_is_before_the_final_norm(pair):
    lm, hf = pair
    out = lm(tokens(2, T))
    near(lm.head(lm.norm(out.hidden)), out.logits)
    near(lm.norm(out.hidden), hf(tokens(2, T), output_hidden_states=True).hidden_states[-1])


@pytest.mark.parametrize("cuts", [list(range(T + 1)), [0, 1, 9, 10, 30, T], [0, 25, T]])
def test_cache_equals_whole(pair, cuts):
    lm, hf = pair
    ids, cache = tokens(2, T), lm.new_cache(2, 4)           # capacity must grow
    got = torch.cat([lm(ids[:, a:b], cache=cache).logits for a, b in zip(cuts, cuts[1:])], 1)
    near(got, hf(ids).logits)
    assert cache.lengths.tolist() == [T, T] and isinstance(cache, CacheProtocol)


def test_ragged_batch(pair):
    lm, hf = pair
    ids, lengths = tokens(3, 20), [20, 7, 1]
    ragged = torch.where(torch.arange(20) < torch.tensor(lengths)[:, None], ids, -1)
    cache = lm.new_cache(3)
    got, plain = lm(ragged, cache=cache).logits, lm(ragged).logits
    more = lm(torch.where(torch.tensor([[True]*3, [True, False, False], [True]*3]), tokens(3, 3, seed=1), -1), cache=cache).logits
    last = lm(tokens(3, 1, seed=2), cache=cache).logits
    for b, n in enumerate(lengths):
        extra = 1 if b == 1 else 3
        row = torch.cat([ids[b, :n], tokens(3, 3, seed=1)[b, :extra], tokens(3, 1, seed=2)[b]])[None]
        want = hf(row).logits[0]
        near(got[b, :n], want[:n]); near(plain[b, :n], want[:n]); near(more[b, :extra], want[n:n+extra]); near(last[b, 0], want[-1])
    assert cache.lengths.tolist() == [24, 9, 5]
    assert torch.isfinite(got).all()


def test_bfloat16(pair):
    lm, hf = pair
    low = copy.deepcopy(lm).to(torch.bfloat16)
    assert low.dtype == torch.bfloat16 and low.blocks[0].mixer.rope.freq.dtype == torch.float32
    ids, cache = tokens(1, T), low.new_cache(1)
    out = low(ids, cache=cache).logits
    assert out.dtype == torch.bfloat16 and low.blocks[0].mixer.rope.freq.dtype == torch.float32
    want, other = hf(ids).logits, copy.deepcopy(hf).to(torch.bfloat16)(ids).logits.float()
    assert (out.float() - want).abs().mean() < 2*(other - want).abs().mean() + 1e-3     # no less exact than theirs
    last = low(tokens(1, 1), cache=cache).logits                                        # a cached step, as exact as the whole
    assert (last.float() - hf(torch.cat([ids, tokens(1, 1)], 1)).logits[:, -1:]).abs().mean() < .15


# ---- trees, packing, split runs

@pytest.mark.parametrize("cached", [True, False])
def test_tree_equals_paths(pair, cached):
    lm, hf = pair
    prompt, nodes = tokens(1, 9), tokens(1, 7, seed=3)
    if cached:
        cache = lm.new_cache(); lm(prompt, cache=cache)
        got = lm(nodes, cache=cache, positions=9 + DEPTH, mask=tree(PARENTS)).logits[0]
    else:
        mask = torch.zeros(16, 16, dtype=torch.bool)
        mask[:9, :9] = torch.ones(9, 9).tril(); mask[9:, :9] = True; mask[9:, 9:] = tree(PARENTS)
        got = lm(torch.cat([prompt, nodes], 1), positions=torch.cat([torch.arange(9), 9 + DEPTH]), mask=mask).logits[0, 9:]
    for path in PATHS: near(got[path], hf(torch.cat([prompt, nodes[:, path]], 1)).logits[0, 9:])


def test_select_then_continue(pair):
    lm, hf = pair
    prompt, nodes = [tokens(1, 9), tokens(1, 4, seed=5)], tokens(2, 7, seed=3)
    cache = lm.new_cache(2)
    lm(torch.cat([prompt[0], torch.cat([prompt[1], torch.full((1, 5), -1)], 1)]), cache=cache)
    lm(nodes, cache=cache, positions=torch.tensor([[9], [4]]) + DEPTH, mask=tree(PARENTS))
    cache.select(torch.tensor([[0, 2, 5], [0, -1, -1]]))
    assert cache.lengths.tolist() == [12, 5]
    got = lm(tokens(2, 4, seed=6), cache=cache).logits
    for b, path in enumerate([[0, 2, 5], [0]]):
        near(got[b], hf(torch.cat([prompt[b], nodes[b:b+1, path], tokens(2, 4, seed=6)[b:b+1]], 1)).logits[0, -4:])


def test_window_counts_positions_not_slots():
    "Every third position: a window of 7 holds three tokens, cached or not, and after a path was selected."
    lm, _ = made("mistral")
    ids, at = tokens(1, 12), 3*torch.arange(12)
    whole, cache = lm(ids, positions=at).logits, lm.new_cache(1, 4)
    assert (whole - lm(ids).logits).abs().max() > .1
    near(torch.cat([lm(ids[:, a:b], positions=at[a:b], cache=cache).logits for a, b in [(0, 5), (5, 6), (6, 11)]], 1), whole[:, :11])
    cache.rollback(9)
    order = [11, 9, 10]                                     # written out of order, put right by select
    lm(ids[:, order], positions=at[order], cache=cache, mask=torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 1]]).bool())
    cache.select([[1, 2]])
    near(lm(ids[:, 11:], positions=at[11:], cache=cache).logits, whole[:, 11:])


def test_tree_grown_level_by_level(lm):
    "Levels of a tree stay in the cache; a mask over everything seen says which are ancestors."
    prompt, nodes, cache = tokens(1, 9), tokens(1, 7, seed=3), lm.new_cache()
    lm(prompt, cache=cache)
    full, got = torch.cat([torch.ones(7, 9, dtype=torch.bool), tree(PARENTS)], 1), []
    for a, b in [(0, 1), (1, 3), (3, 6), (6, 7)]:
        got.append(lm(nodes[:, a:b], cache=cache, positions=9 + DEPTH[a:b], mask=full[a:b, :9 + b]).logits)
    near(torch.cat(got, 1), lm(torch.cat([prompt, nodes], 1), positions=torch.cat([torch.arange(9), 9 + DEPTH]),
         mask=torch.cat([torch.cat([torch.ones(9, 9).tril().bool(), torch.zeros(9, 7, dtype=torch.bool)], 1), full])).logits[:, 9:])


def test_packed_equals_one_by_one(pair):
    lm, hf = pair
    sizes, ids = [3, 10, 1, 9], tokens(2, 25)
    segments = torch.tensor([sum(([i]*n for i, n in enumerate(sizes)), []) + [-1, -1]]*2)
    ids[segments < 0] = -1
    got, at = lm(ids, segments=segments).logits, 0
    for n in sizes: near(got[:, at:at+n], hf(ids[:, at:at+n]).logits); at += n
    assert torch.isfinite(got).all()


def test_bidirectional_mask_hides_padding(lm):
    ids = tokens(2, 6)
    ids[1, 4:] = -1
    full = torch.ones(6, 6, dtype=torch.bool)
    got = lm(ids, mask=full).logits
    near(got[1, :4], lm(ids[1:, :4], mask=full[:4, :4]).logits[0])


@pytest.mark.parametrize("cut", [1, 2])
def test_split_runs_equal_the_whole(lm, cut):
    first, rest, ids = range(cut), range(cut, 3), tokens(2, 12)
    early = lm(ids, layers=first)
    assert early.logits is None
    near(lm(embeds=early.hidden, layers=rest).logits, lm(ids).logits)
    cache = lm.new_cache(2)                                         # draft three tokens with the first layers, verify with the others
    lm(ids[:, :9], cache=cache)
    view = cache.view(first)
    hidden = [lm(ids[:, i:i+1], layers=first, cache=view).hidden for i in range(9, 12)]
    assert cache.lengths.tolist() == [9, 9] and view.lengths.tolist() == [12, 12]
    out = lm(embeds=torch.cat(hidden, 1), layers=rest, cache=cache)
    near(out.logits, lm(ids).logits[:, 9:])
    cache.rollback([11, 10])                                        # and go on from a partial acceptance
    got = lm(tokens(2, 1, seed=4), cache=cache).logits
    for b, n in enumerate([11, 10]): near(got[b], lm(torch.cat([ids[b:b+1, :n], tokens(2, 1, seed=4)[b:b+1]], 1)).logits[0, -1:])


def test_embeds_equal_ids(lm):
    ids = tokens(2, 8)
    near(lm(embeds=lm.embed(ids)).logits, lm(ids).logits)
    ids[1, 5:] = -1                                                 # ids beside embeddings say where padding is
    cache = lm.new_cache(2)
    lm(ids, embeds=lm.embed(ids.clamp(min=0)), cache=cache)
    assert cache.lengths.tolist() == [8, 5]


# ---- what a cache can do

def test_rollback_and_replay(lm):
    ids, cache = tokens(2, 12), lm.new_cache(2)
    lm(ids, cache=cache)
    cache.rollback([3, 8])
    got = lm(tokens(2, 2, seed=1), cache=cache).logits
    for b, n in enumerate([3, 8]): near(got[b], lm(torch.cat([ids[b:b+1, :n], tokens(2, 2, seed=1)[b:b+1]], 1)).logits[0, -2:])
    for bad in ([0, 11], [-1, 0], [1]):
        with pytest.raises(ValueError, match="cannot roll back"): cache.rollback(bad)
    cache.rollback(0)
    near(lm(ids, cache=cache).logits, lm(ids).logits)


def test_snapshot_restore(lm):
    ids, cache = tokens(1, 12), lm.new_cache()
    lm(ids[:, :6], cache=cache)
    moment = cache.snapshot()
    lm(tokens(1, 9, seed=1), cache=cache)
    cache.restore(moment)
    near(lm(ids[:, 6:], cache=cache).logits, lm(ids).logits[:, 6:])


def test_rows_keep_repeat_reorder(lm):
    ids, cache = tokens(3, 8), lm.new_cache(3)
    ids[1, 5:] = -1
    lm(ids, cache=cache)
    cache.rows([2, 1, 1])
    assert cache.lengths.tolist() == [8, 5, 5]
    got = lm(torch.tensor([[1], [2], [3]]), cache=cache).logits
    for b, (row, n) in enumerate([(2, 8), (1, 5), (1, 5)]):
        near(got[b, 0], lm(torch.cat([ids[row:row+1, :n], torch.tensor([[b + 1]])], 1)).logits[0, -1])


def test_view_of_rows(lm):
    ids, cache = tokens(4, 8), lm.new_cache(4)
    lm(ids, cache=cache)
    view = cache.view(rows=slice(1, 4)).view(rows=slice(1, 2))        # row 2
    view.rollback(5)
    near(lm(torch.tensor([[7]]), cache=view).logits[0], lm(torch.cat([ids[2:3, :5], torch.tensor([[7]])], 1)).logits[0, -1:])
    assert cache.lengths.tolist() == [8]*4


def test_cache_survives_leaving_inference_mode(lm):
    cache = lm.new_cache()
    with torch.inference_mode(): lm(tokens(1, 4), cache=cache)
    with torch.no_grad(): near(lm(tokens(1, 1, seed=1), cache=cache).logits, lm(torch.cat([tokens(1, 4), tokens(1, 1, seed=1)], 1)).logits[:, -1:])


class Average(nn.Module):
    "A recurrent mixer: a running mean that skips padding and restarts with each segment."
    recurrent = True
    def __init__(self, dim, *, heads, seq_len, causal): super().__init__(); self.seen = []
    def forward(self, x, *, cache=None, positions=None, mask=None):
        self.seen.append(None if mask is None else tuple(mask.shape))
        state, out = torch.zeros_like(x[:, 0]) if cache is None else cache.state.get("s", torch.zeros_like(x[:, 0])), []
        for t in range(x.shape[1]):
            p = positions.expand(len(x), -1)[:, t, None]
            state = torch.where(p < 0, state, torch.where(p == 0, x[:, t], .7*state + .3*x[:, t])); out.append(state)
        if cache is not None: cache.state["s"] = state
        return torch.stack(out, 1)


def test_recurrent_mixer():
    lm = LM(BASE, mixer=Average, seed=0).eval().requires_grad_(False)
    ids, cache = tokens(2, 10), lm.new_cache(2)
    assert not (lm.can_rollback or lm.can_tree or cache.can_rollback)
    short = ids.clone(); short[1, 6:] = -1
    lm(short, cache=cache)
    assert cache.lengths.tolist() == [10, 6] and cache.nbytes == 3*2*32*4 and set(lm.blocks[0].mixer.seen) == {None}
    moment = cache.snapshot()
    for call in (lambda: cache.rollback(1), lambda: cache.select([[0], [0]])):
        with pytest.raises(ValueError, match="restore.., and replay"): call()
    with pytest.raises(ValueError, match="no view of some rows"): cache.view(rows=slice(0, 1))
    for _ in range(2):                                       # restoring twice must work: the snapshot is not used up
        near(lm(tokens(2, 2, seed=1), cache=cache).logits[1], lm(torch.cat([ids[1:, :6], tokens(2, 2, seed=1)[1:]], 1)).logits[0, -2:])
        cache.restore(moment)
    cache.rows([1])
    near(lm(torch.tensor([[3]]), cache=cache).logits, lm(torch.cat([ids[1:, :6], torch.tensor([[3]])], 1)).logits[:, -1:])
    with pytest.raises(ValueError, match="2 rows, the cache 1"): cache.restore(moment)
    packed = lm(ids[:1], segments=torch.tensor([[0]*4 + [1]*6])).logits
    near(packed[:, 4:], lm(ids[:1, 4:]).logits)
    assert lm.blocks[0].mixer.seen[-2] == (1, 1, 10, 10)     # the mask of packed segments reaches the mixer


def test_rule_is_swapped_and_put_back(lm):
    ids, calls = tokens(1, 6), []
    def rule(q, k, v, *, positions, mask, cache, layer): calls.append(layer); return sdpa(q, k, v, mask=mask)
    with pytest.raises(KeyError), use_rule(lm, rule):
        near(lm(ids).logits, lm(ids).logits)
        raise KeyError
    assert calls == [0, 1, 2]*2 and all(b.mixer.rule is sdpa for b in lm.blocks)


@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 5, 12), (2, 5, 5), (1, 5, 5)])
def test_gradients_flow(shape):
    "Training after inference with the same module: no inference tensor is left in it."
    lm = LM(replace(BASE, window=4), seed=0)
    ids = tokens(*shape[1:])
    with torch.inference_mode(): lm(ids)
    lm(ids).logits.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in lm.parameters())


def test_seed_fixes_weights_and_leaves_the_generator_alone():
    torch.manual_seed(0); before = torch.get_rng_state()
    a, b, c = LM(BASE, seed=1), LM(BASE, seed=1), LM(BASE, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.blocks[0].mlp.up_proj.weight, b.blocks[0].mlp.up_proj.weight) and not torch.equal(a.embed.weight, c.embed.weight)


def test_errors(lm):
    for call, said in [
        (lambda: lm(tokens(1, 129)), "position 128 is beyond the context of 128"),
        (lambda: lm(torch.tensor([[-1, 3]])), "behind the tokens"),
        (lambda: lm(tokens(2, 3), cache=lm.new_cache(3)), r"2 rows, the cache 3"),
        (lambda: lm(tokens(1, 3), mask=torch.ones(2, 2, dtype=torch.bool)), "True: may see"),
        (lambda: LM(replace(BASE, rope_scaling={"rope_type": "yarn"})), "'yarn' is not supported"),
    ]:
        with pytest.raises(ValueError, match=said): call()
    cache = lm.new_cache(); lm(tokens(1, 3), cache=cache)
    with pytest.raises(ValueError, match="empty cache"): lm(tokens(1, 3), cache=cache, segments=torch.zeros(1, 3))
    lm(torch.cat([tokens(1, 128), torch.full((1, 9), -1)], 1))      # padding beyond the context is no position


@pytest.mark.parametrize("field", ["vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "mlp_dim", "max_len"])
@pytest.mark.parametrize("value", [0, -2, 2.5, "8", True])
def test_config_names_the_bad_field(field, value):
    with pytest.raises(ValueError, match=f"^{field}={value!r}: give a whole number of 1 or more"): replace(BASE, **{field: value})


def test_config_windows_and_ends():
    for bad in (0, 2.5, "8"):
        with pytest.raises(ValueError, match=f"window={bad}: a token must see itself"): replace(BASE, window=bad)
    assert [replace(BASE, eos_id=e).eos_id for e in ([4, 5], (4,), (), None, 0)] == [(4, 5), (4,), None, None, 0]


@pytest.mark.parametrize("scaling, said", [
    (LINEAR | {"factor": None}, "'linear': factor is missing"), (LINEAR | {"factor": "2"}, "factor is '2'"), (LLAMA3 | {"factor": 0}, "factor is 0"),
    *[({k: v for k, v in LLAMA3.items() if k != gone}, f"'llama3': {gone} is missing") for gone in LLAMA3 if gone != "rope_type"],
    (LLAMA3 | {"high_freq_factor": 1.}, "must be below high_freq_factor=1.0"),
])
def test_scaling_names_the_missing_key(scaling, said):
    with pytest.raises(ValueError, match=said): LM(replace(BASE, rope_scaling=scaling))


def test_forward_without_tokens_or_with_foreign_ones(lm):
    box = HFLM(made("llama")[1])
    for model in (lm, box):
        with pytest.raises(ValueError, match="give ids or embeds"): model()
        cache = model.new_cache()
        model(tokens(1, 3), cache=cache)
        for ids in (torch.tensor([[V]]), torch.tensor([[1, 2, 500]])):
            with pytest.raises(ValueError, match=rf"ids hold {int(ids.max())}, the vocabulary is 0..{V - 1}"): model(ids, cache=cache)
        assert cache.lengths.tolist() == [3]                        # a refused call leaves the cache as it was
        near(model(tokens(1, 5)[:, 3:], cache=cache).logits, model(torch.cat([tokens(1, 3), tokens(1, 5)[:, 3:]], 1)).logits[:, 3:])


def test_an_index_error_of_another_cause_stays_one(lm):
    def rule(*a, **k): raise IndexError("mine")
    with use_rule(lm, rule), pytest.raises(IndexError, match="mine"): lm(tokens(1, 3))


def test_files_round_trip(lm, tmp_path):
    pytest.importorskip("tokenlab.checkpoints")
    lm.save_pretrained(tmp_path/"m")
    near(LM.from_pretrained(tmp_path/"m")(tokens(1, 9)).logits, lm(tokens(1, 9)).logits)
    near(transformers.AutoModelForCausalLM.from_pretrained(tmp_path/"m")(tokens(1, 9)).logits, lm(tokens(1, 9)).logits)
    assert LM.from_pretrained(tmp_path/"m", dtype=torch.bfloat16).dtype == torch.bfloat16


# ---- HFLM

def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=5, initializer_range=.4)).eval().requires_grad_(False)


def bloom():
    torch.manual_seed(0)
    return transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, initializer_range=.4)).eval().requires_grad_(False)


def mamba():
    torch.manual_seed(0)
    return transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4, bos_token_id=0, eos_token_id=5, initializer_range=.4)).eval().requires_grad_(False)


BOXES = {"gpt2": (gpt2, True, True), "bloom": (bloom, False, True), "mamba": (mamba, False, False),
         **{n: (lambda n=n: theirs(*CASES[n]), tree, True) for n, tree in [("llama", True), ("qwen3", True), ("mistral", False)]}}


@pytest.mark.parametrize("name", BOXES)
def test_hflm_flags_cache_and_greedy_text(name):
    make, can_tree, can_rollback = BOXES[name]
    hf = make()
    box = HFLM(hf)
    assert (box.can_tree, box.can_rollback, box.can_layers, box.can_embed) == (can_tree, can_rollback, False, True)
    assert box.config.vocab_size == V and box.config.n_layers in (2, 3) and not box.training
    ids, cache = tokens(1, 12), box.new_cache()
    near(torch.cat([box(ids[:, a:b], cache=cache).logits for a, b in [(0, 5), (5, 6), (6, 12)]], 1) if name != "mamba" else
         torch.cat([box(ids[:, a:b], cache=cache).logits for a, b in [(0, 10), (10, 11), (11, 12)]], 1), hf(ids).logits)
    assert cache.lengths.tolist() == [12] and cache.nbytes > 0 and isinstance(cache, CacheProtocol)
    want = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)[0, 12:].tolist()
    assert generate(box, ids[0].tolist(), max_new_tokens=20).ids == want
    with pytest.raises(ValueError, match="LM.from_pretrained"): box(ids, layers=range(1))
    if not can_tree:
        with pytest.raises(ValueError, match="can_tree is False"): box(ids, mask=torch.ones(12, 12, dtype=torch.bool))


@pytest.mark.parametrize("name", [n for n in BOXES if n != "mamba"])
def test_hflm_ragged_rollback_rows(name):
    hf = BOXES[name][0]()
    box, ids = HFLM(hf), tokens(3, 16)
    one = lambda b, *parts: hf(torch.cat([p if p.ndim == 2 else p[None] for p in parts], 1)).logits[0]
    ragged, cache = ids.clone(), box.new_cache(3)
    ragged[1, 4:] = -1; ragged[2, 11:] = -1
    out = box(ragged, cache=cache).logits
    for b, n in enumerate([16, 4, 11]): near(out[b, :n], one(b, ids[b, :n]))
    new = tokens(3, 3, seed=1)
    partial = new.clone(); partial[0, 1:] = -1
    out = box(partial, cache=cache).logits
    for b, (n, m) in enumerate([(16, 1), (4, 3), (11, 3)]): near(out[b, :m], one(b, torch.cat([ids[b, :n], new[b, :m]]))[n:])
    assert cache.lengths.tolist() == [17, 7, 14]
    moment = cache.snapshot()
    box(new, cache=cache); cache.restore(moment)
    cache.rollback([9, 6, 12])
    cache.rows([2, 1])
    assert cache.lengths.tolist() == [12, 6]
    out = box(tokens(2, 2, seed=2), cache=cache).logits
    near(out[0], one(0, torch.cat([ids[2, :11], new[2, :1], tokens(2, 2, seed=2)[0]]))[-2:])
    near(out[1], one(1, torch.cat([ids[1, :4], new[1, :2], tokens(2, 2, seed=2)[1]]))[-2:])
    cache.rollback(0)
    near(box(ids[:2], cache=cache).logits, hf(ids[:2]).logits)
    rows = generate(box, [ids[b, :n].tolist() for b, n in enumerate([16, 4, 11])], max_new_tokens=12)
    for b, n in enumerate([16, 4, 11]): assert rows[b].ids == generate(box, ids[b, :n].tolist(), max_new_tokens=12).ids


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hflm_trees_and_packing(name, attention):
    hf = BOXES[name][0]()
    hf.set_attn_implementation(attention)
    box, nodes, cache = HFLM(hf), tokens(2, 7, seed=3), None
    prompt, cache = tokens(2, 9), box.new_cache(2)
    prompt[1, 5:] = -1
    box(prompt, cache=cache)
    out = box(nodes, cache=cache, positions=torch.tensor([[9], [5]]) + DEPTH, mask=tree(PARENTS)).logits
    for b, n in enumerate([9, 5]):
        for path in PATHS: near(out[b, path], hf(torch.cat([prompt[b, :n], nodes[b, path]])[None]).logits[0, n:])
    cache.select([[0, 2, 5], [0, -1, -1]])
    assert cache.lengths.tolist() == [12, 6]
    out = box(tokens(2, 1, seed=4), cache=cache).logits
    for b, (n, path) in enumerate([(9, [0, 2, 5]), (5, [0])]):
        near(out[b, 0], hf(torch.cat([prompt[b, :n], nodes[b, path], tokens(2, 1, seed=4)[b]])[None]).logits[0, -1])
    ids, segments = tokens(1, 8), torch.tensor([[0]*3 + [1]*5])
    near(box(ids, segments=segments).logits[:, 3:], hf(ids[:, 3:]).logits)
    near(box(embeds=hf.get_input_embeddings()(ids)).logits, hf(ids).logits)


def test_hflm_recurrent_cache():
    box, ids = HFLM(mamba()), tokens(2, 9)
    cache = box.new_cache(2)
    box(ids, cache=cache)
    with pytest.raises(ValueError, match="replay"): cache.rollback(3)
    moment = cache.snapshot()
    first = box(tokens(2, 1, seed=1), cache=cache).logits
    cache.restore(moment)
    near(box(tokens(2, 1, seed=1), cache=cache).logits, first)
    ids[1, 4:] = -1
    with pytest.raises(ValueError, match="one by one"): box(ids, cache=box.new_cache(2))


def test_hflm_train_eval_and_errors():
    box = HFLM(gpt2().train())
    assert box.training and box.eval().training is False and not box.model.training and box.train().model.training
    box.eval()
    with pytest.raises(ValueError, match="beyond the context of 64"): box(tokens(1, 65), cache=box.new_cache())
    with pytest.raises(ValueError, match="2 rows, the cache 3"): box(tokens(2, 2), cache=box.new_cache(3))


def test_transformers_missing(monkeypatch):
    box = HFLM(gpt2())
    with pytest.raises(ValueError, match="AutoModelForCausalLM.from_pretrained"): HFLM("gpt2")
    for odd in (nn.Linear(2, 2), LM(BASE)):
        with pytest.raises(ValueError, match=f"not {type(odd).__name__}: give transformers.AutoModelForCausalLM"): HFLM(odd)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="tokenlaboratory"): HFLM("gpt2")
    with pytest.raises(ImportError, match=r"pip install 'tokenlaboratory\[hf\]'"): box.new_cache()


# ---- bits per byte

class Bytes:
    def encode(self, text): return [b % V for b in text.encode()]


class Pairs:
    "Two characters a token, so that tokens and bytes differ."
    def encode(self, text): return [sum(map(ord, text[i:i+2])) % V for i in range(0, len(text), 2)]


TEXTS = ["hello, wörld", "", "a much longer text that does not fit into a single window of sixteen tokens", "z"]
NBYTES = sum(len(t.encode()) for t in TEXTS)


@pytest.mark.parametrize("tokenizer", [Bytes(), Pairs()])
@pytest.mark.parametrize("start", [dict(), dict(bos_id=3), dict(eos_id=4), dict(eos_id=(4, 5))])
@pytest.mark.parametrize("window", [dict(), dict(seq_len=16), dict(seq_len=16, stride=16, batch_size=1), dict(seq_len=5, stride=2), dict(seq_len=1)])
def test_uniform_model(tokenizer, start, window):
    lm = LM(replace(BASE, tied=True, **start)).train()
    nn.init.zeros_(lm.embed.weight)
    n = sum(len(tokenizer.encode(t)) for t in TEXTS)
    assert bits_per_byte(lm, tokenizer, TEXTS, **window) == pytest.approx(math.log2(V)*n/NBYTES, rel=1e-5)
    assert lm.training


@pytest.mark.parametrize("start", [None, 3])
def test_bits_by_hand(lm, start):
    box = HFLM(made("llama")[1])
    for model in (lm, box):
        old = model.config
        model.config = replace(old, bos_id=start)
        seq, stride, total = 16, 7, 0.
        for text in TEXTS:
            ids = Bytes().encode(text)
            if not ids: continue
            if start is None: total += math.log2(V)
            row = torch.tensor(ids if start is None else [start, *ids])
            for i in range(1, len(row)):                     # prediction i is made in the first window that reaches it
                window = next(a for a in range(0, 10_000, stride) if i <= a + seq)
                logp = model(row[window:i][None]).logits[0, -1].log_softmax(-1)
                total -= logp[row[i]].item()/math.log(2)
        assert bits_per_byte(model, Bytes(), TEXTS, seq_len=seq, stride=stride, batch_size=3) == pytest.approx(total/NBYTES, rel=1e-4)
        model.config = old


def test_bits_start_with_the_first_of_several_ends(lm):
    old, bits = lm.config, {}
    try:
        for eos in (None, 4, 5, (4, 5), (5, 4)):
            lm.config = replace(old, bos_id=None, eos_id=eos)
            bits[eos] = bits_per_byte(lm, Bytes(), TEXTS)
    finally: lm.config = old
    assert bits[4, 5] == bits[4] and bits[5, 4] == bits[5] and len({bits[None], bits[4], bits[5]}) == 3
    class Shape: vocab_size, bos_id, eos_id = V, None, ()               # a config of another kind, with an empty list of ends
    from tokenlab.lm import scored_windows
    assert scored_windows(Shape, [[1, 2, 3]], 8, 4) == ([([1, 2], [2, 3])], 1)


def test_bits_errors(lm):
    for texts in ([], "", [""]):
        with pytest.raises(ValueError, match="at least one byte"): bits_per_byte(lm, Bytes(), texts)
    for bad in (dict(seq_len=0), dict(seq_len=999), dict(seq_len=8, stride=9), dict(stride=0)):
        with pytest.raises(ValueError, match="1 <= stride <= seq_len"): bits_per_byte(lm, Bytes(), "abc", **bad)
    class Foreign: encode = staticmethod(lambda text: [V])
    with pytest.raises(ValueError, match="this model's tokenizer"): bits_per_byte(lm, Foreign(), "abc")
    assert bits_per_byte(lm, Bytes(), "abc") == pytest.approx(bits_per_byte(lm, Bytes(), ["abc"]))
