"Scans against the plain recurrence, finite differences, mambapy and PyTorch's own checks of an operator."
import math, os, subprocess, sys
import pytest, torch
from functools import partial
from tokenlab.kernels.scan import doubling, parallel_scan, scan_loop, selective_scan, stretches
from tokenlab.mixers.comparison import Flops

near = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)


def layer(B, T, E, N, dtype=torch.float32, seed=0, grad=False):
    "u, dt, A, B, C, h."
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(*s, generator=rng, dtype=torch.float64)
    return [x.to(dtype).requires_grad_(grad) for x in (draw(B, T, E), .2*draw(B, T, E).exp(), -draw(E, N).exp(), draw(B, T, N), draw(B, T, N), draw(B, E, N))]


def plain(u, dt, A, B, C, h):
    "The two equations."
    out = []
    for t in range(u.shape[1]):
        h = (dt[:, t, :, None]*A).exp()*h + (dt[:, t]*u[:, t])[..., None]*B[:, t, None]
        out.append((h*C[:, t, None]).sum(-1))
    return torch.stack(out, 1), h


def with_gradients(f, given):
    y, h = f(*given)
    rng = torch.Generator().manual_seed(7)
    weigh = lambda x: (x.double()*torch.randn(x.shape, generator=rng, dtype=torch.float64)).sum()
    return [y, h, *torch.autograd.grad(weigh(y) + weigh(h), given)]


def alike(found, truth, bound=2e-5):
    for i, (x, y) in enumerate(zip(found, truth, strict=True)): assert (x.double() - y).abs().max() <= bound*y.abs().max(), i


@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 100])
def test_parallel_scan_and_its_gradient(T):
    torch.manual_seed(0)
    a, b, h, weight = torch.rand(2, T, 3, 4, requires_grad=True), torch.randn(2, T, 3, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, T, 3, 4)
    near(parallel_scan(a, b, h), scan_loop(a, b, h))
    for got, want in zip(*(torch.autograd.grad((f(a, b, h)*weight).sum(), (a, b, h)) for f in (parallel_scan, scan_loop))): near(got, want)


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_doubling_in_any_block(block):
    a, b, h = torch.rand(2, 40, 5), torch.randn(2, 40, 5), torch.randn(2, 5)
    near(doubling(a, b, h, block), scan_loop(a, b, h))


@pytest.mark.parametrize("B, T, E, N", [(1, 1, 1, 1), (2, 40, 6, 4), (3, 16, 64, 16), (2, 17, 65, 3), (1, 100, 128, 16), (5, 3, 200, 1)])
def test_compiled_scan_and_all_its_gradients(B, T, E, N):
    alike(with_gradients(selective_scan, layer(B, T, E, N, grad=True)), with_gradients(plain, layer(B, T, E, N, torch.float64, grad=True)))


@pytest.mark.parametrize("size", [1, 16, 300])
def test_the_scan_in_pytorch(size):
    for x, y in zip(with_gradients(partial(stretches, size=size), layer(2, 40, 6, 4, torch.float64, grad=True)), with_gradients(plain, layer(2, 40, 6, 4, torch.float64, grad=True))): torch.testing.assert_close(x, y)


def test_float64_passes_finite_differences():
    assert torch.autograd.gradcheck(selective_scan, layer(1, 5, 3, 2, torch.float64, grad=True))


def test_the_operator_keeps_the_rules_of_pytorch():
    u, dt, A, B, C, h = layer(2, 20, 6, 4)
    given = (u, dt, A.T.contiguous(), B, C, h.mT.contiguous())
    torch.library.opcheck(torch.ops.tokenlab.selective_scan.default, (*(x.requires_grad_() for x in given), True))
    torch.library.opcheck(torch.ops.tokenlab.selective_scan.default, (*(x.detach() for x in given), False))


def test_equals_mambapy():
    pscan = pytest.importorskip("mambapy.pscan").pscan
    u, dt, A, B, C, _ = layer(2, 37, 12, 4)
    theirs = (pscan((dt[..., None]*A).exp(), (dt*u)[..., None]*B[:, :, None]) @ C[..., None])[..., 0]
    near(selective_scan(u, dt, A, B, C)[0], theirs)


