"`denoise`: exact where it must be, and the hard cases that plugs bring, as fakes the loop does not know of."
import copy
from types import SimpleNamespace
import pytest, torch
import torch.nn as nn
from tokenlab.diffusion.denoise import Confident, Edits, apply, blocks, denoise, left_to_right
from tokenlab.generate import Sampler, generate
from tokenlab.lm import LM, LMConfig, LMOutput
from tokenlab.speculative.speculate import draw, exact_law


class Joint(nn.Module):
    "Exact conditionals of a joint law over T tokens, by brute force over its table (V,)*T."
    device = torch.device("cpu")
    def __init__(self, table):
        super().__init__()
        self.table = table
        self.config = SimpleNamespace(vocab_size=table.shape[0] + 1, mask_id=table.shape[0], n_layers=1, max_len=12)
    def forward(self, ids):
        V, T = self.table.shape[0], self.table.ndim
        out = torch.full((len(ids), T, V + 1), -torch.inf, dtype=torch.float64)
        for b, row in enumerate(ids.tolist()):
            for t in range(T):
                part = self.table[tuple(slice(None) if x == V or i == t else x for i, x in enumerate(row))]
                axes = [i for i, j in enumerate([i for i, x in enumerate(row) if x == V or i == t]) if j != t]
                law = part.sum(axes) if axes else part
                out[b, t, :V] = (law/law.sum()).log()
        return LMOutput(out, None)


class Causal(nn.Module):
    "A causal LM as a model of canvases: position t is what it predicts after t-1."
    def __init__(self, lm):
        super().__init__()
        V = lm.config.vocab_size
        self.lm, self.device = lm, torch.device("cpu")
        self.config = SimpleNamespace(vocab_size=V + 1, mask_id=V, n_layers=lm.config.n_layers, max_len=lm.config.max_len)
    def forward(self, ids):
        x = self.lm(ids.where(ids < self.config.mask_id, 0).clamp(min=0)).logits
        x = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return LMOutput(torch.cat([x, torch.zeros_like(x[..., :1])], -1), None)


@pytest.fixture
def lm():
    lm = LM(LMConfig(30, dim=32, n_layers=2, n_heads=2, max_len=32, tied=False), seed=0).eval()
    for w in lm.parameters(): w.data.mul_(3)
    return lm


def joint(seed=0, V=2, T=4):
    t = torch.rand((V,)*T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)**3
    return t/t.sum()


def distance(law, table):
    want = {tuple(i): float(p) for i, p in zip(torch.cartesian_prod(*[torch.arange(table.shape[0])]*table.ndim).tolist(), table.flatten())}
    return sum(abs(law.get(k, 0) - want.get(k, 0)) for k in {*law, *want})/2


# ---- exactness

def test_left_to_right_is_generate(lm):
    prompts = [[1, 2, 3], [4], [5, 6]]
    plain = generate(lm, prompts, max_new_tokens=12)
    out = denoise(Causal(lm), [p + [-1]*12 for p in prompts], policy=Confident(), order=left_to_right())
    assert [o.ids for o in out] == [p + g.ids for p, g in zip(prompts, plain)]
    for o, g in zip(out, plain):
        torch.testing.assert_close(torch.tensor(o.logprobs[o.prompt_length - 12:]), torch.tensor(g.logprobs), atol=1e-4, rtol=1e-4)
        assert o.target_calls == g.target_calls and o.accepted == [1]*12 and o.draft_calls == 0
    assert [o.positions for o in out] == [12*15, 12*13, 12*14] and out[0].layer_tokens == 2*12*15


@pytest.mark.parametrize("order", [None, left_to_right(), left_to_right(2), blocks(2)])
def test_one_hole_a_call_samples_the_joint_law(order):
    table = joint()
    law = exact_law(lambda rng: tuple(denoise(Joint(table), [-1]*4, policy=Confident(sampler=Sampler()), order=order, seed=rng).ids))
    assert distance(law, table) < 1e-5


def test_holes_filled_together_are_independent_and_that_is_seen():
    table = joint()
    law = exact_law(lambda rng: tuple(denoise(Joint(table), [-1]*4, policy=Confident(4, sampler=Sampler()), seed=rng).ids))
    single = [table.sum([j for j in range(4) if j != i]) for i in range(4)]
    assert distance(law, torch.einsum("a,b,c,d->abcd", *single)) < 1e-5 and distance(law, table) > .1


