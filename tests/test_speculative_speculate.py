"`speculate`: identical text for greedy decoding, the identical law for sampling, everything counted."
import copy
from types import SimpleNamespace
import pytest, torch
import torch.nn as nn
from tokenlab.generate import Sampler, generate, greedy
from tokenlab.lm import LM, LMConfig, LMOutput
from tokenlab.speculative import speculate as module
from tokenlab.speculative.speculate import (Draft, Drafter, Every, ModelDrafter, Step, accept_greedy, accept_sampling, ancestors, coin, draw,
                                            exact_law, residual, shuffle, speculate)


def small_lm(seed=0, scale=3., **kw):
    torch.manual_seed(seed)
    lm = LM(LMConfig(**(dict(vocab_size=50, dim=32, n_layers=4, n_heads=2, max_len=64, tied=False) | kw))).eval()
    for w in lm.parameters():
        if w.ndim > 1: w.data.mul_(scale)
    return lm


def noisy(lm, amount, seed=0):
    other, rng = copy.deepcopy(lm), torch.Generator().manual_seed(seed)
    for w in other.parameters():
        if w.ndim > 1: w.data += amount*w.std()*torch.randn(w.shape, generator=rng)
    return other


class TableCache:
    can_rollback = True
    def __init__(self, batch): self._lengths = self.base = [0]*batch
    def add(self, counts): self.base = self._lengths; self._lengths = [b + n for b, n in zip(self.base, counts)]
    def select(self, paths): self._lengths = [b + int((p >= 0).sum()) for b, p in zip(self.base, paths)]
    def rollback(self, lengths): self._lengths = list(lengths)
    def rows(self, index): self._lengths = [self._lengths[i] for i in index]
    @property
    def lengths(self): return torch.tensor(self._lengths)


class TableLM(nn.Module):
    "The next token depends on the last one, by a table of probabilities."
    def __init__(self, table):
        super().__init__()
        self.table, self.device = torch.as_tensor(table, dtype=torch.float64), torch.device("cpu")
        self.config = SimpleNamespace(vocab_size=len(table), n_layers=1, max_len=64)
    def new_cache(self, batch=1, capacity=None): return TableCache(batch)
    def forward(self, ids, *, cache=None, positions=None, mask=None):
        if cache is not None: cache.add((ids >= 0).sum(1).tolist())
        x = self.table[ids.clamp(min=0)].log()
        return LMOutput(x, x)


TARGET = [[.05, .35, .6], [.5, .2, .3], [.3, .3, .4]]
DRAFTS = [[.45, .3, .25], [.2, .5, .3], [.1, .5, .4]]


def true_law(target, first, n, sampler):
    "The law of n tokens after `first`, token by token."
    law = {(): 1.}
    for _ in range(n):
        law = {(*ids, t): p*q for ids, p in law.items() for t, q in enumerate(sampler.law(target.table[(first, *ids)[-1]].log()).tolist()) if q}
    return law


def spoken_law(n, sampler=Sampler(), drafter=None, accept=accept_sampling):
    "The exact law of what `speculate` writes, by walking through all outcomes of its random choices."
    target = TableLM(TARGET)
    return exact_law(lambda rng: tuple(speculate(target, [0], drafter=drafter, max_new_tokens=n, sampler=sampler, seed=rng, accept=accept).ids))


def distance(law, want): return sum(abs(law.get(k, 0) - want.get(k, 0)) for k in law.keys() | want.keys())/2


# ---- exact laws by enumeration

@pytest.mark.parametrize("branching, n", [((1, 1), 3), ((2,), 3), ((3,), 2), ((2, 1), 3)])
def test_law_of_the_target_is_kept(branching, n):
    got = spoken_law(n, drafter=ModelDrafter(TableLM(DRAFTS), branching=branching))
    assert abs(sum(got.values()) - 1) < 1e-9
    assert distance(got, true_law(TableLM(TARGET), 0, n, Sampler())) < 1e-6


@pytest.mark.parametrize("sampler", [Sampler(temperature=.6), Sampler(top_p=.75), Sampler(temperature=1.5, top_k=2), Sampler(temperature=.8, top_p=.9)])
def test_law_is_kept_under_temperature_and_top_p(sampler):
    for branching in [(1, 1), (2,)]:
        got = spoken_law(3, sampler, ModelDrafter(TableLM(DRAFTS), branching=branching))
        assert distance(got, true_law(TableLM(TARGET), 0, 3, sampler)) < 1e-6


def test_law_is_kept_when_the_drafter_samples_otherwise():
    got = spoken_law(3, Sampler(top_p=.75), ModelDrafter(TableLM(DRAFTS), 2, sampler=Sampler(temperature=2.)))
    assert distance(got, true_law(TableLM(TARGET), 0, 3, Sampler(top_p=.75))) < 1e-6


