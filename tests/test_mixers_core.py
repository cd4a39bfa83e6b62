"The baselines of the mixers: each keeps the protocol, and computes what an outside reference computes."
from functools import partial
import pytest, torch
import torch.nn.functional as F
from tokenlab.lm import LM, LMConfig
from tokenlab.mixers.checks import check_causal, check_mixer, check_symmetry, made, noise
from tokenlab.mixers.core import (MIXERS, DepthwiseConv, DiagonalSSM, FNet, LinearAttention, MLPMixer, Mixer, Pooling, RandomMatrix, Registry, SelectiveSSM, SoftmaxAttention,
    UnknownMixer, WindowAttention, influence, linear_scan, mixer, mixer_cache, run_cached)

BASELINES = ["identity", "attention", "window", "pooling", "convolution", "random", "mlp-mixer", "fnet", "linear", "s4d", "selective"]
near = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BASELINES)
def test_protocol(name):
    assert len(check_mixer(MIXERS[name])) == (5 if name == "fnet" else 14)
    assert name == "fnet" or isinstance(MIXERS[name](16, heads=2, seq_len=32), Mixer)


@pytest.mark.parametrize("factory", [partial(WindowAttention, window=5), partial(WindowAttention, window=1), partial(Pooling, size=4), partial(DepthwiseConv, size=1), partial(DepthwiseConv, size=4),
    partial(DiagonalSSM, states=3), partial(SelectiveSSM, states=3, expand=1, kernel=2), partial(RandomMatrix, trainable=True)], ids=["window5", "window1", "pool4", "conv1", "conv4", "s4d3", "selective3", "trainable"])
def test_protocol_with_other_options(factory): check_mixer(factory)


def test_the_lm_default_is_the_attention_mixer():
    c, ids = LMConfig(40, dim=32, n_layers=2, n_heads=4, max_len=64), torch.arange(30).view(2, 15)
    with torch.no_grad(): near(LM(c, seed=1)(ids).logits, LM(c, mixer=MIXERS["attention"], seed=1)(ids).logits)


@pytest.mark.parametrize("T,window", [(50, 7), (50, 64), (1, 4), (17, 17), (33, 2)])
@pytest.mark.parametrize("causal", [True, False])
def test_window_is_masked_attention(T, window, causal):
    w, full = made(partial(WindowAttention, window=window), causal, dim=16), SoftmaxAttention(16, heads=2, causal=causal)
    full.load_state_dict(w.state_dict())
    apart = torch.arange(T)[:, None] - torch.arange(T)
    mask = (apart >= 0) & (apart < window) if causal else (apart <= (window - 1)//2) & (apart >= -(window//2))
    with torch.no_grad(): near(w(x := noise(2, T, 16)), full(x, mask=mask[None, None]))


def test_window_costs_less_than_a_square():
    "Memory of the largest tensor grows with the length, not with its square."
    from torch.utils._python_dispatch import TorchDispatchMode
    class Largest(TorchDispatchMode):
        most = 0
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple) else (out,):
                if isinstance(t, torch.Tensor): self.most = max(self.most, t.numel())
            return out
    def most(T):
        with torch.no_grad(), Largest() as mode: WindowAttention(16, heads=2, window=32)(noise(1, T, 16))
        return mode.most
    assert most(2048) < 2.2*most(1024)


@pytest.mark.parametrize("causal", [True, False])
def test_pooling_against_avg_pool(causal):
    x = noise(2, 11, 3)
    y = F.avg_pool1d(x.mT, 3, 1, 1, count_include_pad=False).mT if not causal else torch.stack([x[:, max(0, t - 2):t + 1].mean(1) for t in range(11)], 1)
    near(Pooling(3, causal=causal)(x), y - x)


def test_causal_convolution_against_conv1d():
    conv, x = DepthwiseConv(4, size=5), noise(2, 11, 4)
    near(conv(x), F.conv1d(F.pad(x.mT, (4, 0)), conv.weight.T[:, None], groups=4).mT)


@pytest.mark.parametrize("causal", [True, False])
def test_random_matrix_rows_are_means(causal):
    m = RandomMatrix(8, seq_len=12, causal=causal)
    logits = m.matrix.log()[:9, :9]
    w = (logits.masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), -torch.inf) if causal else logits).softmax(-1)
    near(m(x := noise(2, 9, 8)), w @ x)
    near(m(torch.ones(1, 9, 8)), torch.ones(1, 9, 8))