def test_the_given_tokens_condition_the_law():
    table = joint(1)
    law = exact_law(lambda rng: tuple(denoise(Joint(table), [-1, 1, -1, 0], policy=Confident(sampler=Sampler()), seed=rng).ids))
    part = torch.zeros_like(table); part[:, 1, :, 0] = table[:, 1, :, 0]
    assert distance(law, part/part.sum()) < 1e-5


def test_ragged_rows_equal_single_rows_and_seeds_hold(lm):
    canvases = [[1, -1, -1, 5, -1], [-1, 3], [7, 8, 9, -1, -1, -1, -1, 2]]
    args = dict(policy=Confident(2, sampler=Sampler()), seed=3)
    many = denoise(Causal(lm), canvases, **args)
    assert [m.ids for m in many] == [m.ids for m in denoise(Causal(lm), canvases, **args)]
    assert many[0].ids == denoise(Causal(lm), canvases[0], **args).ids
    assert [m.target_calls for m in many] == [2, 1, 2] and all(-1 not in m.ids for m in many)
    greedy = denoise(Causal(lm), canvases, policy=Confident(2))
    assert [g.ids for g in greedy] == [denoise(Causal(lm), c, policy=Confident(2)).ids for c in canvases]


def test_mask_id_is_a_hole_and_never_an_answer(lm):
    assert denoise(Causal(lm), [1, 30, 30], policy=Confident()).ids == denoise(Causal(lm), [1, -1, -1], policy=Confident()).ids
    class Loves(Causal):
        def forward(self, ids):
            out = super().forward(ids)
            out.logits[..., -1] = 100.
            return out
    assert max(denoise(Loves(lm), [1, -1, -1], policy=Confident(2)).ids) < 30


def test_nothing_to_do_needs_no_call(lm):
    out = denoise(Causal(lm), [[1, 2], [3, -1]], policy=Confident())
    assert (out[0].ids, out[0].target_calls, out[1].target_calls) == ([1, 2], 0, 1)


# ---- a guide, as in FreeCache's guided diffusion

class Agreeing:
    "Keep the model's tokens from the left while the guide's likeliest token agrees, at least one."
    def __call__(self, view):
        draft, says, fill = view.logits.argmax(-1), view.guide.argmax(-1), {}
        for i in view.active.nonzero()[:, 0].tolist():
            if fill and int(says[i]) != int(draft[i]): break
            fill[i] = int(draft[i])
        return Edits(fill=fill)


def test_a_guide_reads_the_filled_canvas(lm):
    model = Causal(lm)
    out = denoise(model, [[1, 2, *[-1]*10], [3, *[-1]*6]], policy=Agreeing(), guide=model)
    plain = generate(lm, [[1, 2], [3]], max_new_tokens=10)
    assert out[0].ids == [1, 2] + plain[0].ids and out[1].ids == [3] + plain[1].ids[:6]
    assert [o.draft_calls for o in out] == [o.target_calls for o in out] and out[0].target_calls < 12


# ---- a cached projection

class Projected(nn.Module):
    "A projection of each token (costly), then a mix over all; `known` hands over projections that are still good."
    device = torch.device("cpu")
    def __init__(self, V=12, D=16):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.table, self.out = torch.randn(V, D, generator=g), torch.randn(D, V, generator=g)
        self.config = SimpleNamespace(vocab_size=V, mask_id=V - 1, n_layers=1, max_len=40)
    def forward(self, ids, *, known=None, real=None):
        x = self.table[ids.clamp(min=0)]
        if known is not None: x = torch.where((ids >= 0)[..., None], x, known)
        real = ids >= 0 if real is None else real
        T = ids.shape[1]
        near = .5**(torch.arange(T)[:, None] - torch.arange(T)).abs() * (1 + torch.arange(T)/7.)   # order and place matter
        return LMOutput(torch.einsum("ts,bsd,bs->btd", near, x, real.float()) @ self.out, x)


class Kept:
    "Only what is new or changed goes through the projection; insertions move the rest along."
    def __init__(self): self.x = None
    def rows(self, index): self.x = self.x[index]
    def __call__(self, model, ids, source, active):
        if source is None: out = model(ids)
        else:
            known = self.x.gather(1, source.clamp(min=0)[..., None].expand(*source.shape, self.x.shape[-1]))
            out = model(torch.where(source < 0, ids, -1), known=known, real=ids >= 0)
        self.x = out.hidden
        return out


