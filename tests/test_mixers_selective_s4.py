"Selective S4: the state space against four oracles, masks and gathering, the copy, straight-through, InfoNCE, ugly input."
import copy, math
from functools import partial
import numpy as np
import pytest, torch
import torch.nn as nn
import torch.nn.functional as F
from tokenlab.lm import seeded
from tokenlab.mixers.checks import noise
from tokenlab.mixers.core import take
from tokenlab.mixers.selective_s4 import (GUIDES, LSMCL, S4D, AttentionGuide, EMACopy, Guide, MaskGenerator, MomentumGuide, RandomGuide, SelectiveS4Block, SelectiveS4Classifier, UniformGuide,
                                          accuracy, drop_tokens, event_clips, event_share, gumbel, info_nce, kept_index, kept_tokens, lsmcl_loss, masked_mean, one_cost, pool_pairs, pretrain_on_events,
                                          run_with_gaps, s4_groups, short_clips, straight_through, top_tokens, train_on_events)

near = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
GUIDED = ("momentum", "raw", "attention")


def s4d(dim=6, states=8, seed=0):
    with seeded(seed): m = S4D(dim, states)
    with torch.no_grad():
        for p in m.parameters(): p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1))*.05)   # off the initial symmetry
    return m.eval()


def classifier(keeps=(.5, 1.), guide="momentum", **options): return SelectiveS4Classifier(6, 4, dim=16, keeps=keeps, guide=guide, seed=0, **options).eval()


def finish(m, y, x): return m.o_proj(F.gelu(y + x*m.skip))


# --- the state space -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("T", [1, 2, 7, 64, 101])
def test_convolution_recurrence_and_toeplitz_agree(T):
    m, x, state = s4d(), noise(2, T, 6), {}
    lag = torch.arange(T)[:, None] - torch.arange(T)
    with torch.no_grad():
        dense = finish(m, torch.einsum("dts,bsd->btd", m.kernel(T)[:, lag.clamp(min=0)].tril(), x), x)
        near(m(x), dense)
        near(torch.stack([m.step(u, state) for u in x.unbind(1)], 1), dense)


def test_equals_scipy_filter():
    "Each oscillator is a first-order filter of the input."
    lfilter = pytest.importorskip("scipy.signal").lfilter
    m, x = s4d(), noise(2, 50, 6)
    A, B, C = (t.detach().numpy() for t in m.system())
    y = np.zeros((2, 50, 6))
    for d in range(6):
        for n in range(8): y[:, :, d] += 2*lfilter([C[d, n]*B[d, n]], [1, -np.exp(A[d, n])], x[:, :, d].numpy().astype(complex), axis=1).real
    with torch.no_grad(): near(m(x), finish(m, torch.from_numpy(y).float(), x))


def test_kernel_is_that_of_the_formula():
    "S4D (arXiv:2206.11893): K_l = 2 Re sum_n C_n (exp(dt A_n) - 1)/A_n exp(l dt A_n), from the raw parameters, in double precision."
    m = s4d()
    dt, A = m.log_dt[0].double().exp()[:, None], torch.complex(-m.log_decay[0].double().exp(), m.frequency[0].double())
    C = torch.view_as_complex(m.C[0].double().contiguous())
    K = 2*torch.stack([(C*((dt*A).exp() - 1)/A*(dt*A*t).exp()).sum(-1).real for t in range(40)], 1)
    near(m.kernel(40), K.float())


def test_initial_poles_are_those_of_s4d_lin():
    with seeded(0): m = S4D(4, 16)
    A = m.system()[0]/m.log_dt[0].exp()[:, None]
    near(A.real, torch.full((4, 16), -.5))
    near(A.imag, math.pi*torch.arange(16.).expand(4, 16), atol=1e-4)


@pytest.mark.parametrize("index", [[[0, 1, 2, 3]], [[3, 4, 9, 20]], [[0, 5, 6, 20], [1, 2, 3, 4]], [[7]]])
def test_gaps_make_gathered_equal_masked(index):
    m, index = s4d(), torch.tensor(index)
    x = noise(len(index), 21, 6)
    mask = torch.zeros(len(index), 21).scatter(1, index, 1.)
    with torch.no_grad():
        masked = take(m(x*mask[..., None]), index)
        near(run_with_gaps(m, take(x, index), index), masked)
        gathered = m(take(x, index))
    contiguous = bool((index.diff(dim=1) == 1).all())
    assert ((gathered - masked).abs().max() < 1e-5) == contiguous                # only gaps make the difference


