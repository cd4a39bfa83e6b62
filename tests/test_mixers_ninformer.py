"NiNformer against the authors' file, timm's mixer block and the identities of its gate."
import importlib.util, os
from pathlib import Path
import pytest, torch
from tokenlab.mixers.checks import check_mixer
from tokenlab.mixers.core import MIXERS
from tokenlab.mixers.ninformer import KINDS, MixerBlock, MixerGate, NiNEncoder, picture_model, rename


def theirs():
    "The authors' module, if NINFORMER_FILE names their ninformer.py."
    path = os.environ.get("NINFORMER_FILE")
    if not path or not Path(path).exists(): pytest.skip("NINFORMER_FILE does not name the authors' ninformer.py")
    pytest.importorskip("einops")
    spec = importlib.util.spec_from_file_location("authors_ninformer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_equals_the_authors_model():
    torch.manual_seed(0)
    model = theirs().NiNformer(24, 40, 16, 3, .5).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(.1*torch.randn_like(p))
    ours = NiNEncoder(3, 24, 40, 16, .5).eval()
    ours.load_state_dict(rename(model.state_dict()))
    x = torch.randn(5, 16, 24)
    with torch.no_grad(): a, b = model(x), ours(x)
    assert (a - b).abs().max() <= 1e-6*(1 + a.abs().max())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in ours.parameters())


def written_out(state, x, depth):
    "The block from the paper's equations, on the authors' names."
    lin = lambda n, x: x @ state[n + ".weight"].T + state[n + ".bias"]
    def norm(n, x): return (x - x.mean(-1, keepdim=True))/(x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()*state[n + ".weight"] + state[n + ".bias"]
    gelu = lambda x: x*.5*(1 + torch.erf(x/2**.5))
    net = lambda n, x: lin(n + ".net.3", gelu(lin(n + ".net.0", x)))
    for i in range(depth):
        m = f"model.{i}."
        h = norm(m + "norm", x)
        v = h + net(m + "mgu.Mixer.token_mix.2", norm(m + "mgu.Mixer.token_mix.0", h).mT).mT
        v = v + net(m + "mgu.Mixer.channel_mix.1", norm(m + "mgu.Mixer.channel_mix.0", v))
        x = x + lin(m + "mgu.proj", h)*v
        x = x + net(m + "ffn", norm(m + "norm", x))
    return x


def test_equals_the_equations():
    g = torch.Generator().manual_seed(0)
    D, H, N, state = 12, 20, 9, {}
    def layer(n, a, b): state[n + ".weight"], state[n + ".bias"] = torch.randn(b, a, generator=g)*a**-.5, torch.randn(b, generator=g)
    for i in range(2):
        m = f"model.{i}."
        for n in ("norm", "mgu.Mixer.token_mix.0", "mgu.Mixer.channel_mix.0"): state[m + n + ".weight"], state[m + n + ".bias"] = torch.randn(2, D, generator=g)
        for n, d in (("mgu.Mixer.token_mix.2", N), ("mgu.Mixer.channel_mix.1", D), ("ffn", D)): layer(m + n + ".net.0", d, H); layer(m + n + ".net.3", H, d)
        layer(m + "mgu.proj", D, D)
    ours = NiNEncoder(2, D, H, N)
    ours.load_state_dict(rename(state))
    x = torch.randn(3, N, D, generator=g)
    with torch.no_grad(): torch.testing.assert_close(ours(x), written_out(state, x, 2), atol=1e-4, rtol=1e-4)


def test_gate_with_a_projection_of_one_is_timms_mixer():
    timm = pytest.importorskip("timm.models.mlp_mixer")
    torch.manual_seed(0)
    their, unit = timm.MixerBlock(16, 9, mlp_ratio=(.5, 2.)).eval(), MixerGate(16, 9, 8, 32)
    pairs = [("norm1", "token_norm"), ("norm2", "channel_norm"), ("mlp_tokens.fc1", "token_mlp.up"), ("mlp_tokens.fc2", "token_mlp.down"), ("mlp_channels.fc1", "channel_mlp.up"), ("mlp_channels.fc2", "channel_mlp.down")]
    state = their.state_dict()
    unit.mixer.load_state_dict({f"{b}.{w}": state[f"{a}.{w}"] for a, b in pairs for w in ("weight", "bias")})
    with torch.no_grad(): unit.proj.weight.zero_(); unit.proj.bias.fill_(1)
    x = torch.randn(2, 9, 16)
    eps = their.norm1.eps
    unit.mixer.token_norm.eps = unit.mixer.channel_norm.eps = eps
    with torch.no_grad(): torch.testing.assert_close(unit(x), their(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_keep_the_protocol(kind):
    check_mixer(lambda dim, heads, seq_len, causal: MixerGate(dim, seq_len, 2*dim, 2*dim, kind=kind), forms=("bidirectional",))


def test_registered_and_matched():
    check_mixer(MIXERS["ninformer"])
    sizes = [sum(p.numel() for p in picture_model(n, size=8, channels=1, classes=10, patch=2).parameters()) for n in ("ninformer", "mlp-mixer", "vit")]
    assert max(sizes) < 1.01*min(sizes)


def test_bad_input():
    with pytest.raises(ValueError, match="choose from"): MixerGate(8, 4, 8, 8, kind="tanh")
    with pytest.raises(ValueError, match="made for 4"): MixerBlock(8, 4, 8, 8)(torch.zeros(1, 5, 8))
    with pytest.raises(ValueError, match="choose from"): picture_model("resnet", size=8, channels=1, classes=10)