class Editing(Confident):
    "Fills, sometimes inserts a token and a hole, sometimes takes one back."
    def start(self, view): self.n = 0
    def done(self, view): return not view.holes.any() and self.n > 6
    def __call__(self, view):
        self.n += 1
        if self.n == 3: return Edits(insert={0: [5, -1], len(view.ids) - 1: [-1]})
        if self.n == 5: return Edits(remask=[i for i in range(len(view.ids)) if not view.holes[i] and not view.given[i]][:1], insert={-1: [-1]})
        return super().__call__(view) if view.holes.any() else Edits(remask=[1])


def test_a_cached_projection_changes_nothing_but_the_cost():
    canvases = [[1, -1, -1, 4, -1, -1, -1], [2, -1, -1], [3, -1, 7, 8, -1]]
    plain = denoise(Projected(), canvases, policy=Editing())
    fast = denoise(Projected(), canvases, policy=Editing(), cache=Kept())
    assert [f.ids for f in fast] == [p.ids for p in plain] and [f.logprobs for f in fast] == [p.logprobs for p in plain]
    assert [f.target_calls for f in fast] == [p.target_calls for p in plain] and len({f.target_calls for f in fast}) > 1
    assert sum(f.positions for f in fast) < .5*sum(p.positions for p in plain)


def test_edits_that_insert_and_remask():
    out = denoise(Projected(), [1, -1, -1, 4], policy=Editing())
    assert len(out.ids) == 4 + 4 and -1 not in out.ids
    assert len(out.logprobs) == len(out.ids) and len(out.accepted) == out.target_calls
    assert apply([1, 2, -1], Edits(fill={2: 3}, insert={0: [9], 2: [-1]}, remask=[1])) == ([1, 9, -1, 3, -1], [0, -1, -1, -1, -1])


class Insertion:
    "Insertion language model: grow from fragments until the policy says it is done; no hole ever."
    def start(self, view): self.target, self.stopped = [1, 2, 3, 4, 5], False
    def done(self, view): return self.stopped
    def __call__(self, view):
        ids = view.ids.tolist()
        self.stopped = ids == self.target
        missing = [t for t in self.target if t not in ids]
        return Edits(insert={max((i for i, x in enumerate(ids) if x < missing[0]), default=-1): missing[:1]}) if missing else Edits()


def test_a_policy_that_only_inserts():
    out = denoise(Projected(), [[2, 4], [5], [3]], policy=Insertion())
    assert [o.ids for o in out] == [[1, 2, 3, 4, 5]]*3 and [o.target_calls for o in out] == [4, 5, 5]


class Credit(Confident):
    "State of a row that lives from call to call: votes for tokens add up (CreditDecoding)."
    def start(self, view): self.credit = 0.
    def __call__(self, view):
        law = view.logits.softmax(-1)
        self.credit = .8*self.credit + torch.where(law == law.amax(-1, keepdim=True), law**.2, 0.)
        view.logits = view.logits + .7*(1 + self.credit).log()
        return super().__call__(view)


def test_a_policy_with_a_memory_of_its_own(lm):
    both = denoise(Causal(lm), [[1, *[-1]*6], [2, *[-1]*9]], policy=Credit(2))
    assert [b.ids for b in both] == [denoise(Causal(lm), c, policy=Credit(2)).ids for c in ([1, *[-1]*6], [2, *[-1]*9])]


# ---- ends and errors

class Endless:
    def __call__(self, view): return Edits(fill={0: 1}) if view.holes[0] else Edits(remask=[0])


def test_max_calls_ends_a_row(lm):
    out = denoise(Causal(lm), [-1]*8, policy=Confident(), max_calls=3)
    assert out.finish == "calls" and out.target_calls == 3 and out.ids.count(-1) == 5
    class Never(Endless):
        def done(self, view): return False
    assert denoise(Causal(lm), [-1], policy=Never()).finish == "calls"


def test_clear_errors(lm):
    model = Causal(lm)
    with pytest.raises(ValueError, match="mask_id"): denoise(lm, [1, -1], policy=Confident())
    with pytest.raises(ValueError, match="made no edit"): denoise(model, [1, -1], policy=lambda view: Edits())
    with pytest.raises(ValueError, match="edits position 9"): denoise(model, [1, -1], policy=lambda view: Edits(fill={9: 1}))
    with pytest.raises(ValueError, match="insert less"): denoise(model, [1, -1], policy=lambda view: Edits(insert={0: [1]*40}))
    with pytest.raises(ValueError, match="outside"): denoise(model, [1, 77], policy=Confident())
    with pytest.raises(ValueError, match="make it shorter"): denoise(model, [1]*33, policy=Confident())
    with pytest.raises(ValueError, match="is empty"): denoise(model, [[1], []], policy=Confident())
    with pytest.raises(ValueError, match="at least one hole"): Confident(0)