class Chosen(Drafter):
    "Two chosen children of the root and one below: no law drew them."
    def draft(self, context): return Draft([1, 2, 0], parents=[-1, -1, 0])


class WithoutReplacement(Drafter):
    "Two different children of the root, drawn one after the other."
    law = torch.tensor(DRAFTS[0], dtype=torch.float64)
    def draft(self, context):
        first = draw(self.law, Sampler(), context.rng)
        rest = self.law.clone(); rest[first] = 0
        return Draft([first, draw(rest/rest.sum(), Sampler(), context.rng)], parents=[-1, -1], laws={-1: self.law})


@pytest.mark.parametrize("drafter", [Chosen(), WithoutReplacement()], ids=["chosen", "without replacement"])
def test_law_is_kept_however_siblings_came_about(drafter):
    assert distance(spoken_law(3, drafter=drafter), true_law(TableLM(TARGET), 0, 3, Sampler())) < 1e-6


def test_mutations_are_detected(monkeypatch):
    "The usual mistakes change the law: the enumeration must see each of them."
    want = true_law(TableLM(TARGET), 0, 3, Sampler())
    wrong = lambda drafter: distance(spoken_law(3, drafter=drafter), want)
    chain, pair = ModelDrafter(TableLM(DRAFTS), 2), ModelDrafter(TableLM(DRAFTS), branching=(2,))
    with monkeypatch.context() as m:                                     # the residual replaced by the target
        m.setattr(module, "residual", lambda p, q: p)
        assert wrong(chain) > .02 and wrong(pair) > .02 and wrong(WithoutReplacement()) > .02
    with monkeypatch.context() as m:                                     # draws without replacement tried as if independent
        m.setattr(module, "trials", lambda draft, node, kids, size, rng: ((i, draft.laws[-1]) for i in kids))
        assert wrong(WithoutReplacement()) > 1e-3


def test_merged_draws_are_tried_in_a_fresh_order(monkeypatch):
    "x, y, x shares a node for the two x; to try x, x, y instead changes the law, and the counts matter too."
    target, q = TableLM(TARGET[:1]*3), TableLM(DRAFTS[:1]*3)
    def error(accept=accept_sampling):
        run = lambda rng: tuple(speculate(target, [0], drafter=ModelDrafter(q, branching=(3,)), max_new_tokens=2, sampler=Sampler(), seed=rng, accept=accept).ids)
        return distance(exact_law(run), true_law(target, 0, 2, Sampler()))
    assert error() < 1e-6
    def uncounted(step, *args):
        step.draft.counts = step.draft.counts.clamp(max=1)
        return accept_sampling(step, *args)
    assert error(uncounted) > 1e-3
    monkeypatch.setattr(module, "shuffle", lambda items, rng: items)
    assert error() > 1e-3


def test_law_with_a_real_model():
    "Chi-square on three tokens of a small LM whose law depends on the whole text, through cache and tree mask."
    target = small_lm(vocab_size=3, n_layers=2, scale=6., max_len=16)
    drafter = ModelDrafter(noisy(target, .5), branching=(2, 2))
    n, sampler = 1500, Sampler(temperature=.9)
    rows = speculate(target, [[1, 0]]*n, drafter=drafter, max_new_tokens=3, sampler=sampler, seed=1)
    law = {(): 1.}
    for _ in range(3):
        law = {(*ids, t): p*q for ids, p in law.items() for t, q in enumerate(sampler.law(target(torch.tensor([[1, 0, *ids]])).logits[0, -1]).tolist())}
    seen = {}
    for r in rows: seen[tuple(r.ids)] = seen.get(tuple(r.ids), 0) + 1
    chi = sum((seen.get(k, 0) - n*p)**2/(n*p) for k, p in law.items() if n*p > 5)
    cells = sum(n*p > 5 for p in law.values())
    assert cells > 6 and chi < cells + 4*(2*cells)**.5
    assert sum(map(len, (r.accepted for r in rows))) < 2.6*n             # and something was accepted at all


def test_sampling_rule_at_temperature_zero_is_greedy():
    target = small_lm()
    drafter = ModelDrafter(noisy(target, .3), branching=(2, 2, 1))
    want = generate(target, [3, 1], max_new_tokens=20).ids
    assert speculate(target, [3, 1], drafter=drafter, accept=accept_sampling, max_new_tokens=20).ids == want


# ---- identical text for greedy decoding