def test_gap_form_has_the_gradient_of_the_masked_form():
    m, index, x = s4d(), torch.tensor([[1, 2, 6, 9]]), noise(1, 10, 6)
    mask, up = torch.zeros(1, 10).scatter(1, index, 1.), noise(1, 4, 6, seed=3)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    ga = torch.autograd.grad((take(m(a*mask[..., None]), index)*up).sum(), [a, *m.parameters()])
    gb = torch.autograd.grad((run_with_gaps(m, take(b, index), index)*up).sum(), [b, *m.parameters()])
    for p, q in zip(ga, gb): torch.testing.assert_close(p, q, atol=2e-5, rtol=1e-4)


# --- the momentum copy -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("momentum", [0., .9, .99, 1.])
def test_copy_follows_as_the_closed_form_says(momentum):
    "theta_n = m^n theta_0 + (1 - m) sum_i m^(n-1-i) w_i for any moving w."
    layer = nn.Linear(3, 2)
    ema, start, seen = EMACopy(layer, momentum), layer.weight.detach().clone(), []
    for i in range(6):
        with torch.no_grad(): layer.weight.copy_(noise(2, 3, seed=i))
        seen.append(layer.weight.detach().clone()); ema.update(layer)
    near(ema.copy.weight, momentum**6*start + (1 - momentum)*sum(momentum**(5 - i)*w for i, w in enumerate(seen)))


def test_copy_takes_no_gradient_and_gives_none():
    layer = nn.Sequential(nn.Linear(3, 3), nn.Dropout(.5))
    ema, x = EMACopy(layer), noise(4, 3).requires_grad_()
    ema.train()
    assert not ema.copy.training and not ema(x).requires_grad
    torch.testing.assert_close(ema(x), ema(x))                                   # no dropout
    assert not [p for p in ema.parameters() if p.requires_grad]
    layer[0].weight.data += 1
    assert not torch.equal(layer[0].weight, ema.copy[0].weight)                  # no shared storage


def test_copy_moves_once_in_a_training_forward_and_never_in_evaluation():
    block = SelectiveS4Block(8, momentum=.5)
    block.s4.C.data += 1
    before, target = block.guide.copy.copy.C.clone(), block.s4.C.detach()
    block.eval()(noise(1, 9, 8)); torch.testing.assert_close(block.guide.copy.copy.C, before)
    block.train()(noise(1, 9, 8)); near(block.guide.copy.copy.C, (before + target)/2)


def test_copy_has_buffers_of_the_module():
    layer = nn.BatchNorm1d(3)
    ema = EMACopy(layer)
    layer(noise(8, 3)); ema.update(layer)
    torch.testing.assert_close(ema.copy.running_mean, layer.running_mean)
    assert ema.copy.num_batches_tracked == 1


# --- choosing --------------------------------------------------------------------------------------------------------

def test_straight_through_is_exactly_binary_with_the_soft_gradient():
    logits = noise(64, 200, 2).requires_grad_()
    soft = ((logits + gumbel(logits, torch.Generator().manual_seed(0)))/.7).softmax(-1)[..., 0]
    hard = straight_through(soft > .5, soft)
    assert set(hard.unique().tolist()) == {0., 1.}
    up = noise(64, 200, seed=5)
    torch.testing.assert_close(*(torch.autograd.grad((m*up).sum(), logits, retain_graph=True)[0] for m in (hard, soft)))


def test_draws_and_gradients_equal_torch_gumbel_softmax():
    logits, up = noise(5, 30, 2).requires_grad_(), noise(5, 30, seed=2)
    with seeded(3): theirs = F.gumbel_softmax(logits, tau=.7, hard=True)[..., 0]
    with seeded(3): soft = ((logits + gumbel(logits))/.7).softmax(-1)[..., 0]
    ours = straight_through(soft > .5, soft)
    near(ours, theirs)
    near(torch.autograd.grad((ours*up).sum(), logits)[0], torch.autograd.grad((theirs*up).sum(), logits)[0])


