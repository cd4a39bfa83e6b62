"JustDense against the authors' files, brute force, and the identities of a matrix mixer."
import importlib.util, os, sys, types
from pathlib import Path
import pytest, torch
import torch.nn as nn
import torch.nn.functional as F
from tokenlab.mixers.checks import check_mixer
from tokenlab.mixers.core import MIXERS, DepthwiseConv, Pooling, RandomMatrix, SoftmaxAttention
from tokenlab.mixers import justdense as jd
from tokenlab.mixers.justdense import AutoCorrelation, DenseBlock, DenseMixer, InEncoder, attention_map, decompose, mixing_matrix, replace_mixer, toeplitz, with_mixer


def theirs(name):
    "A module of the authors' `layers`, if JUSTDENSE_DIR names a checkout of theirs."
    folder = os.environ.get("JUSTDENSE_DIR")
    if not folder or not (Path(folder)/"layers").is_dir(): pytest.skip("JUSTDENSE_DIR names no checkout of the authors' code")
    pytest.importorskip("einops")
    spec = importlib.util.spec_from_file_location("authors_dense", Path(folder)/"layers/matrix_mixers/dense.py")
    dense = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dense)
    if name == "dense": return dense.Dense
    class Norm(nn.Module):                                     # stands for a CUDA kernel that their file asks for and never calls
        def __init__(self, *args, **kw): super().__init__()
    others = {n: object for n in ("Toeplitz", "Vandermonde", "Cauchy", "LowRank", "Attention", "Quasiseparable")}
    fakes = {"authors": {"__path__": []}, "authors.matrix_mixers": {"Dense": dense.Dense} | others, "mamba_ssm.ops.triton.layernorm_gated": {"RMSNorm": Norm},
             **{n: {"__path__": []} for n in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton")}}
    with pytest.MonkeyPatch.context() as patch:
        for n, values in fakes.items():
            m = types.ModuleType(n); m.__dict__.update(values); patch.setitem(sys.modules, n, m)
        spec = importlib.util.spec_from_file_location(f"authors.{name}", Path(folder)/f"layers/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.MatrixMixer


@pytest.mark.parametrize("L, D, H", [(12, 8, 4), (7, 6, 1), (1, 4, 2)])
def test_equals_the_authors_dense(L, D, H):
    torch.manual_seed(0)
    their = theirs("dense")(D, L, expand=1, headdim=D//H)
    mine = DenseMixer(L, D, H)
    mine.M.data.copy_(their.M.data)
    x = torch.randn(3, L, D)
    torch.testing.assert_close(mine(x), their(x), atol=1e-6, rtol=1e-6)
    assert sum(p.numel() for p in their.parameters()) == mine.M.numel()


@pytest.mark.parametrize("conv", [1, 7])
def test_equals_the_authors_block(conv):
    torch.manual_seed(0)
    their = theirs("matrix_mixer")("dense", False, 8, -1, max_seq_len=12, d_conv=conv, nheads=4)
    mine = DenseBlock(8, 12, conv=conv, heads=4)
    with torch.no_grad():
        mine.in_proj.weight.copy_(their.in_proj.weight[16:])   # their first half makes the gate, which nothing reads
        mine.out_proj.weight.copy_(their.out_proj.weight); mine.mixer.M.copy_(their.matrix_mixer.M)
        mine.conv.load_state_dict(their.conv1d.state_dict())
    x = torch.randn(3, 12, 8)
    torch.testing.assert_close(mine(x), their(x), atol=1e-6, rtol=1e-5)


def test_the_authors_wrapper_of_attention_hosts_is_the_bare_mixer():
    torch.manual_seed(0)
    their = theirs("build_matrix")("dense", False, 8, 4, max_seq_len=12, nheads=4)
    mine = DenseMixer(12, 8, 4)
    mine.M.data.copy_(their.matrix_mixer.M.data)
    x = torch.randn(3, 12, 8)
    torch.testing.assert_close(mine(x), their(x, x, x)[0], atol=1e-6, rtol=1e-6)


def block_diagonal(M, D, residual=True, scale=True):
    "The (L D, L D) matrix that acts on the flattened row, entry by entry."
    H, L, _ = M.shape
    big = torch.zeros(L*D, L*D)
    for t in range(L):
        for s in range(L):
            for c in range(D): big[t*D + c, s*D + c] = M[c//(D//H), t, s]*(L**-.5 if scale else 1.) + (residual and t == s)
    return big


@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_equals_brute_force(heads, residual, scale):
    torch.manual_seed(heads)
    m = DenseMixer(5, 6, heads, residual=residual, scale=scale)
    x = torch.randn(4, 5, 6)
    want = (block_diagonal(m.M.detach(), 6, residual, scale) @ x.flatten(1).T).T.view(4, 5, 6)
    torch.testing.assert_close(m(x), want)
    for h, A in enumerate(m.matrix()): torch.testing.assert_close(mixing_matrix(m, 5, 6, h*6//heads), A.detach())


def test_linear_and_identity():
    torch.manual_seed(0)
    m, x, y = DenseMixer(9, 6, 3), torch.randn(2, 9, 6), torch.randn(2, 9, 6)
    torch.testing.assert_close(m(.5*x - 2*y), .5*m(x) - 2*m(y))
    nn.init.zeros_(m.M)
    assert torch.equal(m(x), x)


def test_xavier_counts_the_axes_as_pytorch_does():
    torch.manual_seed(0)
    for L, H in ((64, 2), (40, 16)): assert DenseMixer(L, 16, H).M.std().item() == pytest.approx((2/(L*(L + H)))**.5, rel=.05)


def test_every_static_mixer_is_a_special_case():
    torch.manual_seed(0)
    x = torch.randn(2, 11, 4)
    for other in (Pooling(4, causal=False), RandomMatrix(4, seq_len=11, causal=False), RandomMatrix(4, seq_len=11, causal=True)):
        torch.testing.assert_close(DenseMixer(11, 4).become(mixing_matrix(other, 11, 4))(x), other(x), msg=type(other).__name__)
    conv = DepthwiseConv(4, causal=False)
    per_channel = torch.stack([toeplitz(conv.weight[:, c].detach(), 11) for c in range(4)])
    m = DenseMixer(11, 4, 4).become(per_channel)
    torch.testing.assert_close(m(x), conv(x))
    torch.testing.assert_close(m.M, 11**.5*(per_channel - torch.eye(11)))


def test_toeplitz_is_conv1d():
    torch.manual_seed(0)
    for k, T in ((1, 5), (3, 5), (7, 3), (5, 12)):
        w, x = torch.randn(k), torch.randn(T)
        torch.testing.assert_close(toeplitz(w, T) @ x, F.conv1d(x[None, None], w[None, None], padding=k//2)[0, 0])


def test_a_frozen_attention_map():
    torch.manual_seed(0)
    attention, x, y = SoftmaxAttention(8, heads=4, causal=False), torch.randn(1, 10, 8), torch.randn(1, 10, 8)
    m = DenseMixer(10, 8, 4).become(attention_map(attention, x)[0])
    torch.testing.assert_close(attention.o_proj(m(attention.v_proj(x))), attention(x))
    assert (attention.o_proj(m(attention.v_proj(y))) - attention(y)).abs().max() > 1e-3      # another input, another map


@pytest.mark.parametrize("name", ["dense", "dense-block"])
def test_protocol(name):
    check_mixer(MIXERS[name])
    assert MIXERS[name].paper == "justdense"
    with pytest.raises(ValueError, match="no causal form"): MIXERS[name](8, causal=True)


def test_gate_is_hydras():
    torch.manual_seed(0)
    m, x = DenseBlock(6, 9, heads=2, gate=True), torch.randn(2, 9, 6)
    u, z = (x @ m.in_proj.weight.T).split(12, -1)
    y = m.mixer(F.silu(F.conv1d(u.mT, m.conv.weight, m.conv.bias, padding=3, groups=12)).mT)
    y = y/(y.square().mean(-1, keepdim=True) + 1e-5).sqrt()*z*z.sigmoid()
    torch.testing.assert_close(m(x), y @ m.out_proj.weight.T)


def test_shorter_rows_end_in_zeros():
    torch.manual_seed(0)
    for m in (DenseMixer(9, 6, 2, shorter=True), DenseBlock(6, 9, heads=2, shorter=True)):
        x = torch.randn(2, 5, 6)
        torch.testing.assert_close(m(x), m(F.pad(x, (0, 0, 0, 4)), positions=torch.tensor([[0, 1, 2, 3, 4, -1, -1, -1, -1]]))[:, :5])


@pytest.mark.parametrize("make", [lambda: DenseMixer(6, 8, 2), lambda: DenseBlock(8, 6, heads=2, gate=True)], ids=["mixer", "block"])
def test_bf16_and_small_input(make):
    torch.manual_seed(0)
    m, x = make(), torch.randn(3, 6, 8)
    want, got = m(x), m.to(torch.bfloat16)(x.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, atol=.1, rtol=.05)
    assert m(x[:0].bfloat16()).shape == (0, 6, 8)


def test_bad_input():
    for T in (1, 5, 7):
        with pytest.raises(ValueError, match="made for 6.*length="): DenseMixer(6, 8)(torch.zeros(1, T, 8))
    with pytest.raises(ValueError, match="made for 6"): DenseMixer(6, 8, shorter=True)(torch.zeros(1, 7, 8))
    with pytest.raises(ValueError, match=r"give \(B, 6, 8\)"): DenseMixer(6, 8)(torch.zeros(1, 6, 9))
    with pytest.raises(ValueError, match=r"give \(B, 6, 8\)"): DenseMixer(6, 8)(torch.zeros(6, 8))
    for kw in (dict(length=0, dim=8), dict(length=4, dim=8, heads=3), dict(length=4, dim=8, heads=0)):
        with pytest.raises(ValueError, match="multiple of heads"): DenseMixer(**kw)
    with pytest.raises(ValueError, match="odd"): DenseBlock(8, 6, conv=2)
    with pytest.raises(ValueError, match="choose from"): with_mixer("patches", "dens", "forecasting")
    with pytest.raises(ValueError, match="choose from"): with_mixer("patch", "dense", "forecasting")
    with pytest.raises(ValueError, match="choose from"): with_mixer("patches", "dense", "forecast")


class Two(nn.Module):
    "A model with one attention in two places and another inside a module."
    def __init__(self):
        super().__init__()
        self.first = SoftmaxAttention(8, causal=False)
        self.again, self.rest = self.first, nn.ModuleList([nn.Sequential(SoftmaxAttention(8, causal=False))])


def test_replace_mixer():
    model = Two().to(torch.bfloat16).eval()
    done = replace_mixer(model, SoftmaxAttention, lambda old: DenseMixer(5, 8))
    assert done.names == ("first", "again", "rest.0.0") and model.first is model.again and model.first is not model.rest[0][0]
    assert (done.before, done.after) == (2*4*64, 2*25)
    assert model.first.M.dtype == torch.bfloat16 and not model.first.training
    model = Two()
    assert replace_mixer(model, "rest.*", lambda old: nn.Identity()).names == ("rest.0",)                 # the outermost
    assert replace_mixer(model, lambda name, m: name == "first", lambda old: nn.Identity()).names == ("first",)
    with pytest.raises(ValueError, match="no module matches 'x'"): replace_mixer(model, "x", lambda old: old)
    with pytest.raises(ValueError, match="must return a module"): replace_mixer(model, "again", lambda old: None)


def test_in_pytorchs_encoder():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.), 2, enable_nested_tensor=False)
    replace_mixer(encoder, "*.self_attn", lambda old: InEncoder(DenseMixer(6, 8, 2)))
    x, pad = torch.randn(3, 6, 8), torch.tensor([[False]*6, [False]*4 + [True]*2, [False] + [True]*5])
    for training in (True, False):
        encoder.train(training)
        y = encoder(x, src_key_padding_mask=pad)
        z = encoder(x.masked_fill(pad[..., None], 9.), src_key_padding_mask=pad)
        torch.testing.assert_close(y[~pad], z[~pad])                                                     # padding is not read
    layer, h = encoder.layers[0], encoder.layers[0].self_attn.mixer(x)
    torch.testing.assert_close(layer(x), layer.norm2(layer.norm1(x + h) + layer.linear2(layer.linear1(layer.norm1(x + h)).relu())))
    with pytest.raises(ValueError, match="same tensor"): layer.self_attn(x, x.clone(), x)
    with pytest.raises(ValueError, match="attn_mask"): encoder(x, mask=torch.zeros(6, 6))


def their_files(*names):
    "Modules of the authors' checkout; a loop over steps stands for the CUDA kernel of Mamba."
    folder = os.environ.get("JUSTDENSE_DIR")
    if not folder or not (Path(folder)/"layers").is_dir(): pytest.skip("JUSTDENSE_DIR names no checkout of the authors' code")
    pytest.importorskip("einops"); pytest.importorskip("matplotlib")
    def scan(u, dt, A, B, C, D, z=None, delta_bias=None, delta_softplus=True, return_last_state=False): # u, dt, z (b, d, l); A (d, n); B, C (b, n, l)
        dt, h, out = F.softplus(dt + delta_bias[:, None]), torch.zeros(len(u), *A.shape), []
        for t in range(u.shape[2]):
            h = h*(dt[:, :, t, None]*A).exp() + (dt*u)[:, :, t, None]*B[:, None, :, t]
            out.append((h*C[:, None, :, t]).sum(-1))
        return (torch.stack(out, -1) + u*D[:, None])*F.silu(z)
    fakes = {"mamba_ssm": {"__path__": [], "Mamba": None}, "mamba_ssm.ops": {"__path__": []}, "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": scan, "mamba_inner_fn": None},
             **{n: {"__path__": [str(Path(folder)/n)]} for n in ("layers", "models")}, "layers.SelfAttention_Family": {"FullAttention": lambda *a, **k: None, "AttentionLayer": lambda *a, **k: None},
             "layers.matrix_mixer": {"MatrixMixer": None}}
    old = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("layers", "models", "mamba_ssm")}
    try:
        for n in old: del sys.modules[n]
        for n, values in fakes.items(): m = types.ModuleType(n); m.__dict__.update(values); sys.modules[n] = m
        sys.modules["mamba_ssm"].Mamba = importlib.import_module("models.MambaSimple").Mamba
        return [importlib.import_module(n) for n in names]
    finally:
        for n in [n for n in sys.modules if n.split(".")[0] in ("layers", "models", "mamba_ssm")]: del sys.modules[n]
        sys.modules.update(old)


def configs(goal, **kw):
    "Sizes under the authors' names."
    names = dict(zip(jd.GOALS, ("long_term_forecast", "imputation", "anomaly_detection", "classification")))
    return types.SimpleNamespace(**dict(task_name=names[goal], pred_len=8, seq_len=16, label_len=8, enc_in=3, dec_in=3, c_out=3, d_model=8, d_ff=12, d_state=16, d_conv=4, expand=2, e_layers=2, d_layers=1, n_heads=2, factor=3,
        moving_avg=9, dropout=0., activation="gelu", embed="timeF", freq="h", num_class=5, output_attention=False, use_norm=1, class_strategy="projection") | kw)


def copy_mamba(mine, their):
    with torch.no_grad():
        mine.conv_bias.copy_(their.conv1d.bias)
        mine.in_proj.weight.copy_(their.in_proj.weight); mine.out_proj.weight.copy_(their.out_proj.weight); mine.x_proj.weight.copy_(their.x_proj.weight)
        mine.conv.copy_(their.conv1d.weight[:, 0].T); mine.dt_up.copy_(their.dt_proj.weight.T); mine.dt_bias.copy_(their.dt_proj.bias)
        mine.log_A.copy_(their.A_log); mine.skip.copy_(their.D)


SMALL = dict(steps=16, variates=3, ahead=8, dim=8, layers=2, heads=2, hidden=12, classes=5)

def answer(model, goal, x, y=None):
    "What one of the authors' models says; no features of the calendar."
    if goal == "classification": return model.classification(x, torch.ones(x.shape[:2]))
    return {"forecasting": lambda: model.forecast(x, None, y, None), "imputation": lambda: model.imputation(x, None, None, None, None), "anomaly": lambda: model.anomaly_detection(x)}[goal]()


def same_linear(pairs):
    "Copy weights and biases, (mine, theirs)."
    for mine, their in pairs:
        if mine.bias is not None: mine.bias.data.copy_(their.bias.data)
        mine.weight.data.copy_(their.weight.data.view_as(mine.weight))


@pytest.mark.parametrize("goal", jd.GOALS)
def test_mamba_equals_the_authors_model(goal):
    torch.manual_seed(0)
    their = their_files("models.Mamba")[0].Model(configs(goal, d_ff=16)).eval()
    mine, x = with_mixer("mamba", "own", goal, **SMALL), torch.randn(4, 16, 3)
    copy_mamba(mine.blocks[0].mixer, their.mamba)
    head = {"classification": lambda: (mine.classifier, their.projection), "forecasting": lambda: (mine.head, their.out_layer)}.get(goal, lambda: (mine.head, their.projection))()
    same_linear([head, (mine.embedding, their.embedding.value_embedding.tokenConv)])
    want = their.forecast(x, None)[:, -8:] if goal == "forecasting" else answer(their, goal, x)
    torch.testing.assert_close(mine(x), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("goal", jd.GOALS)
def test_s_mamba_equals_the_authors_model(goal):
    torch.manual_seed(0)
    their = their_files("models.S_Mamba")[0].Model(configs(goal)).eval()
    mine, x = with_mixer("s-mamba", "own", goal, **SMALL), torch.randn(4, 16, 3)
    for m, t in zip(mine.blocks, their.encoder.attn_layers):
        copy_mamba(m.mixer.forth, t.attention); copy_mamba(m.mixer.back, t.attention_r)
        same_linear([(m.norm1, t.norm1), (m.norm2, t.norm2), (m.ffn[0], t.conv1), (m.ffn[2], t.conv2)])
    same_linear([(mine.norm, their.encoder.norm), (mine.embedding, their.enc_embedding.value_embedding), (mine.classifier if goal == "classification" else mine.head, their.projection)])
    torch.testing.assert_close(mine(x), answer(their, goal, x.clone()), atol=1e-5, rtol=1e-5)


def copy_correlation(mine, their):
    same_linear([(mine.q_proj, their.query_projection), (mine.k_proj, their.key_projection), (mine.v_proj, their.value_projection), (mine.o_proj, their.out_projection)])


@pytest.mark.parametrize("L, S", [(12, 12), (16, 10), (10, 16)])
def test_autocorrelation_equals_the_authors_layer(L, S):
    torch.manual_seed(0)
    files = their_files("layers.AutoCorrelation")[0]
    their = files.AutoCorrelationLayer(files.AutoCorrelation(False, 2, attention_dropout=0.), 8, 4)
    mine, x, y = AutoCorrelation(8, factor=2), torch.randn(5, L, 8), torch.randn(5, S, 8)
    copy_correlation(mine, their)
    for training in (True, False):
        mine.train(training); their.train(training)
        torch.testing.assert_close(mine(x, y), their(x, y, y, None)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("goal", jd.GOALS)
@pytest.mark.parametrize("training", [True, False])
def test_autoformer_equals_the_authors_model(goal, training, monkeypatch):
    torch.manual_seed(0)
    their = their_files("models.Autoformer")[0].Model(configs(goal)).train(training)
    monkeypatch.setattr(jd.decompose, "__defaults__", (9,))                        # their windows are longer than their mean
    mine, x = with_mixer("autoformer", "own", goal, **SMALL).train(training), torch.randn(4, 16, 3)
    for m, t in zip(mine.blocks, their.encoder.attn_layers):
        copy_correlation(m.mixer, t.attention)
        same_linear([(m.ffn[0], t.conv1), (m.ffn[2], t.conv2)])
    same_linear([(mine.norm, their.encoder.norm.layernorm), (mine.embedding, their.enc_embedding.value_embedding.tokenConv)])
    if goal == "forecasting":
        t = their.decoder.layers[0]
        copy_correlation(mine.decoder.mixer, t.self_attention); copy_correlation(mine.decoder.cross, t.cross_attention)
        same_linear([(mine.decoder.ffn[0], t.conv1), (mine.decoder.ffn[2], t.conv2), (mine.decoder.trends, t.projection), (mine.end, their.decoder.norm.layernorm),
                     (mine.head, their.decoder.projection), (mine.start, their.dec_embedding.value_embedding.tokenConv)])
        want = their.forecast(x, None, torch.zeros(4, 16, 3), None)[:, -8:]
    else:
        same_linear([(mine.classifier if goal == "classification" else mine.head, their.projection)])
        want = answer(their, goal, x)
    torch.testing.assert_close(mine(x), want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("L", [1, 2, 3, 7, 12, 33])
def test_autocorrelation_by_hand(L):
    torch.manual_seed(L)
    q, k = torch.randn(3, L, 4), torch.randn(3, L, 4)
    c = torch.tensor([[sum(float(q[b, (t + d) % L] @ k[b, t]) for t in range(L))/4 for d in range(L)] for b in range(3)])
    torch.testing.assert_close(jd.correlation(q, k), c, atol=1e-5, rtol=1e-4)
    m, x = AutoCorrelation(4, factor=1.5), torch.randn(3, L, 4)
    n = min(L, max(1, int(1.5*torch.tensor(float(L)).log().item())))
    p = m.eval().delays(m.q_proj(x), m.k_proj(x))
    assert ((p > 0).sum(1) == n).all() and p.sum(1).allclose(torch.ones(3))
    v = m.v_proj(x)
    want = torch.stack([sum(p[b, d]*v[b].roll(-d, 0) for d in range(L)) for b in range(3)])
    torch.testing.assert_close(m(x), m.o_proj(want))
    torch.testing.assert_close(m.matrix(x) @ v, want)
    shared = m.train().delays(m.q_proj(x), m.k_proj(x)) > 0
    assert (shared == shared[:1]).all()


def test_autocorrelation_finds_a_period_and_trains():
    m = AutoCorrelation(2, factor=1.)
    for f in (m.q_proj, m.k_proj): f.weight.data.copy_(torch.eye(2)); f.bias.data.zero_()
    t = torch.arange(30.)
    x = torch.stack([(2*torch.pi*t/10).sin(), (2*torch.pi*t/10).cos()], -1)[None]
    assert m.eval().delays(m.q_proj(x), m.k_proj(x))[0].nonzero().flatten().tolist() == [0, 10, 20]
    m = AutoCorrelation(6).double()
    x = torch.randn(2, 8, 6, dtype=torch.double, requires_grad=True)
    assert m(x).dtype == torch.double and torch.autograd.gradcheck(lambda x: m(x), x, eps=1e-7, atol=1e-5)
    with pytest.raises(ValueError, match="positive"): AutoCorrelation(0)


@pytest.mark.parametrize("L, k", [(1, 25), (2, 25), (7, 25), (40, 25), (9, 1), (9, 3)])
def test_decomposition(L, k):
    x = torch.randn(2, L, 3, dtype=torch.double)
    fast, slow = decompose(x, k)
    torch.testing.assert_close(fast + slow, x, atol=1e-15, rtol=1e-14)
    used = min(k, L if L % 2 else L - 1)
    want = torch.stack([torch.stack([x[:, min(max(s, 0), L - 1)] for s in range(t - used//2, t + used//2 + 1)]).mean(0) for t in range(L)], 1)
    torch.testing.assert_close(slow, want)


def mamba_by_hand(m, x): # (B, T, D)
    "Two taps and their bias, SiLU, the recurrence step by step, the gate."
    u, gate = (x @ m.in_proj.weight.T).chunk(2, -1)
    u = F.silu(m.conv[1]*u + m.conv[0]*F.pad(u, (0, 0, 1, 0))[:, :-1] + m.conv_bias)
    low, B, C = (u @ m.x_proj.weight.T).split([m.rank, m.states, m.states], -1)
    dt, h, out = F.softplus(low @ m.dt_up + m.dt_bias), torch.zeros(len(x), m.inner, m.states), []
    for t in range(x.shape[1]):
        h = h*(-dt[:, t, :, None]*m.log_A.exp()).exp() + (dt*u)[:, t, :, None]*B[:, t, None]
        out.append((h*C[:, t, None]).sum(-1) + m.skip*u[:, t])
    return (torch.stack(out, 1)*F.silu(gate)) @ m.out_proj.weight.T


def test_s_mamba_by_hand():
    "Two mixers, one over the variates from the last to the first; narrow, with a convolution over two tokens."
    torch.manual_seed(0)
    m, x = with_mixer("s-mamba", "own", "imputation", **SMALL), torch.randn(2, 16, 3)
    mean, std = x.mean(1, keepdim=True), (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    h = ((x - mean)/std).mT @ m.embedding.weight.T + m.embedding.bias
    norm = lambda n, y: F.layer_norm(y, (8,), n.weight, n.bias)
    for b in m.blocks:
        assert b.mixer.forth.in_proj.weight.shape == (16, 8) and b.mixer.back.conv.shape == (2, 8)
        h = norm(b.norm1, h + mamba_by_hand(b.mixer.forth, h) + mamba_by_hand(b.mixer.back, h[:, [2, 1, 0]])[:, [2, 1, 0]])
        h = norm(b.norm2, h + F.gelu(h @ b.ffn[0].weight.T + b.ffn[0].bias) @ b.ffn[2].weight.T + b.ffn[2].bias)
    torch.testing.assert_close(m(x), m.head(norm(m.norm, h)).mT*std + mean)


def test_autoformer_by_hand():
    "Decompositions, the trend over the decoder, norm without a mean over time; each part written out."
    torch.manual_seed(0)
    m, x = with_mixer("autoformer", "own", "forecasting", **SMALL).eval(), torch.randn(2, 16, 3)
    assert m.known == 8
    def split(y): # window of 15 steps, ends repeated
        k = min(25, y.shape[1] - 1 + y.shape[1] % 2)
        at = (torch.arange(y.shape[1])[:, None] + torch.arange(-(k//2), k//2 + 1)).clamp(0, y.shape[1] - 1)
        slow = y[:, at].mean(2)
        return y - slow, slow
    def circle(conv, y): return sum(y.roll(1 - j, 1) @ conv.weight[..., j].T for j in range(3))
    def ffn(f, y): return F.gelu(y @ f[0].weight.T) @ f[2].weight.T
    def norm(n, y): y = F.layer_norm(y, (8,), n.weight, n.bias); return y - y.mean(1, keepdim=True)
    h = circle(m.embedding, x)
    for b in m.blocks:
        h = split(h + b.mixer(h))[0]
        h = split(h + ffn(b.ffn, h))[0]
    h = norm(m.norm, h)
    fast, slow = split(x)
    d, y = m.decoder, circle(m.start, torch.cat([fast[:, 8:], torch.zeros(2, 8, 3)], 1))
    y, a = split(y + d.mixer(y))
    y, b = split(y + d.cross(y, h))
    y, c = split(y + ffn(d.ffn, y))
    trend = torch.cat([slow[:, 8:], x.mean(1, keepdim=True).expand(2, 8, 3)], 1) + circle(d.trends, a + b + c)
    torch.testing.assert_close(m(x), (trend + m.head(norm(m.end, y)))[:, 8:], atol=1e-5, rtol=1e-5)


def test_which_windows_are_normalised():
    "A host that normalises follows a scale and a level; a classifier ignores them."
    scaled = {"mamba": ("forecasting",), "s-mamba": jd.GOALS[:3], "autoformer": ()}
    torch.manual_seed(0)
    x = torch.randn(2, 32, 6)
    for host in jd.HOSTS:
        for goal in jd.GOALS:
            m = with_mixer(host, "own", goal).eval()
            want = m(x) if goal == "classification" else 10*m(x) + 3
            assert ((m(10*x + 3) - want).abs().max() < 1e-3) == (goal in scaled.get(host, jd.GOALS)), (host, goal)


def test_which_mixers_are_swapped():
    names = {h: (jd.replace_mixer(jd.HOSTS[h]("forecasting"), jd.HOSTS[h].swapped, lambda old: nn.Identity())).names for h in jd.HOSTS}
    assert names["mamba"] == ("blocks.0.mixer",) and names["autoformer"] == names["vanilla"] == ("blocks.0.mixer", "blocks.1.mixer")
    assert names["s-mamba"] == tuple(f"blocks.{i}.mixer.{way}" for i in (0, 1) for way in ("forth", "back"))
    blocks = lambda h: [m for m in with_mixer(h, jd.HOSTS[h].form, "forecasting").modules() if isinstance(m, DenseBlock)]
    assert [(b.conv.kernel_size, b.mixer.heads, b.mixer.length) for b in blocks("mamba")] == [((1,), 16, 32)]
    assert [(b.conv.kernel_size, b.mixer.heads, b.mixer.length) for b in blocks("s-mamba")] == [((7,), 16, 6)]*4
    assert not blocks("autoformer") and with_mixer("autoformer", "dense", "forecasting").blocks[0].mixer.M.shape == (16, 32, 32)
    assert isinstance(with_mixer("autoformer", "dense", "forecasting").decoder.cross, AutoCorrelation)
    with pytest.raises(ValueError, match="multiple of heads"): with_mixer("mamba", "dense", "imputation", dim=5)


@pytest.mark.parametrize("host", [*jd.HOSTS, "linear"])
@pytest.mark.parametrize("sizes", [dict(steps=1, ahead=1), dict(variates=1), dict(steps=7, ahead=5, variates=3), dict(steps=2, ahead=1, variates=2, dim=6, heads=1), dict(layers=1, dim=4, heads=2, hidden=1)], ids=str)
def test_small_and_odd_windows(host, sizes):
    for goal in jd.GOALS:
        for swap in ("own", "dense", "block") if host != "linear" else ("own",):
            m = jd.LinearModel(goal, **sizes) if host == "linear" else with_mixer(host, swap, goal, **sizes)
            for mode in (True, False):
                y = m.train(mode)(torch.randn(2, m.steps, m.variates))
                assert y.isfinite().all() and y.shape == ((2, 4) if goal == "classification" else (2, m.out, m.variates))


@pytest.mark.parametrize("host", list(jd.HOSTS))
def test_hosts_in_bf16(host):
    for goal in jd.GOALS:
        for swap in ("own", jd.HOSTS[host].form):
            y = with_mixer(host, swap, goal).to(torch.bfloat16)(torch.randn(2, 32, 6).bfloat16())
            assert y.dtype == torch.bfloat16 and y.isfinite().all()


def test_bad_sizes():
    with pytest.raises(ValueError, match="at most 8"): with_mixer("mamba", "own", "forecasting", steps=8, ahead=9)
    with_mixer("mamba", "own", "imputation", steps=8, ahead=9)
    for kw in (dict(steps=0), dict(variates=0), dict(layers=0), dict(classes=0)):
        with pytest.raises(ValueError, match="positive"): with_mixer("autoformer", "own", "imputation", **kw)
    with pytest.raises(ValueError, match=r"give \(B, 32, 6\)"): with_mixer("s-mamba", "own", "imputation")(torch.zeros(1, 6, 32))


def test_claim_counts_its_pairs():
    from tokenlab.claims import find_claim
    pairs = len(jd.HOSTS)*sum(map(len, jd.SERIES.values()))
    assert f"share of {pairs} host-task pairs" in str(find_claim("justdense"))


@pytest.mark.parametrize("goal", jd.GOALS)
@pytest.mark.parametrize("host", list(jd.HOSTS))
def test_swaps_change_the_mixer_alone(goal, host):
    own = with_mixer(host, "own", goal, seed=3)
    for swap in jd.SWAPS:
        model = with_mixer(host, swap, goal, seed=3)
        other, mine = model.state_dict(), own.state_dict()
        assert all(torch.equal(mine[k], other[k]) for k in mine if not (k.startswith("blocks.") and ".mixer." in k))
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        assert bool(frozen) == (swap in ("identity", "conv only", "random"))
        batch = jd.series_batch(model, jd.SERIES["generated"][goal][0], 0)
        y = model(batch["x"], batch.get("seen"))
        assert y.isfinite().all()
        jd.series_loss(jd.LMOutput(y, None), batch).sum().backward()


def test_what_hosts_may_mix():
    "Variates never meet in patches; time steps only through the mixer in the vanilla encoder's forecast."
    x = torch.randn(1, 32, 6, requires_grad=True)
    grad = lambda m, y: torch.autograd.grad(y.sum(), x)[0][0].abs()
    m = with_mixer("patches", "own", "forecasting")
    assert (grad(m, m(x)[..., 2]).sum(0) > 0).tolist() == [False, False, True, False, False, False]
    z = torch.randn(1, 32, 6)
    still = with_mixer("vanilla", "identity", "forecasting")
    a, b = still.norm(still.blocks(still.embed(z))), still.norm(still.blocks(still.embed(torch.randn(1, 32, 6))))
    torch.testing.assert_close(a[:, 33:-1], b[:, 33:-1])                     # the embedding's convolution reaches one step, around the ends too
    mixed = with_mixer("vanilla", "random", "forecasting")
    a, b = mixed.norm(mixed.blocks(mixed.embed(z))), mixed.norm(mixed.blocks(mixed.embed(torch.randn(1, 32, 6))))
    assert (a - b)[:, 33:-1].abs().min(-1).values.max() > 1e-3


def test_imputation_does_not_see_what_is_hidden():
    for host in jd.HOSTS:
        m = with_mixer(host, "dense", "imputation")
        batch = jd.series_batch(m, jd.sensors, 0)
        x, seen = batch["x"], batch["seen"]
        assert .7 < seen.float().mean() < .8
        torch.testing.assert_close(m(x, seen), m(x.masked_fill(~seen, float("nan")), seen))


def test_rows_of_a_batch_do_not_meet():
    for host in jd.HOSTS:
        for goal in ("forecasting", "imputation", "classification"):
            for swap in ("own", "dense"):
                m, x = with_mixer(host, swap, goal).eval(), torch.randn(3, 32, 6)    # Autoformer chooses delays by batch in training
                torch.testing.assert_close(m(x)[1:2], m(x[1:2]), msg=f"{host} {swap} {goal}")


def test_loss_judges_what_was_hidden():
    y, seen = torch.randn(2, 4, 3), torch.tensor([True, False, True, True])[None, :, None].expand(2, 4, 3)
    guess = y.clone()
    guess[:, 1] += 2
    loss = lambda g: jd.series_loss(jd.LMOutput(g, None), {"y": y, "seen": seen})
    torch.testing.assert_close(loss(guess), torch.full((2, 1), 4.))
    guess[:, 0] += 9
    torch.testing.assert_close(loss(guess), torch.full((2, 1), 4.))
    torch.testing.assert_close(jd.series_loss(jd.LMOutput(y + 3, None), {"y": y}), torch.full((2, 1), 9.))


def test_data():
    for data, goals in jd.SERIES.items():
        for goal, (draw, sizes) in goals.items():
            kw = dict(steps=32, variates=6) | {k: v for k, v in sizes.items() if k in ("steps", "variates")}
            a, b = (draw(8, kw["steps"], 5, False) for _ in range(2))
            a, b = (v if isinstance(v, tuple) else (v,) for v in (a, b))
            assert all(torch.equal(u, v) for u, v in zip(a, b)) and a[0].shape == (8, kw["steps"], kw["variates"])
    clean = jd.sensors(64, 40, 0)
    for i, d in enumerate(jd.DELAYS):                                        # sensor i is sensor 1, d steps later, but for noise
        assert (clean[:, d:, i] - clean[:, :40 - d, 1]).std() < .2
    x, y = jd.digits(2000, 8, 0), jd.digits(2000, 8, 0, True)
    rows = lambda v: {tuple(r) for r in v[0].flatten(1).mul(16).int().tolist()}
    assert not rows(x) & rows(y)                                             # no picture in both
    assert len(rows(x)) > 2*len(rows(y))


def test_comparable():
    assert jd.comparable(1., 1.03, "imputation") and not jd.comparable(1., 1.031, "imputation")
    assert jd.comparable(.02, .03, "classification") and not jd.comparable(.02, .0301, "anomaly") and jd.comparable(.5, .514, "anomaly")


def test_training_helps():
    m = with_mixer("inverted", "dense", "forecasting")
    before = jd.series_error(m, jd.sensors, B=64)
    assert jd.series_error(jd.train_series(m, jd.sensors, steps=30), jd.sensors, B=64) < before
