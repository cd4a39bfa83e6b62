"The relaxed variants against brute force, standard attention and the paper's definitions."
import copy, math
import pytest, torch
from tokenlab.generate import generate
from tokenlab.lm import LM, LMConfig, positions_of
from tokenlab.mixers.checks import check_mixer, made
from tokenlab.mixers.core import MIXERS
from tokenlab.mixers.deconstructing import VARIANTS, RelaxedLM, SelfGate, Stack, Taylor2, attention_maps, attention_stats, layout, running_softmax, skip_layers

TEXT = torch.randint(40, (64,), generator=torch.Generator().manual_seed(0)).tolist()


def model(name, where="uniform", seed=0, **kw):
    lm = RelaxedLM(LMConfig(40, dim=32, n_layers=4, n_heads=2, max_len=64, **kw), layout(name, 4, where), probe_ids=TEXT, seed=seed).eval()
    with torch.no_grad():
        for p in lm.parameters():
            if p.ndim: p.add_(.1*torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return lm


def ids(B=2, T=30): return torch.randint(40, (B, T), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["gated-mlp", "taylor2", "selfgate"])
def test_protocol(name): check_mixer(MIXERS[name])


@pytest.mark.parametrize("joint", [True, False])
def test_taylor_is_the_double_loop(joint):
    m = made(lambda *a, **kw: Taylor2(*a, joint=joint, **kw), True).double()
    x = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(3)).double()
    q, k, v = (y.float() for y in m.qkv(x, positions_of([0], 20)))
    want = torch.zeros_like(v)
    for t in range(20):
        s = (q[:, :, t:t+1]*k[:, :, :t+1]).sum(-1)/8**.5
        orders = [torch.ones_like(s), s, s*s/2]
        if joint: orders = [sum(orders)]
        want[:, :, t] = sum((w[..., None]*v[:, :, :t+1]).sum(2)/w.sum(-1, keepdim=True) for w in orders)
    got = m.sums(q, k, v, None, None)
    calm = want.abs().amax(-1) < 20                       # a vanishing first-order denominator magnifies rounding
    torch.testing.assert_close(got[calm], want[calm], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scale", [1., 1e3, 1e5])
def test_selfgate_is_safe_and_exact(scale):
    g = torch.Generator().manual_seed(0)
    s, v = scale*torch.randn(2, 3, 70, generator=g), torch.randn(2, 3, 70, 4, generator=g)
    want = torch.stack([(s[..., :t+1].softmax(-1)[..., None]*v[:, :, :t+1]).sum(2) for t in range(70)], 2)
    torch.testing.assert_close(running_softmax(s, v, block=16)[0], want, atol=1e-4, rtol=1e-3 if scale < 1e4 else .05)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("where", ["uniform", "hybrid"])
def test_stack(name, where):
    lm, x = model(name, where), ids()
    with torch.no_grad():
        whole, cache = lm(x).logits, lm.new_cache(2)
        torch.testing.assert_close(torch.cat([lm(p, cache=cache).logits for p in x.split([17, 1, 1, 11], 1)], 1), whole, atol=2e-4, rtol=1e-3)
        y = x.clone(); y[:, 20] = (y[:, 20] + 1) % 40
        torch.testing.assert_close(lm(y).logits[:, :20], whole[:, :20], atol=1e-5, rtol=1e-4)
        ragged = torch.cat([x[:1], torch.cat([x[1:, :7], torch.full((1, 23), -1)], 1)])
        torch.testing.assert_close(lm(ragged).logits[1, :7], lm(x[1:, :7]).logits[0], atol=2e-4, rtol=1e-3)
        packed = lm(x[:1], segments=torch.tensor([[0]*12 + [1]*18])).logits
        torch.testing.assert_close(packed[:, 12:], lm(x[:1, 12:]).logits, atol=2e-4, rtol=1e-3)
    prompt = x[0, :5].tolist()
    out = generate(lm, prompt, max_new_tokens=6).ids
    with torch.no_grad(): best = lm(torch.tensor([prompt + out])).logits[0, 4:-1]
    assert all(row.max() - row[t] < 1e-3 for row, t in zip(best, out))


@pytest.mark.parametrize("name", ["rnd_qk", "fixed_qk"])
def test_probe_runs_through_the_same_stack(name):
    "Written out: probe and batch side by side, block by block, the map of the probe applied to both."
    lm, x = model(name), ids(1)
    T, c = x.shape[1], lm.config
    with torch.no_grad():
        X = (lm.noise if name == "rnd_qk" else lm.embed(lm.text))[:, :T]
        h = torch.cat([lm.embed(x), X])
        for b in lm.blocks:
            n, m = b.norm1(h), b.mixer
            split = lambda y: y.view(len(y), T, c.n_heads, -1).transpose(1, 2)
            q, k = m.rope.turn(split(n[1:] @ m.q_proj.weight.T), split(n[1:] @ m.k_proj.weight.T), torch.arange(T)[None])
            A = (q @ k.mT/c.head_dim**.5).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
            h = h + m.o_proj((A @ split(m.v_proj(n))).transpose(1, 2).reshape(2, T, -1))
            h = h + b.mlp(b.norm2(h))
        torch.testing.assert_close(lm.logits(h[:1]), lm(x).logits, atol=1e-4, rtol=1e-3)


def test_probe_gets_gradients_and_is_not_stale():
    lm, x = model("fixed_qk"), ids()
    with torch.no_grad(): before = lm(x).logits
    lm(x).logits.square().mean().backward()
    unread = next(i for i in range(40) if i not in x and i in TEXT[:30]) if set(TEXT[:30]) - set(x.flatten().tolist()) else None
    if unread is not None: assert lm.embed.weight.grad[unread].abs().sum() > 0
    assert all(b.mixer.q_proj.weight.grad.abs().max() > 0 for b in lm.blocks)
    copy.deepcopy(lm)
    with torch.no_grad(): lm.blocks[0].mixer.k_proj.weight.mul_(-2.); assert not torch.allclose(lm(x).logits, before)


def test_static_reads_raw_embeddings():
    lm, x = model("static_qk"), ids(1)
    A = attention_maps(lm, x)[2]
    with torch.no_grad():
        m, e = lm.blocks[2].mixer, lm.embed(x)
        split = lambda y: y.view(1, 30, 2, -1).transpose(1, 2)
        q, k = m.rope.turn(split(e @ m.q_proj.weight.T), split(e @ m.k_proj.weight.T), torch.arange(30)[None])
        want = (q @ k.mT/4).masked_fill(torch.ones(30, 30).triu(1).bool(), -math.inf).softmax(-1)
    torch.testing.assert_close(A, want, atol=1e-5, rtol=1e-4)


def test_parameters_match():
    size = lambda lm: sum(p.numel() for p in lm.parameters())
    want = size(LM(LMConfig(40, dim=32, n_layers=4, n_heads=2, max_len=64)))
    for name in VARIANTS: assert abs(size(model(name)) - want) < .005*want


def test_skip_and_stats():
    lm, x = model("selfgate", "hybrid"), ids()
    with torch.no_grad():
        before = lm(x).logits
        with skip_layers(lm): assert not torch.allclose(lm(x).logits, before)
        assert torch.equal(lm(x).logits, before)
    stats = attention_stats(torch.ones(16, 16).tril()[None, None]/torch.arange(1, 17)[:, None])
    assert math.isclose(stats["entropy"], sum(math.log(n) for n in range(1, 17))/16, rel_tol=1e-5)
    for A in attention_maps(lm, x).values(): torch.testing.assert_close(A.sum(-1), torch.ones(2, 2, 30), atol=1e-4, rtol=1e-4)


def test_plain_stack_and_bad_input():
    lm = LM(LMConfig(40, dim=32, n_layers=2, n_heads=2), mixer=Stack(["selfgate", "taylor2"]))
    assert [type(b.mixer) for b in lm.blocks] == [SelfGate, Taylor2]
    with pytest.raises(ValueError, match="choose from"): Stack(["softmax"])
    with pytest.raises(ValueError, match="probe_ids"): RelaxedLM(lm.config, ["fixed_qk"]*2)
