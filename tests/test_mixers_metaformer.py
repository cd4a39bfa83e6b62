"MetaFormer: equal to timm's where it is installed, and the facts of the paper."
import numpy as np, pytest, torch
import torch.nn as nn
from tokenlab.mixers.checks import check_mixer, noise
from tokenlab.mixers.core import MIXERS, mixers_of
from tokenlab.mixers.metaformer import (GridPooling, GridSepConv, MetaFormer, MetaFormerBlock, Norm, Residual, SepConv, StarReLU, metaformer, moved, picture_batches, rename, see, small)


def official(name:str)->str:
    "A parameter of timm's model under its name in the official file."
    for a, b in (("stem.conv.", "downsample_layers.0.conv."), ("stem.norm.", "downsample_layers.0.post_norm."), ("head.norm.", "norm."), ("head.fc.norm.", "head.norm."), ("head.fc.fc", "head.fc"), ("head.fc.weight", "head.weight"), ("head.fc.bias", "head.bias")):
        if name.startswith(a): return name.replace(a, b, 1)
    part = name.split(".")
    if part[2] == "downsample": return ".".join(["downsample_layers", part[1], "pre_norm" if part[3] == "norm" else part[3], *part[4:]])
    return ".".join(p for i, p in enumerate(part) if not (i == 2 and p == "blocks"))


@pytest.mark.parametrize("name", ["poolformerv2_s12", "convformer_s18", "caformer_s18"])
def test_equal_to_timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False).eval()
    with torch.no_grad():
        for p in theirs.parameters(): p.add_(torch.randn_like(p)*.02)
    ours = metaformer(name).eval()
    flat = lambda t: t[..., 0, 0] if t.shape[-2:] == (1, 1) and t.shape[1] > 1 else t       # timm has 1x1 convolutions for linear layers in some models
    ours.load_state_dict(rename({official(n): flat(t) for n, t in theirs.state_dict().items()}))
    x = noise(1, 3, 224, 224)
    with torch.no_grad(): torch.testing.assert_close(ours(x.movedim(1, -1)), theirs(x), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name,count", [("identityformer_s12", 11_891_712), ("randformer_s12", 12_127_010), ("poolformerv2_s12", 11_891_712), ("convformer_s18", 26_774_448), ("caformer_s18", 26_341_656), ("caformer_m36", 56_204_878)])
def test_parameters_are_those_of_the_official_file(name, count):
    with torch.device("meta"): m = metaformer(name)
    assert sum(p.numel() for p in m.parameters()) == count


def test_star_relu_has_the_papers_moments():
    y = StarReLU(.8**.5, -.5*.8**.5)(torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)))
    assert abs(y.mean()) < .005 and abs(y.var() - 1) < .02
    assert [n for n, p in StarReLU(learnable=False).named_parameters() if p.requires_grad] == []


def test_pooling_and_convolution_on_the_grid():
    x = noise(2, 5, 7, 3)
    y = nn.AvgPool2d(3, 1, 1, count_include_pad=False)(x.movedim(-1, 1)).movedim(1, -1) - x
    torch.testing.assert_close(GridPooling(3)(x), y)
    conv = GridSepConv(3, size=3)
    with torch.no_grad():
        conv.conv.weight.zero_()[:, :, 1, 1] = 1
        torch.testing.assert_close(conv(x), conv.down(conv.act(conv.up(x))))
    for bad in (dict(causal=True), dict(size=4)):
        with pytest.raises(ValueError, match="looks both ways"): GridPooling(3, **bad)


def test_the_sequence_form_is_the_grid_form_in_one_dimension():
    a, b = SepConv(4, causal=False), GridSepConv(4, dims=1)
    with torch.no_grad():
        b.up.weight.copy_(a.up.weight); b.down.weight.copy_(a.down.weight); b.conv.weight.copy_(a.weight.T[:, None])
        torch.testing.assert_close(a(x := noise(2, 11, 4)), b(x), atol=1e-5, rtol=1e-4)