@pytest.mark.parametrize("noise", [0., .1, .5])
@pytest.mark.parametrize("branching", [1, (3, 2, 1, 1), (1, 2, 2), (4,)])
def test_greedy_text_is_identical(noise, branching):
    target = small_lm()
    prompts = [[1, 2, 3, 4, 5], [7], [9, 8]]
    plain = generate(target, prompts, max_new_tokens=25)
    fast = speculate(target, prompts, drafter=ModelDrafter(noisy(target, noise), 4, branching=branching), max_new_tokens=25)
    assert [f.ids for f in fast] == [p.ids for p in plain]
    for f, p in zip(fast, plain):
        torch.testing.assert_close(torch.tensor(f.logprobs), torch.tensor(p.logprobs), atol=1e-4, rtol=1e-4)
        assert sum(f.accepted) == 25 and len(f.accepted) == f.target_calls
        if noise == 0: assert f.target_calls == -(-25//(len(branching) + 1 if isinstance(branching, tuple) else 5))


@pytest.mark.parametrize("config", [dict(window=6), dict(n_kv_heads=1), dict(qk_norm=True, tied=True), dict(rope_scaling=dict(rope_type="linear", factor=4.))])
def test_greedy_text_is_identical_for_other_architectures(config):
    target = small_lm(**config)
    fast = speculate(target, [[1, 2, 3], [4]], drafter=ModelDrafter(noisy(target, .2), branching=(3, 2, 1)), max_new_tokens=30)
    assert [f.ids for f in fast] == [p.ids for p in generate(target, [[1, 2, 3], [4]], max_new_tokens=30)]


@pytest.mark.parametrize("sampler", [Sampler(temperature=0, repetition_penalty=1.5)])
def test_repetition_penalty_sees_the_path(sampler):
    target = small_lm()
    plain = generate(target, [1, 2], max_new_tokens=20, sampler=sampler)
    fast = speculate(target, [1, 2], drafter=ModelDrafter(noisy(target, .1), branching=(2, 2, 1)), max_new_tokens=20, sampler=sampler)
    assert fast.ids == plain.ids and fast.target_calls < 20


def test_every_length_and_the_end_of_the_context():
    target = small_lm(max_len=16)
    drafter = ModelDrafter(noisy(target, .05), 5)
    for n in (0, 1, 2, 7, 100):
        plain, fast = generate(target, [5, 6, 7], max_new_tokens=n), speculate(target, [5, 6, 7], drafter=drafter, max_new_tokens=n)
        assert fast.ids == plain.ids and fast.finish == plain.finish and len(fast.ids) == min(n, 13)
    full = list(range(16))
    assert speculate(target, full, drafter=drafter, max_new_tokens=3).finish == generate(target, full, max_new_tokens=3).finish == "context"


def test_draft_model_with_a_shorter_context():
    target, short = small_lm(), small_lm(max_len=10)
    short.load_state_dict(target.state_dict())
    for branching in (1, (2, 1, 1)):
        fast = speculate(target, [1, 2], drafter=ModelDrafter(short, 3, branching=branching), max_new_tokens=30)
        assert fast.ids == generate(target, [1, 2], max_new_tokens=30).ids


def test_max_new_tokens_one_makes_one_call():
    target = small_lm()
    out = speculate(target, [1], drafter=ModelDrafter(target, 4), max_new_tokens=1)
    assert (out.target_calls, out.draft_calls, out.positions, out.accepted) == (1, 0, 1, [1])


class Deep(Drafter):
    "Pays no heed to what is left."
    def draft(self, context): return Draft([1]*30)


def test_drafts_beyond_the_end_are_cut():
    target = small_lm(max_len=12)
    assert speculate(target, [3], drafter=Deep(), max_new_tokens=100).ids == generate(target, [3], max_new_tokens=100).ids


class Bytes:
    "A tokenizer whose tokens are letters."
    def encode(self, text): return [ord(c) - 97 for c in text]
    def token_bytes(self, i): return bytes([97 + i % 26])


def test_stops_end_a_row_inside_a_draft():
    target = small_lm()
    plain = generate(target, [1, 2, 3], max_new_tokens=30)
    stop = plain.ids[7]
    n = plain.ids.index(stop) + 1
    out = speculate(target, [1, 2, 3], drafter=ModelDrafter(target, 6), max_new_tokens=30, stop=stop)
    assert out.ids == plain.ids[:n] and out.finish == "stop" and sum(out.accepted) == n and len(out.logprobs) == n
    text = generate(target, "abc", max_new_tokens=30, tokenizer=Bytes()).text
    both = [f(target, "abc", max_new_tokens=30, tokenizer=Bytes(), stop=text[8:11], **kw) for f, kw in ((generate, {}), (speculate, dict(drafter=ModelDrafter(target, 6))))]
    assert both[0].ids == both[1].ids and both[0].text == both[1].text and both[1].finish == "stop"


def test_stream_and_batch_of_different_ends():
    target = small_lm()
    prompts = [[1, 2, 3], [7], [9, 8, 7, 6]]
    plain = generate(target, prompts, max_new_tokens=20)
    stop = [p.ids[3 + 5*i] for i, p in enumerate(plain)]
    got = {i: [] for i in range(3)}
    fast = speculate(target, prompts, drafter=ModelDrafter(noisy(target, .1), branching=(2, 1, 1)), max_new_tokens=20, stop=stop, stream=lambda i, t: got[i].append(t))
    slow = generate(target, prompts, max_new_tokens=20, stop=stop)
    assert [f.ids for f in fast] == [s.ids for s in slow] and len({f.target_calls for f in fast}) > 1
    assert all(got[i] == [t for t in f.ids if t not in stop] for i, f in enumerate(fast))


def test_a_row_does_not_depend_on_its_neighbours_nor_a_seed_on_the_day():
    target = small_lm()
    args = dict(drafter=ModelDrafter(noisy(target, .3), branching=(2, 2)), max_new_tokens=12, sampler=Sampler(), seed=5)
    many = speculate(target, [[1, 2], [3], [4, 5, 6]], **args)
    assert [m.ids for m in many] == [m.ids for m in speculate(target, [[1, 2], [3], [4, 5, 6]], **args)]
    assert many[0].ids == speculate(target, [1, 2], **args).ids
    assert many[0].ids != speculate(target, [1, 2], **{**args, "seed": 6}).ids


# ---- counting

def test_counts():
    target = small_lm()
    draft_lm = small_lm(1, n_layers=1)
    out = speculate(target, [1, 2, 3], drafter=ModelDrafter(draft_lm, 4), max_new_tokens=20)
    assert out.layer_tokens == 4*out.positions                       # all layers of the target on each position
    left, drafted = 20, 0
    for n in out.accepted: drafted += min(4, left - 1); left -= n
    assert out.draft_calls == drafted and out.positions == 3 + (out.target_calls - 1) + drafted
    assert sum(out.accepted) == 20 and len(out.accepted) == out.target_calls and out.seconds > 0
    plain = generate(target, [1, 2, 3], max_new_tokens=20)
    perfect = speculate(target, [1, 2, 3], drafter=ModelDrafter(target, 4), max_new_tokens=20)
    assert perfect.target_calls == 4 and perfect.positions == plain.positions           # accepted tokens are never computed again
    assert perfect.layer_tokens > plain.layer_tokens                                    # its drafting on the target itself is counted


def test_hooks_are_removed_and_modes_restored():
    target, small = small_lm(), small_lm(1)
    target.train(); small.train()
    with pytest.raises(ValueError, match="no token at all"):
        speculate(target, [1], drafter=ModelDrafter(small, 2), accept=lambda step, sampler, rng: ([], None), max_new_tokens=4)
    assert target.training and small.training and not target._forward_pre_hooks and not small._forward_pre_hooks


# ---- small parts

def test_ancestors_against_a_walk():
    rng = torch.Generator().manual_seed(0)
    for n in (0, 1, 2, 17, 64):
        parents = torch.tensor([int(torch.randint(-1, i, (), generator=rng)) if i else -1 for i in range(n)], dtype=torch.long)
        want = torch.zeros(n, n, dtype=torch.bool)
        for i in range(n):
            j = i
            while j >= 0: want[i, j] = True; j = int(parents[j])
        assert torch.equal(ancestors(parents), want)


def test_prune_keeps_laws_counts_and_parents():
    d = Draft([5, 6, 7, 8, 9], parents=[-1, 0, 1, -1, 3], counts=[1, 1, 1, 2, 1], laws={-1: torch.ones(1), 0: torch.ones(2), 3: torch.ones(3), 1: torch.ones(4)})
    p = d.prune(1)
    assert (p.tokens.tolist(), p.parents.tolist(), p.counts.tolist(), {k: len(v) for k, v in p.laws.items()}) == ([5, 8], [-1, -1], [1, 2], {-1: 1, 0: 2, 1: 3})


def test_clear_errors():
    target = small_lm()
    with pytest.raises(ValueError, match="same tokenizer"): speculate(target, [1], drafter=ModelDrafter(small_lm(vocab_size=40)), max_new_tokens=4)
    with pytest.raises(ValueError, match="1 or more"): ModelDrafter(target, 0)
    with pytest.raises(ValueError, match="not a path"): speculate(target, [1], drafter=Chosen(), accept=lambda *a: ([2], 1), max_new_tokens=9)
    with pytest.raises(ValueError, match="0 or more"): speculate(target, [1], drafter=Drafter(), max_new_tokens=-1)
    with pytest.raises(ValueError, match="is text"): speculate(target, "text", drafter=Drafter(), max_new_tokens=1)


def test_shuffle_and_coin_outcomes():
    law = exact_law(lambda rng: tuple(shuffle([1, 2, 3], rng)))
    assert len(law) == 6 and all(abs(p - 1/6) < 1e-9 for p in law.values())
    assert abs(exact_law(lambda rng: coin(.25, rng))[True] - .25) < 1e-9