def test_draws_have_the_probabilities_of_the_softmax():
    logits = torch.tensor([1.2, .3]).log_softmax(-1).expand(200_000, 2)
    drawn = (logits + gumbel(logits, torch.Generator().manual_seed(0))).argmax(-1) == 0
    assert abs(drawn.float().mean().item() - logits[0, 0].exp().item()) < .005


def test_top_tokens_by_loops():
    scores, rng = noise(40, 11, seed=4).round(decimals=1), torch.Generator().manual_seed(0)
    there = (torch.rand(40, 11, generator=rng) < .7).float(); there[:, 0] = 1
    for keep in (.01, .25, .5, .9, 1.):
        got = top_tokens(scores, keep, there)
        for b in range(40):
            real = [i for i in range(11) if there[b, i]]
            k = max(1, round(keep*len(real)))
            assert got[b].nonzero().flatten().tolist() == sorted(sorted(real, key=lambda i: (-scores[b, i].item(), i))[:k])
        index = kept_index(got)
        assert [[i for i in row if i >= 0] for row in index.tolist()] == [row.nonzero().flatten().tolist() for row in got]


def test_uniform_choice_is_even():
    for n, keep in ((16, .5), (17, .3), (9, .99), (1, .5), (10_000, .37)):
        guide = UniformGuide(keep)
        chosen = guide(noise(1, n, 2))[0, :, 0]
        k = max(1, round(keep*n))
        assert chosen.sum() == k
        gaps = chosen.nonzero().flatten().diff()
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("guide", list(GUIDES))
def test_guides_ignore_padding(guide):
    m = classifier(guide=guide)
    x, there = noise(3, 15, 6), torch.ones(3, 15)
    padded = torch.cat([x, 7*noise(3, 6, 6, seed=8)], 1)
    if guide == "random": pytest.skip("draws for each place")
    for mode in ("mask", "gather"):
        with torch.no_grad(): near(m(padded, F.pad(there, (0, 6)), mode=mode).logits, m(x, mode=mode).logits)


@pytest.mark.parametrize("mode", ["mask", "gather"])
def test_ragged_rows_equal_each_row_alone(mode):
    m, x = classifier(), noise(3, 21, 6)
    counts = (21, 8, 1)
    there = (torch.arange(21) < torch.tensor(counts)[:, None]).float()
    with torch.no_grad():
        got = m(x, there, mode=mode).logits
        for b, n in enumerate(counts): near(got[b:b+1], m(x[b:b+1, :n], mode=mode).logits)


def test_keep_loss_brings_the_share_to_its_target():
    block, x = SelectiveS4Block(8, keep=.25), noise(8, 40, 8)
    with seeded(0): opt = torch.optim.Adam(block.guide.generator.parameters(), lr=.02)
    first = None
    with seeded(1):
        for _ in range(80):
            weight, chosen, loss = block.train().select(block.norm(x), None, "mask")
            first = first or chosen.float().mean().item()
            opt.zero_grad(); loss.backward(); opt.step()
    assert abs(first - .25) > .1 and abs(chosen.float().mean().item() - .25) < .06


def test_attention_guide_by_loops():
    with seeded(0): guide = AttentionGuide(4)
    z, mask = noise(1, 7, 4), torch.tensor([[1., 1, 0, 1, 1, 1, 0]])
    q, k = guide.q_proj(z)[0].detach(), guide.k_proj(z)[0].detach()
    real = [i for i in range(7) if mask[0, i]]
    got = [sum(math.exp(q[i] @ k[j]/2)/sum(math.exp(q[i] @ k[l]/2) for l in real) for i in real)/len(real) for j in real]
    odds = torch.tensor([math.log(a*len(real)) for a in got])
    near(guide(z, mask)[0, mask[0] > 0, 0].exp(), odds.sigmoid())


# --- the block and the classifier ------------------------------------------------------------------------------------

def test_all_tokens_is_the_baselines_block():
    "ViS4mer: norm, S4, residual, average pooling by 2, linear, GELU, here with torch's own layers; even lengths."
    with seeded(0): block = SelectiveS4Block(8, keep=1)
    x = noise(2, 14, 8)
    want = F.gelu(block.linear(F.avg_pool1d((x + block.s4(F.layer_norm(x, (8,), block.norm.weight, block.norm.bias))).mT, 2).mT))
    near(block(x)[0], want)
    assert block.guide is None and block(x)[1] is None