def test_sepconv_keeps_the_protocol():
    def unbiased(dim, **kw):
        m = SepConv(dim, **kw)
        m.act.bias.requires_grad_(False)
        return m
    assert len(check_mixer(unbiased, symmetry="shift", causal_symmetry="shift")) == 14
    check_mixer(SepConv)


def test_norms():
    x = noise(2, 3, 4, 5)
    torch.testing.assert_close(Norm(5, "grid")(x), nn.functional.group_norm(x.movedim(-1, 1), 1, eps=1e-6).movedim(1, -1))
    torch.testing.assert_close(Norm(5)(x), nn.functional.layer_norm(x, (5,), eps=1e-6))
    with pytest.raises(ValueError, match="choose 'token' or 'grid'"): Norm(5, "batch")


@pytest.mark.parametrize("name", [n for n in ("identity", "attention", "window", "pooling", "convolution", "random", "mlp-mixer", "fnet", "linear", "s4d", "selective")])
def test_any_mixer_plugs_in_and_learns(name):
    m = MetaFormer(3, size=(8, 8), depths=(1, 1), dims=(8, 16), mixers=MIXERS[name] if name == "s4d" else name, stem=(3, 2, 1), seed=0)
    loss = m(noise(2, 8, 8, 3)).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters() if p.requires_grad)


def test_random_matrix_stays_frozen():
    from tokenlab.training import fit
    pixels, labels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8), np.arange(8) % 2
    m = small(["identity", "random", "random"], size=8, classes=2, dims=(8, 8, 8), depths=(1, 1, 1))
    before = {n: p.clone() for n, p in m.named_parameters() if n.endswith("matrix")}
    fit(m, picture_batches(pixels, labels, 4), steps=3, forward=see, progress=False, plot=False)
    after = dict(m.named_parameters())
    assert len(before) == 2 and all(torch.equal(after[n], p) for n, p in before.items())
    torch.testing.assert_close(before["stages.1.0.0.branch.matrix"].sum(-1), torch.ones(4))


def test_stochastic_depth_keeps_the_mean():
    m, x = Residual(4, nn.Identity(), drop_path=.5).train(), noise(4000, 1, 4)
    m.branch.on_grid = True
    gap = (m(x) - x)/m.norm(x)
    assert set(gap.round().unique().tolist()) == {0, 2} and abs(gap.mean() - 1) < .1
    assert torch.equal(m.eval()(x), x + m.norm(x))


def test_batches_are_the_same_for_every_model():
    pixels, labels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3)).astype(np.uint8), np.arange(10)
    a, b = picture_batches(pixels, labels, 4, seed=1), picture_batches(pixels, labels, 4, seed=1)
    assert all(torch.equal(a(i)["pixels"], b(i)["pixels"]) for i in (0, 1, 5)) and not torch.equal(a(0)["ids"], a(2)["ids"])
    seen = torch.cat([a(0)["ids"], a(1)["ids"]]).flatten().tolist()
    assert len(set(seen)) == 8                                # an epoch repeats nothing
    x = noise(3, 8, 8, 3)
    assert moved(x, 3).shape == x.shape
    with pytest.raises(ValueError, match="give .N, H, W, C"): picture_batches(pixels, labels[:4], 2)


def test_bad_models():
    with pytest.raises(ValueError, match="families identityformer"): metaformer("resnet_s12")
    with pytest.raises(ValueError, match="nothing is left"): MetaFormer(2, size=(2, 2), depths=(1, 1), dims=(8, 8))
    with pytest.raises(ValueError, match="one of each"): MetaFormer(2, depths=(1, 1), dims=(8,))
    with pytest.raises(ValueError, match="channels last"): small("identity")(torch.zeros(1, 3, 32, 32, 3))
    with pytest.raises(ValueError, match="no mixer"): small("nothing")
    assert MetaFormerBlock(8, MIXERS["fnet"](8, causal=False))(noise(1, 6, 8)).shape == (1, 6, 8)
    assert set(("sepconv", "fnet")) <= set(mixers_of("bidirectional"))
