"SCOUT's checkpoint attention against loops, the authors' function and the masked dense form; its cache; the pair of blocks."
import ast, math, os
from functools import partial
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from tokenlab.lm import LM, LMConfig, positions_of
from tokenlab.mixers.checks import check_mixer, made, noise
from tokenlab.mixers.core import MIXERS, DepthwiseConv, DiagonalSSM, WindowAttention, mixer_cache, run_cached
from tokenlab.mixers.scout import CheckpointAttention, Scout, attend, checkpoint_attention, scout_lm, visible_checkpoints, with_own

near = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)


def by_loops(q, k, v, stride):
    "The formula, number by number."
    B, H, T, d = q.shape
    out = torch.zeros(B, H, T, d, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                keys = [c for c in range(i) if c % stride == stride - 1] + [i]
                e = [math.exp(sum(float(q[b, h, i, j])*float(k[b, h, c, j]) for j in range(d))/math.sqrt(d)) for c in keys]
                for w, c in zip(e, keys): out[b, h, i] += w/sum(e)*v[b, h, c].double()
    return out.float()


@pytest.mark.parametrize("T,stride", [(1, 1), (1, 4), (4, 4), (5, 4), (8, 4), (13, 4), (9, 2), (7, 1), (6, 50)])
def test_equals_loops(T, stride):
    q, k, v = noise(3, 2, 2, T, 6)*1.5
    near(checkpoint_attention(q, k, v, stride), by_loops(q, k, v, stride))
    C = T//stride
    seen = torch.arange(C) < torch.arange(T)[:, None]//stride
    near(attend(q, k, v, k[:, :, stride-1::stride][:, :, :C], v[:, :, stride-1::stride][:, :, :C], seen[None]), by_loops(q, k, v, stride))


def test_stays_right_for_large_scores():
    q, k, v = noise(3, 1, 1, 21, 8)*torch.tensor([12., 12., 1.])[:, None, None, None, None]
    want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=visible_checkpoints(21, 4)).float()
    torch.testing.assert_close(checkpoint_attention(q, k, v, 4), want, atol=1e-3, rtol=1e-3)


def test_gradients_equal_the_dense_form():
    a, b = (noise(3, 2, 2, 19, 8).requires_grad_() for _ in range(2))
    up = noise(2, 2, 19, 8, seed=7)
    (checkpoint_attention(*a, 4)*up).sum().backward()
    (F.scaled_dot_product_attention(*b, attn_mask=visible_checkpoints(19, 4))*up).sum().backward()
    near(a.grad, b.grad)


def test_own_score_survives_bfloat16():
    q, k = (noise(1, 1, 50, 16, seed=s).bfloat16()*3 for s in (1, 2))
    exact = (q.float()*k.float()).sum(-1)
    two = with_own(q, k)[..., -2:].float().sum(-1)
    assert (two - exact).abs().max() < 1e-3*exact.abs().max() < (two.bfloat16().float() - exact).abs().max()*10


def test_no_matrix_of_tokens_by_tokens():
    "The largest tensor of a call is linear in T."
    from torch.utils._python_dispatch import TorchDispatchMode
    class Largest(TorchDispatchMode):
        most = 0
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for o in out if isinstance(out, tuple) else (out,):
                if isinstance(o, torch.Tensor): self.most = max(self.most, o.numel())
            return out
    sizes = []
    for T in (512, 2048):
        m = Scout(16, heads=2, seq_len=T, local=partial(WindowAttention, window=8), stride=4).eval()
        with torch.no_grad(), Largest() as seen: m(noise(1, T, 16))
        sizes.append(seen.most)
    assert sizes[1] < 5*sizes[0] and sizes[1] < 2048*2048//4


@pytest.mark.parametrize("stride", [1, 4, 10])
def test_protocol_of_the_attention(stride): check_mixer(partial(CheckpointAttention, stride=stride), forms=("causal",), dim=8, seq_len=48)


def test_protocol(): assert len(check_mixer(MIXERS["scout-s4d"], dim=8, seq_len=48)) == 9
def test_shift_symmetry_is_absent(): assert MIXERS["scout"].causal_symmetry is None


def test_stride_1_is_full_attention():
    a, b = made(partial(CheckpointAttention, stride=1), True), made(MIXERS["attention"], True)
    b.load_state_dict(a.state_dict())
    with torch.no_grad(): near(a(noise(2, 30, 16)), b(noise(2, 30, 16)))