@pytest.mark.parametrize("mode", ["mask", "gather"])
def test_mask_of_ones_and_full_choice_change_nothing(mode):
    plain, x = classifier((1, 1)), noise(2, 13, 6)
    near(plain(x, torch.ones(2, 13), mode=mode).logits, plain(x).logits)
    full = copy.deepcopy(plain)
    full.blocks[0].guide = MomentumGuide(16, full.blocks[0].s4)                  # chooses, and keeps all
    near(full(x, mode=mode).logits, plain(x).logits)


def test_gathered_equals_plain_on_the_kept_tokens():
    m, x = classifier(), noise(1, 20, 6)
    kept = kept_tokens(m, x)
    plain = classifier((1, 1)); plain.load_state_dict({k: v for k, v in m.state_dict().items() if "guide" not in k})
    with torch.no_grad(): near(m(x).logits, plain(x[:, kept[0]]).logits)
    with torch.no_grad(): assert (m(x).logits - m(x, mode="mask").logits).abs().max() > 1e-3   # and not to the masked sequence


def test_dropped_tokens_do_not_matter():
    "Masked or gathered: what stands in a dropped place changes nothing."
    m, x = classifier(guide="uniform"), noise(2, 20, 6)
    kept = kept_tokens(m, x)
    y = torch.where(kept[..., None], x, 5*noise(2, 20, 6, seed=9))
    for mode in ("mask", "gather"):
        with torch.no_grad(): near(m(y, mode=mode).logits, m(x, mode=mode).logits)


@pytest.mark.parametrize("guide", GUIDED)
@pytest.mark.parametrize("mode", ["mask", "gather"])
def test_every_trainable_weight_learns(guide, mode):
    m = classifier(guide=guide).train()
    with seeded(0): out = m(noise(4, 24, 6), mode=mode)
    ((out.logits*noise(4, 1, 4, seed=3)).sum() + sum(out.losses.values())).backward()
    assert set(out.losses) == ({"keep"} if mode == "mask" else set())
    for name, p in m.named_parameters():
        if p.requires_grad: assert p.grad is not None and p.grad.isfinite().all() and (p.grad != 0).any() or name.endswith("frequency"), name
        else: assert "guide.copy" in name and p.grad is None


@pytest.mark.parametrize("N", [1, 2, 3, 5, 33])
@pytest.mark.parametrize("guide", list(GUIDES))
def test_any_length_any_guide_bfloat16(N, guide):
    m, x = classifier((.5, .7, 1.), guide), noise(2, N, 6)
    for mode in ("mask", "gather"):
        with torch.no_grad(): want = m(x, mode=mode).logits
        assert want.shape == (2, 1, 4) and want.isfinite().all()
        half = copy.deepcopy(m).bfloat16()(x.bfloat16(), mode=mode).logits
        assert half.dtype == torch.bfloat16 and half.isfinite().all()
        if guide in ("uniform", "random"): torch.testing.assert_close(half.float(), want, atol=.06, rtol=.1)


def test_evaluation_is_repeatable_and_training_is_not():
    for guide in GUIDES:
        m, x = classifier(guide=guide), noise(2, 30, 6)
        torch.testing.assert_close(m(x).logits, m(x).logits)
        if guide != "uniform": assert not torch.equal(m.train()(x).logits, m(x).logits)


def test_dropout_drops_whole_channels():
    with seeded(0): block = SelectiveS4Block(8, keep=1, dropout=.5, out=8).train()
    block.linear.weight.data = torch.eye(8); block.linear.bias.data.zero_()
    block.s4.forward = lambda z: torch.ones_like(z)
    with seeded(1): y = block(torch.zeros(3, 10, 8))[0]
    assert (y == y[:, :1]).all() and len(y[:, 0].unique()) == 2


def test_state_dict_comes_back():
    a, b = classifier(), SelectiveS4Classifier(6, 4, dim=16, keeps=(.5, 1.), seed=5).eval()
    b.load_state_dict(a.state_dict())
    torch.testing.assert_close(a(noise(2, 9, 6)).logits, b(noise(2, 9, 6)).logits)