def test_fnet_is_two_dft_matrices():
    x, dft = noise(2, 7, 4), lambda n: torch.exp(-2j*torch.pi*torch.outer(torch.arange(n), torch.arange(n))/n)/n**.5
    near(FNet(4)(x), (dft(7).to(torch.complex64) @ x.to(torch.complex64) @ dft(4).to(torch.complex64)).real)
    with pytest.raises(ValueError, match="no causal form"): FNet(4, causal=True)
    with pytest.raises(ValueError, match="no causal form"): LM(LMConfig(9, dim=8, n_layers=1, n_heads=2), mixer=MIXERS["fnet"])


@pytest.mark.parametrize("causal", [True, False])
def test_linear_attention_is_the_quadratic_formula(causal):
    m, x = made(LinearAttention, causal), noise(2, 70, 16)
    with torch.no_grad():
        split = lambda y: y.view(2, 70, 2, 8).transpose(1, 2)
        q, k, v = F.elu(split(m.q_proj(x))) + 1, F.elu(split(m.k_proj(x))) + 1, split(m.v_proj(x))
        scores = (q @ k.mT).tril() if causal else q @ k.mT
        y = (scores/scores.sum(-1, keepdim=True)) @ v
        near(m(x), m.o_proj(y.transpose(1, 2).reshape(2, 70, 16)))


def test_s4d_is_its_recurrence():
    m, x = made(DiagonalSSM, True, dim=5), noise(2, 33, 5)
    with torch.no_grad():
        A = torch.complex(-m.log_decay[0].exp(), m.frequency[0])
        step = m.log_dt[0].exp()[:, None]
        a, b, C, h, out = (step*A).exp(), ((step*A).exp() - 1)/A, torch.view_as_complex(m.C[0]), torch.zeros(2, 5, 16, dtype=torch.complex64), []
        for t in range(33): h = a*h + b*x[:, t, :, None]; out.append(2*(C*h).sum(-1).real + x[:, t]*m.skip)
        near(m(x), m.o_proj(F.gelu(torch.stack(out, 1))), atol=1e-4, rtol=1e-3)


def test_selective_is_the_mamba_of_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba.modeling_mamba import MambaMixer
    c = transformers.MambaConfig(hidden_size=32, state_size=8, expand=2, conv_kernel=4, time_step_rank=2, use_bias=False, num_hidden_layers=1)
    torch.manual_seed(0)
    theirs, ours = MambaMixer(c, 0).eval(), SelectiveSSM(32, states=8)
    with torch.no_grad():
        for a, b in ((ours.in_proj.weight, theirs.in_proj.weight), (ours.out_proj.weight, theirs.out_proj.weight), (ours.conv, theirs.conv1d.weight[:, 0].T), (ours.conv_bias, theirs.conv1d.bias), (ours.x_proj.weight, theirs.x_proj.weight),
                     (ours.dt_up, theirs.dt_proj.weight.T), (ours.dt_bias, theirs.dt_proj.bias), (ours.log_A, theirs.A_log), (ours.skip, theirs.D)): a.copy_(b)
        near(ours(x := noise(2, 21, 32)), theirs(x))


def test_linear_scan_goes_on_from_a_state():
    q, k, v = noise(3, 1, 2, 133, 4).unbind(0)
    whole, S = linear_scan(q, k, v)
    first, s = linear_scan(q[:, :, :65], k[:, :, :65], v[:, :, :65])
    then, s = linear_scan(q[:, :, 65:], k[:, :, 65:], v[:, :, 65:], s)
    near(torch.cat([first, then], 2), whole); near(s, S)


def test_influence_is_the_jacobian_of_a_linear_mixer():
    m = RandomMatrix(6, seq_len=9)
    w = (m.matrix*torch.ones(9, 9).tril()); w = w/w.sum(-1, keepdim=True)
    seen = influence(m, noise(1, 9, 6), probes=200)
    torch.testing.assert_close(seen, w, atol=.02, rtol=.1)


