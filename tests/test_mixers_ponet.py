"PoNet against loops over tokens and the authors' file."
import importlib.util, math, os
from pathlib import Path
import pytest, torch
from tokenlab.mixers.checks import check_mixer
from tokenlab.mixers.core import MIXERS
from tokenlab.mixers.ponet import PoNet, boundary_segments, equal_segments, segment_max, window_max


def looped(m, x, seg, real, special=None):
    "Y by loops over tokens, windows and segments, one row at a time."
    out, e = torch.zeros_like(x), x.shape[-1]//m.heads
    for b in range(len(x)):
        tokens = [n for n in range(x.shape[1]) if real[b, n]]
        is_special = lambda n: special is not None and bool(special[b, n])
        q, k, o, s, l = (f(x[b]) for f in (m.query, m.key, m.out, m.segment, m.local))
        for h in range(m.heads):
            at = slice(h*e, (h + 1)*e)
            g = sum(q[n, at] for n in tokens)/len(tokens)
            w = [math.exp(float(g @ k[n, at])/math.sqrt(e)) for n in tokens]
            G = sum(a*k[n, at] for a, n in zip(w, tokens))/sum(w)
            for n in tokens:
                S, L = torch.zeros(e), torch.zeros(e)
                if not is_special(n):
                    S = torch.stack([s[j, at] for j in tokens if seg[b, j] == seg[b, n]]).amax(0)
                    L = torch.stack([l[j, at] for j in (n - 1, n, n + 1) if j in tokens and not is_special(j)]).amax(0)
                out[b, n, at] = (G + S)*o[n, at] + L
    return out


def rows(lengths, T):
    at = torch.arange(T)[None].repeat(len(lengths), 1)
    for b, n in enumerate(lengths): at[b, n:] = -1
    return at


@pytest.mark.parametrize("heads", [1, 3])
@torch.no_grad()
def test_equals_loops(heads):
    torch.manual_seed(0)
    m, x, at = PoNet(12, heads, segments=4).eval(), torch.randn(3, 17, 12), rows((17, 6, 1), 17)
    seg = torch.randint(0, 5, (3, 17))                                   # of any lengths, not contiguous
    torch.testing.assert_close(m.fuse(x, at < 0, seg), looped(m, x, seg, at >= 0))
    runs = torch.stack([torch.arange(17)//(n//4 + 1) for n in (17, 6, 1)])
    torch.testing.assert_close(m.fuse(x, at < 0), looped(m, x, runs, at >= 0))


@torch.no_grad()
def test_special_tokens_see_the_global_vector_only():
    torch.manual_seed(1)
    ids = torch.tensor([[1, 5, 6, 2, 7, 2, 0], [1, 5, 2, 9, 9, 9, 2]])
    m, x, at = PoNet(8, 2).eval(), torch.randn(2, 7, 8), rows((6, 7), 7)
    seg, special = boundary_segments(ids, [1, 2])
    got = m.fuse(x, at < 0, seg, special)
    torch.testing.assert_close(got, looped(m, x, seg, at >= 0, special))
    torch.testing.assert_close(m(x, positions=at, seg=seg, special=special), m.proj(got))


def authors():
    "The authors' module, if PONET_FILE names their attention_ponet.py."
    path = os.environ.get("PONET_FILE")
    if not path or not Path(path).exists(): pytest.skip("PONET_FILE does not name the authors' attention_ponet.py")
    spec = importlib.util.spec_from_file_location("authors_ponet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("T", [1, 64, 77])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_equals_the_authors_file(T, padded):
    theirs = authors().PoNetAttention({"num_head": 2, "head_dim": 8, "segment_num": 8})
    torch.manual_seed(2)
    m, x = PoNet(16, 2, segments=8), torch.randn(3, T, 16)
    at = rows((T, (T + 1)//2, 1) if padded else (T,)*3, T)
    split = lambda y: y.view(3, T, 2, 8).transpose(1, 2).clone()
    want = theirs(x, split(m.query(x)), split(m.key(x)), split(m.out(x)), m.local(x), m.segment(x), (at >= 0).float() if padded else None)
    got = m.fuse(x, at < 0 if padded else None, equal_segments(T, 8))     # borders by the padded length, as theirs
    print("largest difference", (got - want).abs().max().item())
    assert (got - want).abs().max() <= 1e-6*(1 + want.abs().max())


def test_gradients_of_the_maximum():
    x, seg = torch.randn(2, 9, 3, dtype=torch.double, requires_grad=True), torch.tensor([[0, 0, 2, 2, 2, 0, 1, 1, 4]])
    assert torch.autograd.gradcheck(lambda x: segment_max(x, seg), x)
    assert torch.autograd.gradcheck(lambda x: window_max(x, 5), x)


def test_protocol():
    assert "check_ragged" in check_mixer(MIXERS["ponet"])


@torch.no_grad()
def test_packed_documents_and_bfloat16():
    torch.manual_seed(3)
    m, x = PoNet(8, 2, segments=3).eval(), torch.randn(1, 12, 8)
    at, mask = torch.tensor([[*range(5), *range(7)]]), torch.ones(1, 1, 12, 12, dtype=torch.bool)
    y = m(x, positions=at, mask=mask)
    torch.testing.assert_close(y, torch.cat([m(x[:, :5]), m(x[:, 5:])], 1))
    low = m.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16


def test_bad_input():
    for bad in (dict(heads=3), dict(parts=("globe",)), dict(parts=()), dict(fusion="max")):
        with pytest.raises(ValueError): PoNet(8, **bad)
    with pytest.raises(ValueError, match="negative"): segment_max(torch.zeros(1, 2, 1), torch.tensor([[-1, 0]]))
    with pytest.raises(ValueError, match="odd"): window_max(torch.zeros(1, 2, 1), 2)
    with pytest.raises(ValueError, match="1 or more"): equal_segments(4, 0)
    with pytest.raises(ValueError, match="causal"): MIXERS["ponet"](8, causal=True)