@pytest.mark.parametrize("local", [partial(WindowAttention, window=5), DiagonalSSM, partial(DepthwiseConv, size=3)], ids=["window", "s4d", "convolution"])
def test_cache_grows_by_a_checkpoint_a_segment(local):
    m = made(partial(Scout, local=local, stride=6), True)
    x, cache = noise(2, 26, 16), mixer_cache(made(partial(Scout, local=local), True), 2, 26)
    with torch.no_grad():
        parts, sizes = [], []
        for t in range(26): parts.append(run_cached(m, x[:, t:t+1], [1], cache)); sizes.append(cache.nbytes//2)
        near(torch.cat(parts, 1), m(x))
    assert [(s - sizes[0])//(2*16*4) for s in sizes] == [(t + 1)//6 for t in range(26)]
    assert sizes[-1] == m.state_bytes(26) and cache.layers and cache[0].state["checkpoint_k"].shape == (2, 4, 16)


def test_ragged_cache_keeps_each_row_apart():
    m = made(partial(CheckpointAttention, stride=4), True)
    x, cache = noise(3, 20, 16), mixer_cache(made(partial(CheckpointAttention, stride=4), True), 3, 20)
    at = torch.arange(11)[None].repeat(3, 1)
    for b, n in enumerate((11, 4, 0)): at[b, n:] = -1
    with torch.no_grad():
        cache.begin(11); m(x[:, :11], cache=cache[0], positions=at); cache.advance([11, 4, 0])
        for _ in range(8):
            done = cache.lengths.tolist()
            cache.begin(1)
            y = m(torch.stack([x[b, n:n+1] for b, n in enumerate(done)]), cache=cache[0], positions=positions_of(cache.base, 1))
            cache.advance([1]*3)
            for b, n in enumerate(done): near(y[b, 0], m(x[b:b+1, :n+1])[0, n])


def test_padding_leaves_stored_checkpoints_alone():
    "A row of 8 tokens, idle while the other row goes on, still has its second checkpoint."
    m, x = made(partial(CheckpointAttention, stride=4), True), noise(2, 12, 16)
    cache = mixer_cache(m, 2, 12)
    step = lambda y, at, n: (cache.begin(y.shape[1]), m(y, cache=cache[0], positions=torch.tensor(at)), cache.advance(n))[1]
    with torch.no_grad():
        step(x[:, :8], [list(range(8))]*2, [8, 8])
        step(x[:, 8:9], [[-1], [8]], [0, 1])
        near(step(torch.stack([x[0, 8:9], x[1, 9:10]]), [[8], [9]], [1, 1])[0, 0], m(x[:1, :9])[0, 8])


def test_scout_reads_what_the_local_mixer_wrote():
    m, x = made(partial(Scout, local=partial(WindowAttention, window=4), stride=3), True), noise(2, 14, 16)
    with torch.no_grad():
        y = m.local(x)
        near(m(x), y + m.checkpoints(m.norm(x + y)))
        assert (m(x) - y - m.checkpoints(m.norm(x))).abs().max() > 1e-2


def test_the_pair_of_blocks():
    c = LMConfig(50, dim=16, n_layers=4, n_heads=2, max_len=64)
    a = scout_lm(c, local=partial(WindowAttention, window=64), stride=1, seed=0).eval()
    full = LM(c, seed=0).eval()
    full.load_state_dict(a.state_dict())
    ids = torch.arange(40)[None]
    with torch.no_grad(): near(a(ids).logits, full(ids).logits)                # a window and a stride that leave nothing out
    a = scout_lm(c, local=partial(WindowAttention, window=4), stride=3, seed=0)
    assert sum(p.numel() for p in a.parameters()) == sum(p.numel() for p in full.parameters())
    with pytest.raises(ValueError, match="even number"): scout_lm(LMConfig(50, dim=16, n_layers=3, n_heads=2))


def test_bad_input():
    with pytest.raises(ValueError, match="1 token apart"): CheckpointAttention(16, stride=0)
    with pytest.raises(ValueError, match="no local mixer"): Scout(16, local=MIXERS["attention"])
    with pytest.raises(ValueError, match="bidirectional"): Scout(16, causal=False)
    with pytest.raises(ValueError, match="from 0"): CheckpointAttention(16)(noise(1, 5, 16), positions=torch.arange(3, 8)[None])
    m = CheckpointAttention(16)
    assert m(noise(2, 0, 16)).shape == (2, 0, 16) and m(noise(2, 1, 16)).shape == (2, 1, 16)


def theirs():
    "The authors' attention function, if SCOUT_FILE names their modeling_scout_swa.py."
    path = os.environ.get("SCOUT_FILE")
    if not path or not Path(path).exists(): pytest.skip("SCOUT_FILE does not name the authors' modeling_scout_swa.py")
    wanted = ("repeat_kv", "eager_sparse_attention_forward")
    tree = ast.parse(Path(path).read_text(encoding="utf8"))
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in wanted]
    from typing import Optional
    space = {"torch": torch, "nn": torch.nn, "Optional": Optional}
    exec(compile(tree, path, "exec"), space)
    return space["eager_sparse_attention_forward"]


@pytest.mark.parametrize("T,stride", [(30, 10), (37, 10), (9, 4), (5, 10)])
def test_equals_the_authors_function(T, stride):
    class Module: num_key_value_groups, selection_window_size, training = 1, stride, False
    q, k, v = noise(3, 2, 2, T, 8)*2
    causal = torch.full((T, T), torch.finfo(torch.float32).min).triu(1)[None, None].expand(2, 1, T, T)
    want = theirs()(Module, q, k, v, causal, 8**-.5)[0].transpose(1, 2)
    near(checkpoint_attention(q, k, v, stride), want)