def test_threads_agree():
    given, before = layer(6, 300, 192, 16, grad=True), torch.get_num_threads()
    found = []
    try:
        for n in (1, 3): torch.set_num_threads(n); found.append(with_gradients(selective_scan, given))
    finally: torch.set_num_threads(before)
    for x, y in zip(*found[:2]): torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-4)
    assert torch.equal(found[0][0], found[1][0])


def test_hard_numbers():
    u, dt, A, B, C, h = layer(2, 30, 6, 4)
    assert torch.equal(selective_scan(u, torch.zeros_like(dt), A, B, C, h)[1], h)                          # no step, no change
    y, last = selective_scan(u, dt*1e6, A, B, C, h)                                                        # all is forgotten at once
    near(y, plain(u.double(), dt.double()*1e6, A.double(), B.double(), C.double(), h.double())[0].float())
    assert last.isfinite().all()
    for i in range(6):                                                                                     # what is not a number shows
        bad = [x.clone() for x in (u, dt, A, B, C, h)]
        bad[i].view(-1)[0] = math.nan
        assert selective_scan(*bad)[0].isnan().any(), "u dt A B C h".split()[i]
    assert selective_scan(u, dt, -A*1e3, B, C, h)[0].isfinite().logical_not().any()                        # growth without end is no garbage


def test_types_and_empty_rows():
    given = layer(2, 30, 6, 4)
    for dtype in (torch.bfloat16, torch.float16): assert selective_scan(*(x.to(dtype) for x in given))[0].dtype == torch.float32
    assert selective_scan(*given[:5], given[5].double())[0].dtype == torch.float64
    for B, T, E in ((0, 5, 6), (2, 0, 6)):
        u, dt, A, b, C, h = layer(B, T, E, 4)
        y, last = selective_scan(u, dt, A, b, C, h)
        assert y.shape == (B, T, E) and torch.equal(last, h)
    moved = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in given[:2]]                            # not contiguous
    assert torch.equal(selective_scan(*moved, *given[2:])[0], selective_scan(*given)[0])


def test_operations_are_counted():
    given = layer(2, 30, 6, 4)
    with Flops() as count: selective_scan(*given)
    assert 0 <= count.total - 2*30*6*(7*4 + 1) <= 6*4                                                      # and the rates times log2(e)


def test_compiles_as_one_graph():
    given = layer(2, 20, 6, 4)
    f = torch.compile(lambda *x: selective_scan(*x)[0]*2, backend="eager", fullgraph=True)
    near(f(*given), selective_scan(*given)[0]*2)


@pytest.mark.parametrize("i, name", list(enumerate("u dt A B C h".split())))
def test_shapes_that_do_not_belong_together(i, name):
    given = layer(2, 30, 6, 4)
    given[i] = given[i][..., :-1]
    with pytest.raises(ValueError, match="give"): selective_scan(*given)


def test_the_way_back_is_counted_too():
    u, *others = layer(2, 30, 6, 4, grad=True)
    y, _ = selective_scan(u, *others)
    with Flops() as count: y.sum().backward()
    assert count.total >= 2*30*6*(21*4 + 6)


FORK = """
import os, signal, torch
from tokenlab.kernels.scan import pool, selective_scan
torch.set_num_threads(2)
torch.manual_seed(0)
given = [torch.randn(2, 32, 128), torch.rand(2, 32, 128), -torch.rand(128, 128), torch.randn(2, 32, 128), torch.randn(2, 32, 128)]
here = selective_scan(*given)[0]
assert pool.cache_info().currsize == 1, "this test wants threads"
if os.fork() == 0:
    signal.alarm(30)
    os._exit(0 if torch.equal(selective_scan(*given)[0], here) else 1)
os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_makes_threads_of_its_own(): assert subprocess.run([sys.executable, "-c", FORK]).returncode == 0


def test_rows_without_tokens_and_without_features():
    a, b, h = torch.rand(2, 7), torch.randn(2, 7), torch.randn(2)
    near(parallel_scan(a, b, h), scan_loop(a, b, h))
    for f in (parallel_scan, scan_loop): assert f(a[:, :0], b[:, :0], h).shape == (2, 0)