def test_the_checks_can_fail():
    class Ahead(Pooling):
        def __init__(self, dim, *, heads, seq_len, causal): super().__init__(dim, causal=False)
    with pytest.raises(AssertionError, match="looks ahead"): check_causal(Ahead)
    with pytest.raises(AssertionError, match="shift"): check_symmetry(Pooling, False, None)
    with pytest.raises(AssertionError, match="permuted"): check_symmetry(Pooling, False, "permutation")
    with pytest.raises(AssertionError, match="symmetry='permutation'"): check_symmetry(MIXERS["linear"], False, "shift")


def test_bidirectional_has_no_cache():
    for name in ("attention", "pooling", "s4d", "random"):
        with pytest.raises(ValueError, match="causal=True"): run_cached(MIXERS[name](8, heads=2, seq_len=8, causal=False), noise(1, 4, 8), [4])


def test_long_text_and_bad_options():
    for m in (RandomMatrix(4, seq_len=8), MLPMixer(4, seq_len=8)):
        with pytest.raises(ValueError, match="seq_len=8"): m(noise(1, 9, 4))
        cache = mixer_cache(m, 1, 9)
        run_cached(m, noise(1, 8, 4), [8], cache)
        with pytest.raises(ValueError, match="seq_len=8"): run_cached(m, noise(1, 1, 4), [1], cache)
    with pytest.raises(ValueError, match="window=0"): WindowAttention(8, window=0)
    with pytest.raises(ValueError, match="multiple of heads"): LinearAttention(9, heads=2)
    with pytest.raises(ValueError, match="one by one"):
        lm = LM(LMConfig(9, dim=8, n_layers=1, n_heads=2), mixer=MIXERS["s4d"])
        lm(torch.ones(1, 4, dtype=torch.long), segments=torch.tensor([[0, 0, 1, 1]]), cache=lm.new_cache())


def test_registry_is_lazy_and_survives_a_broken_module(tmp_path, monkeypatch):
    package = tmp_path/"toy_mixers"
    package.mkdir()
    for name, text in (("__init__", ""), ("good", "import toy_mixers.reg as r; r.R.known['good'] = 1"), ("bad", "1/0"), ("reg", "from tokenlab.mixers.core import Registry; R = Registry('toy_mixers')")):
        (package/f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import toy_mixers.reg as r
    assert not r.R.loaded
    with pytest.warns(UserWarning, match="bad is left out: ZeroDivisionError"): assert r.R["good"] == 1
    assert list(r.R) == ["good"] and "other" not in r.R
    with pytest.raises(UnknownMixer, match="choose from good"): r.R["other"]


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="already"): mixer("pooling", cost="T")(type("Other", (), {"__module__": "elsewhere"}))
    with pytest.raises(ValueError, match="symmetry is one of"): mixer("new", cost="T", symmetry="mirror")
    assert isinstance(MIXERS, Registry) and set(BASELINES) <= set(MIXERS)


def test_losses_of_the_layers_are_added():
    class Costly(Pooling):
        def mix(self, x, positions, pad, state): self.losses = {"cost": torch.tensor(1.5)}; return super().mix(x, positions, pad, state)
    lm = LM(LMConfig(9, dim=8, n_layers=3, n_heads=2), mixer=Costly)
    assert lm(torch.ones(1, 4, dtype=torch.long)).losses == {"cost": 4.5} and lm(torch.ones(1, 4, dtype=torch.long), layers=range(2)).losses == {"cost": 3.}


def test_a_model_leaves_a_mixer_its_own_first_weights():
    alone = SelectiveSSM(32)
    inside = LM(LMConfig(20, dim=32, n_layers=1, n_heads=2), mixer=MIXERS["selective"], seed=0).blocks[0].mixer
    assert inside.in_proj.weight.std().item() == pytest.approx(alone.in_proj.weight.std().item(), rel=.1) and inside.in_proj.weight.std().item() > .08
    assert LM(LMConfig(20, dim=32, n_layers=1, n_heads=2), mixer=MIXERS["linear"], seed=0).blocks[0].mixer.q_proj.weight.std().item() == pytest.approx(.02, rel=.1)


def test_decays_are_no_matrices():
    from tokenlab.training import kinds
    for name, vectors in (("selective", {"log_A", "conv"}), ("s4d", {"log_dt", "log_decay", "frequency"})):
        found = {n.rpartition(".")[2] for n, kind in kinds(MIXERS[name](16)).items() if kind == "vector"}
        assert vectors <= found and "weight" not in found