class Largest(Guide):
    def __init__(self): super().__init__(); self.learned = False
    def forward(self, z, mask=None): return torch.stack([z.abs().sum(-1), torch.zeros(z.shape[:2])], -1)


def test_own_guide():
    m = classifier(guide=Largest())
    assert kept_tokens(m, noise(2, 10, 6)).sum(1).tolist() == [5, 5]


@pytest.mark.parametrize("call,words", [
    (lambda: SelectiveS4Block(8, keep=1.2), "above 0 and at most 1"), (lambda: SelectiveS4Block(8, guide="salience"), "choose from momentum"), (lambda: SelectiveS4Block(8, tau=0), "above 0"),
    (lambda: SelectiveS4Classifier(6, 4, dim=4, keeps=(1, 1, 1)), "cannot be halved"), (lambda: SelectiveS4Classifier(6, 4, keeps=()), "at least one block"),
    (lambda: classifier()(noise(2, 5, 7)), "give (B, N, 6)"), (lambda: classifier()(noise(5, 6)), "give (B, N, 6)"), (lambda: classifier()(noise(2, 0, 6)), "at least one token"),
    (lambda: classifier()(noise(2, 5, 6), torch.ones(2, 4)), "give (B, N)"), (lambda: classifier()(noise(2, 5, 6), mode="drop"), "'mask' or 'gather'"),
    (lambda: EMACopy(nn.Linear(2, 2), -.1), "give a share"), (lambda: drop_tokens(noise(1, 4, 2), 1.), "share of tokens"), (lambda: short_clips(noise(1, 5, 2), frame=2), "whole frames"),
    (lambda: info_nce(noise(2, 3), noise(3, 3)), "give (B, D)"), (lambda: info_nce(noise(2, 3), noise(2, 3), 0.), "above 0"), (lambda: event_clips(2, 0, size=5), "between 1 and 4"), (lambda: event_clips(2, 0, scene=9), "between 1 and 8")],
    ids=["keep", "guide", "tau", "dim", "no block", "channels", "two axes", "no token", "mask", "mode", "momentum", "ratio", "frame", "keys", "temperature", "size", "scene"])
def test_bad_input(call, words):
    with pytest.raises(ValueError) as e: call()
    assert words in str(e.value)


# --- contrastive pre-training ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("n,temperature", [(1, .2), (7, .2), (7, 1.)])
def test_info_nce_closed_form(n, temperature):
    want = -math.log(math.exp(1/temperature)/(math.exp(1/temperature) + n))
    assert abs(info_nce(3*torch.eye(n + 1), torch.eye(n + 1), temperature).item() - want) < 1e-5


def test_info_nce_by_loops():
    q, k = noise(5, 3), noise(5, 3, seed=2)
    cos = lambda a, b: (a @ b/a.norm()/b.norm()).item()/.3
    want = -sum(math.log(math.exp(cos(q[i], k[i]))/sum(math.exp(cos(q[i], k[j])) for j in range(5))) for i in range(5))/5
    assert abs(info_nce(q, k, .3).item() - want) < 1e-5


def test_token_mask_has_the_exact_share_at_random_places():
    x = noise(500, 20, 2)
    mask = drop_tokens(x, .3, torch.Generator().manual_seed(0))
    assert (mask.sum(1) == 14).all()
    assert (mask.mean(0) - .7).abs().max() < .08
    assert drop_tokens(x[:, :1], .99).all() and drop_tokens(x, 0.).all()


def test_short_clips_are_whole_frames_of_their_own_row():
    x = torch.arange(200 * 24.).view(200, 24, 1)
    short = short_clips(x, .5, frame=4, generator=torch.Generator().manual_seed(0))
    assert short.shape == (200, 12, 1) and (short.diff(dim=1) == 1).all()
    start = short[:, 0, 0] - x[:, 0, 0]
    assert sorted(set(start.tolist())) == [0., 4., 8., 12.]


