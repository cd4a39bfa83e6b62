"DHSA against the authors' functions, brute force, and dense attention."
import importlib.util, math, os
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from tokenlab.generate import generate
from tokenlab.lm import LM, LMConfig, sdpa, use_rule
from tokenlab.mixers.comparison import Flops
from tokenlab.mixers.dhsa import (DHSA, BoundaryPredictor, attention_of, attention_shift_ratio, boundary_targets, choose_tokens, chunk_pool, dhsa_attention, dhsa_indices,
    focal_bce, gathered_attention, mass_recalled, observe, oracle_indices, select_boundaries, train_boundary, uniform_boundaries, window_indices)
from tokenlab.mixers.recall import Recaller


def theirs(path):
    "A module of the authors, if DHSA_REPO names their checkout."
    file = Path(os.environ.get("DHSA_REPO") or "absent")/"legacy"/path
    if not file.exists(): pytest.skip("DHSA_REPO does not name a checkout of xiongsiheng/DHSA")
    spec = importlib.util.spec_from_file_location("authors_dhsa_" + file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def causal(T, S): return torch.ones(T, S, dtype=torch.bool).tril(S - T)


@pytest.mark.parametrize("window", [None, 10])
def test_authors_ratio(window):
    A = attention_of(noise(2, 60, 8), noise(2, 60, 8, seed=1)).mean(0)
    r = theirs("utils/helper.py")._compute_cumulative_attention_mass_ratio(A, 4, 1e-6, list(range(60)), window is not None, window or 4096, smooth_ends=True)
    ours = attention_shift_ratio(A, 4, window=window)
    assert torch.equal(ours[r > 0], r[r > 0]) and (ours[r == 0] == 1).all() and (r > 0).sum() == 45


def test_authors_predictor_and_loss():
    theirs_, ours = theirs("boundary_predictor/models.py").BoundarySimilarityAttn(32, 4, 16, 4), BoundaryPredictor(32, 4, 16, 4)
    ours.load_state_dict(theirs_.state_dict())
    x = noise(50, 32)
    a, b = theirs_(x.T[None])[0], ours(x.view(50, 2, 16).transpose(0, 1))
    torch.testing.assert_close(b[3:46], a[3:46])
    loss, y = theirs("boundary_predictor/loss.py"), noise(100, seed=2).sigmoid()
    torch.testing.assert_close(loss.focal_bce_loss(x.flatten()[:100], y, torch.ones(100), torch.tensor(1.3), 2.), focal_bce(x.flatten()[:100], y).mean())
    torch.testing.assert_close(loss.soft_label_transform(1 + y*9, 2., torch.log(torch.tensor(2 + 1e-6))), boundary_targets(1 + y*9), atol=1e-5, rtol=0)


def test_authors_selection():
    "The same boundaries; the same chunks for each query block (a chunk that the budget cuts is cut anywhere); the same output from the same tokens."
    helper, (H, T, d, block) = theirs("utils/helper.py"), (4, 200, 16, 25)
    s, (q, k, v) = noise(T), noise(3, H, T, d, seed=3)
    cut = helper._select_boundary_candidates(list(range(T)), s, 0., 12, 8, None)
    bounds = select_boundaries(s, 12, nms=8, theta=0.)
    assert bounds.tolist() == [0, *(i + 1 for i in cut), T]
    index = dhsa_indices(q, k, bounds, budget=60, block=block, local=30)
    want = helper._obtain_dhsa_mask(q.view(1, H, -1, block, d), k.view(1, H, T, 1, d), 60, T, 0, bounds[None], None, "avgpool_norm", 30)[0, 0]
    of = torch.bucketize(torch.arange(T), bounds, right=True) - 1
    for i, (a, b) in enumerate(zip(want.tolist(), index.tolist())):
        a, b = [j for j in a if j < (i + 1)*block], [j for j in b if j >= 0]
        assert sorted(of[a].tolist()) == sorted(of[b].tolist()) and len(set(b)) == len(b) == min(60, (i + 1)*block)
    given = torch.where(index < 0, T - 1, index)[None]
    out, _ = helper.dhsa_sdpa(q[None], k[None], v[None], block, 60, scaling=d**-.5, boundaries=bounds[None], instruction_tokens=None, topk_indices=given, global_tokens=0)
    assert torch.allclose(out[0], gathered_attention(q, k, v, index, block), atol=1e-5)


def test_authors_count_keys_twice():
    "Their sinks fill the list of an early block with copies of one key; ours never holds a key twice."
    helper, (T, block) = theirs("utils/helper.py"), (120, 20)
    q, k, v = noise(3, 2, T, 8, seed=4)
    bounds = uniform_boundaries(T, 10)
    out, index = helper.dhsa_sdpa(q[None], k[None], v[None], block, 60, scaling=8**-.5, boundaries=bounds[None], instruction_tokens=None, global_tokens=40, local_tokens=20)
    assert index.reshape(-1, 60)[0].tolist().count(block - 1) > 1
    dense = sdpa(q[None], k[None], v[None])[0, :, :block]
    assert (out[0, :, :block] - dense).abs().max() > .01
    ours = dhsa_attention(q, k, v, lambda q, k, block: dhsa_indices(q, k, bounds, budget=60, block=block, local=20, globals=40), block=block, tail=0)
    torch.testing.assert_close(ours[:, :block], dense)


def test_ratio_is_the_double_sum():
    A, w = attention_of(noise(2, 35, 8), noise(2, 40, 8, seed=1)).mean(0), 3          # the last 35 of 40 tokens
    got = attention_shift_ratio(A, w)
    for c in range(2*w - 1, 40 - 2*w):
        rows = A[max(0, c + w - 5):].double()
        past, future = rows[:, c - w + 1:c + 1].sum(), rows[:, c + 1:c + w + 1].sum()
        assert math.isclose(got[c], (max(past, future) + 1e-6)/(min(past, future) + 1e-6), rel_tol=1e-9)


@pytest.mark.parametrize("T,S,Hkv,block,budget,local,globals", [(1, 1, 1, 4, 3, 0, 0), (33, 33, 4, 8, 12, 8, 2), (64, 64, 2, 16, 20, 4, 4), (30, 77, 1, 7, 9, 3, 1), (50, 50, 4, 64, 10, 5, 0), (40, 40, 2, 16, 500, 16, 8)])
def test_gathered_equals_masked(T, S, Hkv, block, budget, local, globals):
    q, k, v = noise(4, T, 8), noise(Hkv, S, 8, seed=1), noise(Hkv, S, 6, seed=2)
    index = dhsa_indices(q, k, select_boundaries(noise(S, seed=3), S//6, nms=2), budget=budget, block=block, local=local, globals=globals)
    seen, start = torch.zeros(T, S, dtype=torch.bool), S - T
    for t in range(T):
        row, end = index[t//block].tolist(), min(start + (t//block + 1)*block, S)
        real = [j for j in row if j >= 0]
        assert real == sorted(set(real)) and max(real) < end and len(real) == min(budget, end)
        assert {*range(min(globals, end)), *range(max(0, end - local), end)} <= set(real)
        seen[t, [j for j in real if j <= start + t]] = True
    rows = seen.any(1)                                                                       # a block longer than `local` has queries that see nothing
    want = F.scaled_dot_product_attention(q, k.repeat_interleave(4//Hkv, 0), v.repeat_interleave(4//Hkv, 0), attn_mask=seen)
    torch.testing.assert_close(gathered_attention(q, k, v, index, block)[:, rows], want[:, rows], atol=1e-6, rtol=1e-5)
    if budget >= S: torch.testing.assert_close(gathered_attention(q, k, v, index, block), sdpa(q[None], k[None], v[None])[0], atol=1e-6, rtol=1e-6)


def test_values_of_the_future_are_not_read():
    q, k, v = noise(3, 2, 48, 4)
    v.requires_grad_()
    out = dhsa_attention(q, k, v, lambda q, k, block: dhsa_indices(q, k, uniform_boundaries(k.shape[1], 6), budget=16, block=block, local=8, globals=2), block=8, tail=5)
    for t in range(48): assert not torch.autograd.grad(out[:, t].sum(), v, retain_graph=True)[0][:, t + 1:].any()


def test_work_grows_with_the_length_only():
    "Twice the tokens, twice the operations: nothing of size T times T."
    def count(T):
        q, k, v = noise(3, 2, T, 16)
        with Flops() as f: dhsa_attention(q, k, v, lambda q, k, block: dhsa_indices(q, k, uniform_boundaries(T, 16), budget=64, block=block, local=32), block=32, tail=0)
        return f.total
    def dense(T):
        with Flops() as f: sdpa(*noise(3, 1, 2, T, 16))
        return f.total
    assert count(4096)/count(2048) < 2.6 < 3.9 < dense(4096)/dense(2048) and count(4096) < dense(4096)/8


@pytest.mark.parametrize("nms", [0, 3, 8])
def test_boundaries_keep_their_distance(nms):
    s = noise(400, seed=5)
    bounds = select_boundaries(s, 400, nms=nms, extra=[200])
    inner, free = bounds[1:-1].tolist(), [i + 1 for i in s.argsort(descending=True).tolist() if i < 399]
    taken = [200]                                                                            # greedy, written out
    for i in free:
        if all(abs(i - j) > nms for j in taken): taken.append(i)
    assert inner == sorted(taken) and bounds[0] == 0 and bounds[-1] == 400


def test_attention_of():
    q, k, v = noise(4, 20, 8), noise(2, 27, 8, seed=1), noise(2, 27, 8, seed=2)
    torch.testing.assert_close(attention_of(q, k) @ v.repeat_interleave(2, 0), sdpa(q[None], k[None], v[None])[0])


def test_pooling():
    k = noise(30, 5)
    sizes = torch.tensor([0, 1, 4, 4 + 9, 30])
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:])):
        assert torch.allclose(chunk_pool(k, sizes)[i], k[a:b].sum(0)/(b - a)**.5, atol=1e-6)
        assert torch.allclose(chunk_pool(k, sizes, "mean")[i], k[a:b].mean(0), atol=1e-6)
        assert torch.equal(chunk_pool(k, sizes, "max")[i], k[a:b].amax(0))
    with pytest.raises(ValueError, match="choose from"): chunk_pool(k, sizes, "sum")


def small(kv=2, seed=0, **kw):
    lm = LM(LMConfig(40, dim=32, n_layers=2, n_heads=4, n_kv_heads=kv, max_len=256, **kw), seed=seed).eval()
    with torch.no_grad():
        for i, p in enumerate(lm.parameters()):
            if p.ndim > 1: p.copy_(noise(*p.shape, seed=i)*p.shape[-1]**-.5)
    return lm


def test_rule_in_a_model():
    lm, ids = small(), torch.randint(0, 40, (2, 150), generator=torch.Generator().manual_seed(1))
    predictor = BoundaryPredictor(16, seed=0)
    with torch.no_grad():
        dense = lm(ids).logits
        with use_rule(lm, DHSA(predictor, budget=150, block=16, local=8, globals=2, tail=4)): torch.testing.assert_close(lm(ids).logits, dense, atol=1e-5, rtol=1e-5)
        rule = DHSA(predictor, budget=40, block=16, local=20, globals=2, tail=4)
        with use_rule(lm, rule):
            alone, padded = lm(ids[:1, :90]).logits, ids.clone()
            padded[0, 90:] = -1
            assert (alone - dense[:1, :90]).abs().max() > 1e-3
            torch.testing.assert_close(lm(padded).logits[0, :90], alone[0], atol=1e-5, rtol=1e-5)
            cache = lm.new_cache(2)
            assert all(lm(part, cache=cache).logits.isfinite().all() for part in ids.split([70, 60, 1, 19], 1))
            assert len(generate(lm, [ids[0].tolist(), ids[1, :5].tolist(), [3]], max_new_tokens=3)) == 3
            segments = torch.zeros_like(ids)
            segments[:, 50:] = 1
            packed = lm(ids, segments=segments).logits
        torch.testing.assert_close(packed, lm(ids, segments=segments).logits)
        with use_rule(lm.to(torch.bfloat16), rule): assert lm(ids).logits.dtype == torch.bfloat16


def test_boundaries_are_shared_by_layers():
    lm, calls = small(), []
    def bounds(q, k): calls.append(k.shape[1]); return uniform_boundaries(k.shape[1], 8)
    ids = torch.zeros(3, 60, dtype=torch.long)
    for share, n in ((True, 3), (False, 6)):
        with use_rule(lm, DHSA(bounds, budget=20, block=8, local=8, globals=1, tail=4, share=share)), torch.no_grad():
            for _ in range(2): calls.clear(); lm(ids); assert calls == [56]*n


def test_training_learns_the_labels_and_repeats():
    lm, texts = small(), [torch.randint(0, 40, (200,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(3)]
    a, b = (train_boundary(lm, texts, steps=3, seed=5) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert all(p.grad is None for p in lm.parameters())
    long = train_boundary(lm, texts, steps=30, seed=5)
    def loss(p): return sum(focal_bce(p(k)[7:-8], boundary_targets(attention_shift_ratio(attention_of(q, k).mean(0)))[7:-8]).mean().item() for q, k in observe(lm, texts[0]))
    assert loss(long) < .9*loss(BoundaryPredictor(16, seed=5).requires_grad_(False))


def test_a_model_around_the_host_is_observed_as_it_runs():
    lm, ids = small(), torch.arange(40)
    inside = Recaller(lm, seed=0)
    first, second = observe(inside, ids)[0][1], observe(lm, ids)[0][1]
    assert first.shape == second.shape and not torch.allclose(first, second)     # the token before is part of the input
    predictor = train_boundary(inside, ids.expand(2, -1), steps=2)
    with use_rule(lm, DHSA(predictor, budget=64, block=8, local=8, globals=1, tail=0)), torch.no_grad(): sparse = inside(ids[None]).logits
    with torch.no_grad(): torch.testing.assert_close(sparse, inside(ids[None]).logits, atol=1e-5, rtol=1e-4)


def test_oracle_is_the_best_choice():
    q, k = noise(2, 96, 8)*2, noise(2, 96, 8, seed=1)
    sizes = dict(block=16, budget=32)
    A = attention_of(q, k).mean(0)
    best = mass_recalled(A, oracle_indices(q, k, **sizes), block=16)[0]
    others = [window_indices(q, k, **sizes, globals=2), dhsa_indices(q, k, uniform_boundaries(96, 8), **sizes, local=16)]
    others += [choose_tokens(noise(6, 96, seed=s), torch.arange(16, 97, 16), budget=32) for s in range(5)]
    assert all(mass_recalled(A, i, block=16)[0] < best for i in others)
    with pytest.raises(ValueError, match="nothing is left out"): mass_recalled(A, oracle_indices(q, k, block=16, budget=96), block=16)


@pytest.mark.parametrize("call,text", [(lambda: BoundaryPredictor(10, heads=4), "do not divide"), (lambda: train_boundary(small(), [], steps=1), "no texts"), (lambda: train_boundary(small(), [[1, 2]], steps=1), "longer texts"),
    (lambda: choose_tokens(torch.zeros(1, 4), torch.tensor([4]), budget=0), "must be 1 or more"), (lambda: DHSA(None, budget=4), "does not hold")], ids=["heads", "no texts", "short text", "budget", "parts"])
def test_bad_input(call, text):
    with pytest.raises(ValueError, match=text): call()