def test_only_the_short_branch_learns_and_the_key_follows():
    with seeded(0): model = classifier()
    pair, clips = LSMCL(model, momentum=.5, seed=0).train(), noise(4, 16, 6)
    model.encode.weight.data += .1
    before, target = pair.key.copy.model.encode.weight.clone(), model.encode.weight.detach().clone()
    loss = pair(clips, short_clips(clips)).losses["contrast"]
    near(pair.key.copy.model.encode.weight, (before + target)/2)
    loss.backward()
    assert all(p.grad is None for p in pair.key.parameters())
    assert model.encode.weight.grad.abs().max() > 0 and pair.predict[0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model.blocks[0].guide.parameters()) and model.head.weight.grad is None


def test_no_gradient_through_the_key():
    w = torch.ones(2, requires_grad=True)
    loss = lsmcl_loss(lambda x, mask: masked_mean(x, mask), lambda x, mask: w*masked_mean(x, mask), noise(3, 20, 2), noise(3, 10, 2).requires_grad_())
    assert torch.autograd.grad(loss, w, allow_unused=True) == (None,)


def test_lsmcl_masks_both_clips():
    seen = []
    def branch(x, mask): seen.append((x.shape[1], mask.sum(1).tolist())); return masked_mean(x, mask)
    lsmcl_loss(branch, branch, noise(3, 20, 2), noise(3, 10, 2), ratio=.4, generator=torch.Generator().manual_seed(0))
    assert seen == [(10, [6.]*3), (20, [12.]*3)]


# --- the task, training, cost ----------------------------------------------------------------------------------------

def test_clips_hold_three_events_in_the_order_of_the_label():
    from itertools import permutations
    clips = event_clips(64, 3, noise=0.)
    assert clips.events.sum(1).tolist() == [6]*64 and set(clips.labels.tolist()) == set(range(6))
    shown = clips.tokens[clips.events].view(64, 3, 2, 16)                        # three frames, two patches
    assert (shown[:, :, 0] == shown[:, :, 1]).all()
    names = [shown[clips.labels == 0][0, k, 0] for k in range(3)]                # order A, B, C
    for label, order in enumerate(permutations(range(3))):
        for row in shown[clips.labels == label]: assert all(torch.equal(row[k, 0], names[e]) for k, e in enumerate(order))
    rest = clips.tokens[0][~clips.events[0]].unique(dim=0)
    assert len(rest) <= 4
    assert not torch.equal(event_clips(2, 1).tokens, event_clips(2, 2).tokens) and torch.equal(event_clips(2, 1).tokens, event_clips(2, 1).tokens)


def test_groups_name_the_state_space_and_training_ends_without_a_mode():
    m = SelectiveS4Classifier(16, 6, dim=8, keeps=(.5, 1.), seed=0)
    before = m.blocks[0].s4.C.detach().clone()
    history = train_on_events(m, steps=6, batch_size=4)
    assert len(history) == 6 and m.mode is None and not torch.equal(before, m.blocks[0].s4.C)
    assert len(history.parts["keep"]) >= 4
    assert set(s4_groups(m)) == {"*s4.log_dt", "*s4.log_decay", "*s4.frequency", "*s4.C"}
    assert 0 <= accuracy(m, event_clips(8, 0), lost=.3) <= 1 and 0 <= event_share(m, event_clips(8, 0)) <= 1


def test_pretraining_runs_and_leaves_guide_and_head():
    m = SelectiveS4Classifier(16, 6, dim=8, keeps=(.5, 1.), seed=0)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    history = pretrain_on_events(m, steps=4, batch_size=4)
    assert len(history) == 4 and not history.parts and abs(history.loss[0] - math.log(4)) < .3   # counted once; untrained, four videos look alike
    moved = {k for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("encode") for k in moved) and not any("guide" in k or k.startswith("head") for k in moved)


def test_half_of_the_tokens_saves_training_memory():
    cost, long = ({guide: one_cost(guide, N, train=True, repeats=1)["peak MB"] for guide in (None, "momentum", "uniform", "attention")} for N in (512, 2048))
    assert long["uniform"] < long["momentum"] < .9*long[None]
    assert long["momentum"]/cost["momentum"] < 4.5 < 9 < long["attention"]/cost["attention"]     # linear; quadratic


@pytest.mark.slow
def test_the_generator_finds_the_events():
    m = SelectiveS4Classifier(16, 6, dim=32, keeps=(.5, 1.), seed=0)
    train_on_events(m, steps=400)
    assert event_share(m, event_clips(200, 10**9)) > .8
