"The hard cases that plugs of `speculate` bring, as fakes: the loop must hold each of them without knowing it."
import hashlib
from types import SimpleNamespace
import pytest, torch
import torch.nn as nn
from tokenlab.generate import Sampler, generate
from tokenlab.lm import LM, LMConfig, LMOutput, use_rule
from tokenlab.speculative.speculate import Draft, Drafter, ModelDrafter, accept_greedy, accept_sampling, ancestors, draw, exact_law, speculate
from test_speculative_speculate import DRAFTS, TARGET, TableLM, distance, noisy, small_lm, true_law

PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7]]


def same_as_plain(target, drafter, prompts=PROMPTS, n=20, **kw):
    "Run both; the text must be identical."
    plain = generate(target, prompts, max_new_tokens=n)
    fast = speculate(target, prompts, drafter=drafter, max_new_tokens=n, **kw)
    assert [f.ids for f in fast] == [p.ids for p in plain]
    for f, p in zip(fast, plain): torch.testing.assert_close(torch.tensor(f.logprobs), torch.tensor(p.logprobs), atol=1e-3, rtol=1e-3)
    return fast, plain


# ---- drafting that already ran the first layers

class EarlyExit(Drafter):
    "The first layers of the target and its own head draft a chain; the loop goes on from there."
    def __init__(self, exit, length): self.exit, self.length = exit, length
    def start(self, target, prompt, context): self.target, self.n = target, len(prompt)
    def draft(self, context):
        layers = range(self.exit[self.n] if isinstance(self.exit, dict) else self.exit)
        if not layers: return Draft([])
        view, lm, fresh, hidden, tokens = context.view(layers), self.target, context.pending, [], []
        for i in range(min(self.length, context.left - 1) + 1):
            hidden.append(lm(torch.tensor([fresh]), layers=layers, cache=view).hidden[0])
            fresh = [int(lm.logits(hidden[-1][-1:]).argmax())]
            if i < min(self.length, context.left - 1): tokens += fresh
        return Draft(tokens, resume=(len(layers), torch.cat(hidden), view))


def test_resume_runs_no_layer_twice():
    target = small_lm(scale=2.)
    fast, plain = same_as_plain(target, EarlyExit(2, 3))
    for f in fast: assert f.layer_tokens == 4*f.positions          # first layers while drafting + the others in the call
    assert sum(f.target_calls for f in fast) < sum(p.target_calls for p in plain)


def test_resume_at_different_layers_in_one_batch():
    fast, _ = same_as_plain(small_lm(scale=2.), EarlyExit({5: 1, 1: 3, 3: 0}, 3), prompts=PROMPTS)
    for f in fast: assert f.layer_tokens == 4*f.positions


class EarlyTree(EarlyExit):
    "Three children of the root, through the first layers under a tree mask."
    def draft(self, context):
        layers, lm = range(self.exit), self.target
        view = context.view(layers)
        hidden = lm(torch.tensor([context.pending]), layers=layers, cache=view).hidden[0]
        if context.left < 2: return Draft([], resume=(self.exit, hidden, view))
        kids = lm.logits(hidden[-1]).topk(3).indices
        n = len(context.ids)
        more = lm(kids[None], layers=layers, cache=view, positions=torch.full((1, 3), n), mask=torch.eye(3, dtype=torch.bool)).hidden[0]
        return Draft(kids, parents=[-1]*3, resume=(self.exit, torch.cat([hidden, more]), view))


def test_resume_with_a_tree():
    fast, _ = same_as_plain(small_lm(scale=2.), EarlyTree(2, 1))
    for f in fast: assert f.layer_tokens == 4*f.positions
    assert any(a > 1 for f in fast for a in f.accepted)


def test_resume_is_checked():
    target = small_lm()
    class Short(EarlyExit):
        def draft(self, context):
            d = super().draft(context)
            d.resume = (d.resume[0], d.resume[1][:-1], d.resume[2])
            return d
    class Elsewhere(EarlyExit):
        def draft(self, context):
            d = super().draft(context)
            d.resume = (*d.resume[:2], self.target.new_cache(1))
            return d
    with pytest.raises(ValueError, match="pending tokens and nodes"): speculate(target, [1, 2], drafter=Short(2, 2), max_new_tokens=5)
    with pytest.raises(ValueError, match="not the target's"): speculate(target, [1, 2], drafter=Elsewhere(2, 2), max_new_tokens=5)


# ---- rows that are not tokens

class PromptTokens(Drafter):
    "Two trained vectors after the root, and after each node, ask the target for the tokens beyond; the answer is the next draft."
    def __init__(self, dim, m=2):
        self.vectors, self.m = torch.randn(m, dim, generator=torch.Generator().manual_seed(0)), m
        self.asked = []                                                   # shared by all rows
    def start(self, target, prompt, context): self.next = []
    def draft(self, context):
        tokens, parents, N = list(self.next), [i - 1 for i in range(len(self.next))], len(self.next)
        at = {}
        for node in range(-1, N):
            for i in range(self.m):
                parents.append(node if i == 0 else len(tokens) - 1)
                tokens.append(-1)
                at.setdefault(node, []).append(len(tokens) - 1)
        self.at, embeds = at, torch.zeros(len(tokens), self.vectors.shape[1])
        for rows in at.values(): embeds[rows] = self.vectors
        return Draft(tokens, parents=parents, embeds=embeds)
    def observe(self, step):
        last = step.path[-1] if step.path else -1
        rows = [r + 1 for r in self.at[last] if r < len(step.draft)]
        self.next = step.logits[rows].argmax(-1).tolist()
        self.asked.append(len(rows))


def test_rows_that_are_embeddings():
    target = small_lm()
    drafter = PromptTokens(32)
    fast, _ = same_as_plain(target, drafter)
    assert 2 in drafter.asked                                             # rows at different depths were verified together
    assert max(f.positions for f in fast) > 20 + 2*15


class HiddenRows(EarlyExit):
    "Rows that come into being after the first layers: a map of the root's hidden state stands for the token after next."
    def draft(self, context):
        layers = range(self.exit)
        view = context.view(layers)
        hidden = self.target(torch.tensor([context.pending]), layers=layers, cache=view).hidden[0]
        return Draft([-1, -1], resume=(self.exit, torch.cat([hidden, hidden[-1:]*.5, hidden[-1:]*.25]), view))
    def observe(self, step): assert len(step.logits) == 3


def test_rows_that_appear_between_layers():
    same_as_plain(small_lm(), HiddenRows(2, 0))


# ---- duplicates with counts, siblings without replacement

class Counted(Drafter):
    "Three independent draws below the root; equal ones share a node."
    law = torch.tensor(DRAFTS[0], dtype=torch.float64)
    def draft(self, context):
        if context.left < 2: return Draft([])
        drawn = [draw(self.law, Sampler(), context.rng) for _ in range(3)]
        tokens = list(dict.fromkeys(drawn))
        return Draft(tokens, parents=[-1]*len(tokens), counts=[drawn.count(t) for t in tokens], laws={-1: self.law})


class Unlike(Drafter):
    "A tree of two levels whose siblings are drawn without replacement."
    laws = torch.tensor(DRAFTS, dtype=torch.float64)
    def pair(self, law, rng):
        first = draw(law, Sampler(), rng)
        rest = law.clone(); rest[first] = 0
        return [first, draw(rest/rest.sum(), Sampler(), rng)]
    def draft(self, context):
        if context.left < 2: return Draft([])
        top = self.pair(self.laws[0], context.rng)
        if context.left < 3: return Draft(top, parents=[-1, -1], laws={-1: self.laws[0]})
        return Draft(top + self.pair(self.laws[top[0]], context.rng), parents=[-1, -1, 0, 0], laws={-1: self.laws[0], 0: self.laws[top[0]]})


@pytest.mark.parametrize("drafter, n", [(Counted(), 2), (Unlike(), 3)])
def test_law_is_kept(drafter, n):
    target = TableLM(TARGET)
    law = exact_law(lambda rng: tuple(speculate(target, [0], drafter=drafter, max_new_tokens=n, sampler=Sampler(), seed=rng).ids))
    assert distance(law, true_law(target, 0, n, Sampler())) < 1e-6


# ---- a drafter that learns from rejected nodes

class Recycler(Drafter):
    "Remembers what the target thought likely after each token, wherever it saw it; two levels of two drafts."
    def __init__(self): self.likely = {}                                  # shared by all rows, and by the next run
    def draft(self, context):
        tokens, parents = [], []
        for parent, token in [(-1, context.ids[-1])]:
            for t in self.likely.get(token, []): tokens.append(t); parents.append(parent)
        for i in range(len(tokens)):
            for t in self.likely.get(tokens[i], []): tokens.append(t); parents.append(i)
        return Draft(tokens, parents=parents)
    def observe(self, step):
        for token, logits in zip(step.draft.tokens.tolist(), step.logits[1:]): self.likely[token] = logits.topk(2).indices.tolist()
        self.likely[step.ids[-1]] = step.logits[0].topk(2).indices.tolist()


def test_a_drafter_learns_from_rejected_nodes():
    target, drafter = small_lm(), Recycler()
    first, _ = same_as_plain(target, drafter)
    written = {t for f in first for t in f.ids} | {t for p in PROMPTS for t in p}
    assert set(drafter.likely) - written                                  # it knows tokens that were never accepted
    again, _ = same_as_plain(target, drafter)
    assert sum(a.target_calls for a in again) < sum(f.target_calls for f in first)


# ---- acceptance without a bonus token

def no_bonus(step, sampler, rng):
    path, token = accept_greedy(step, sampler, rng)
    return (path, None) if path else (path, token)


@pytest.mark.parametrize("branching", [1, (3, 2, 1)])
def test_acceptance_without_a_bonus_token(branching):
    target = small_lm()
    fast, plain = same_as_plain(target, ModelDrafter(noisy(target, .1), 4, branching=branching), accept=no_bonus)
    perfect, _ = same_as_plain(target, ModelDrafter(target, 4), accept=no_bonus)
    for f, p in zip(perfect, plain):
        assert f.positions <= p.positions + 1 and f.target_calls == 5     # 4 tokens a call, none computed twice
        assert len(f.accepted) == f.target_calls and sum(f.accepted) == 20


class Sometimes(Drafter):
    "Guesses every third time."
    def start(self, target, prompt, context): self.n = 0
    def draft(self, context):
        self.n += 1
        return Draft([3, 4] if self.n % 3 == 0 else [])


def test_nothing_pending_and_nothing_drafted_needs_no_call():
    target = small_lm()
    always = lambda step, sampler, rng: ([0, 1], None) if len(step.draft) == 2 else accept_greedy(step)
    out = speculate(target, [1, 2], drafter=Sometimes(), accept=always, max_new_tokens=12)
    assert out.ids[2:4] == [3, 4] and len(out.accepted) == out.target_calls < 10 and sum(out.accepted) == 12
    assert out.ids[4] == int(target(torch.tensor([[1, 2, *out.ids[:4]]])).logits[0, -1].argmax())


# ---- a cache that cannot roll back

class Decay(nn.Module):
    "A recurrent mixer: a running mean of what came by, which nobody can take back."
    recurrent = True
    def __init__(self, dim, *, heads, seq_len, causal):
        super().__init__()
        self.inp, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
    def forward(self, x, *, cache=None, positions=None, mask=None):
        v = self.inp(x)
        state = x.new_zeros(len(x), x.shape[-1]) if cache is None or "s" not in cache.state else cache.state["s"]
        out, real = [], (positions >= 0).expand(x.shape[:2])
        for t in range(x.shape[1]):
            state = torch.where(real[:, t, None], .7*state + v[:, t], state)
            out.append(state)
        if cache is not None: cache.state["s"] = state
        return self.out(torch.stack(out, 1).tanh())


@pytest.fixture
def recurrent():
    torch.manual_seed(0)
    lm = LM(LMConfig(vocab_size=50, dim=32, n_layers=3, n_heads=2, max_len=64, tied=False), mixer=Decay).eval()
    for w in lm.parameters():
        if w.ndim > 1: w.data.mul_(4)
    return lm


def test_a_recurrent_target_restores_and_replays(recurrent):
    assert not recurrent.new_cache().can_rollback
    fast, plain = same_as_plain(recurrent, ModelDrafter(noisy(recurrent, .2), 3))
    assert max(f.target_calls for f in fast) > 20/4                       # replays are calls, and counted
    perfect, _ = same_as_plain(recurrent, ModelDrafter(recurrent, 3))
    assert {f.target_calls for f in perfect} == {5}                       # nothing rejected, nothing replayed


def test_a_recurrent_target_without_a_bonus_token(recurrent): same_as_plain(recurrent, ModelDrafter(noisy(recurrent, .1), 3), accept=no_bonus)


def test_a_recurrent_target_refuses_trees(recurrent):
    with pytest.raises(ValueError, match="chains"): speculate(recurrent, [1], drafter=Recycler2(), max_new_tokens=9)
    with pytest.raises(ValueError, match="branching=1"): ModelDrafter(recurrent, branching=2)


class Recycler2(Drafter):
    def draft(self, context): return Draft([1, 2], parents=[-1, -1])


# ---- a nested cache: bytes and chunks

class NestedCache:
    "Bytes of the open chunk, and what is left of the closed ones, row by row; a chunk closes after 4 bytes."
    can_rollback = True
    def __init__(self, batch): self.bytes, self.chunks, self.base, self.last = [[] for _ in range(batch)], [[] for _ in range(batch)], [0]*batch, [[]]*batch
    @property
    def lengths(self): return torch.tensor([len(b) for b in self.bytes])
    def close(self, b):
        "The chunks that follow from the bytes; old ones are kept, so a rollback inside an open chunk costs nothing."
        n = len(self.bytes[b])//4
        del self.chunks[b][n:]
        for i in range(len(self.chunks[b]), n):
            before = self.chunks[b][-1] if i else ""
            self.chunks[b].append(hashlib.sha256(f"{before}{self.bytes[b][4*i:4*i+4]}".encode()).hexdigest())
    def rollback(self, lengths):
        for b, n in enumerate(lengths): del self.bytes[b][int(n):]; self.close(b)
    def select(self, paths):
        for b, path in enumerate(torch.as_tensor(paths).tolist()):
            new = [self.last[b][i] for i in path if i >= 0]
            del self.bytes[b][self.base[b]:]; self.close(b)
            self.bytes[b] += new; self.close(b)
    def rows(self, index):
        for name in ("bytes", "chunks", "base", "last"): setattr(self, name, [getattr(self, name)[i] for i in index])
    def snapshot(self): return [list(b) for b in self.bytes]
    def restore(self, s):
        self.bytes = [list(b) for b in s]
        for b in range(len(s)): self.close(b)


class NestedLM(nn.Module):
    "The next byte depends on the closed chunks and on the bytes of the open one; trees are read path by path inside."
    device, can_tree = torch.device("cpu"), True
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=16, n_layers=2, max_len=200)
    def new_cache(self, batch=1, capacity=None): return NestedCache(batch)
    def law(self, cache, b, path):
        old = cache.bytes[b] + path
        part = NestedCache(1)
        part.bytes, part.chunks = [old], [list(cache.chunks[b])]
        part.close(0)
        seed = int(hashlib.sha256(f"{part.chunks[0][-1:]}{old[len(old)//4*4:]}".encode()).hexdigest()[:8], 16)
        return torch.randn(16, generator=torch.Generator().manual_seed(seed))
    def forward(self, ids, *, cache=None, positions=None, mask=None):
        B, T = ids.shape
        mask = torch.ones(B, T, T, dtype=torch.bool).tril() if mask is None else mask
        out = torch.zeros(B, T, 16)
        for b in range(B):
            for t in range(T):
                if ids[b, t] >= 0: out[b, t] = self.law(cache, b, [int(x) for x, m in zip(ids[b], mask[b, t]) if m and x >= 0])
        cache.base, cache.last = [len(x) for x in cache.bytes], ids.tolist()
        for b in range(B): cache.bytes[b] += [int(x) for x in ids[b] if x >= 0]; cache.close(b)
        return LMOutput(out, out)


class Half(Drafter):
    "Two guesses, the first right whenever the place is even."
    def draft(self, context):
        lm = NestedLM()
        cache = lm.new_cache(1)
        good = int(lm(torch.tensor([context.ids]), cache=cache).logits[0, -1].argmax())
        good = good if len(context.ids) % 2 == 0 else (good + 1) % 16
        return Draft([(good + 5) % 16, good, 2, 3], parents=[-1, -1, 0, 1])


def test_a_nested_cache_of_bytes_and_chunks():
    fast, plain = same_as_plain(NestedLM(), Half(), n=23)
    assert sum(f.target_calls for f in fast) < sum(p.target_calls for p in plain)


# ---- rows that end at different steps, plugs of different kinds in one batch

class Mixed(Drafter):
    "Each row drafts in its own way."
    def __init__(self, *kinds): self.kinds = list(kinds)
    def start(self, target, prompt, context):
        import copy
        self.mine = copy.copy(self.kinds[len(prompt) % len(self.kinds)])
        self.mine.start(target, prompt, context)
    def draft(self, context): return self.mine.draft(context)
    def observe(self, step): self.mine.observe(step)


def test_all_kinds_in_one_ragged_batch():
    target = small_lm(scale=2.)
    drafter = Mixed(EarlyExit(2, 3), PromptTokens(32), ModelDrafter(noisy(target, .1), branching=(2, 2)), Drafter(), EarlyTree(1, 1))
    prompts = [[1], [2, 3], [4, 5, 6], [7, 8, 9, 10], [11, 12, 13, 14, 15]]
    plain = generate(target, prompts, max_new_tokens=24)
    stop = plain[1].ids[9]
    fast = speculate(target, prompts, drafter=drafter, max_new_tokens=24, stop=stop)
    assert [f.ids for f in fast] == [p.ids for p in generate(target, prompts, max_new_tokens=24, stop=stop)]
    assert len({f.target_calls for f in fast}) > 2


# ---- a host model under another attention rule, a black box

def test_the_host_may_follow_another_attention_rule():
    target = small_lm()
    def near(q, k, v, *, positions, mask, cache, layer):
        "Half the temperature in odd layers: any rule will do."
        from tokenlab.lm import sdpa
        return sdpa(q*(2. if layer % 2 else 1.), k, v, positions=positions, mask=mask, cache=cache, layer=layer)
    plain = generate(target, PROMPTS, max_new_tokens=20)
    with use_rule(target, near):
        fast, other = same_as_plain(target, ModelDrafter(noisy(target, .1), branching=(3, 2)))
    assert [o.ids for o in other] != [p.ids for p in plain]


def test_a_black_box_has_no_hidden_states():
    transformers = pytest.importorskip("transformers")
    from tokenlab.lm import HFLM
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, initializer_range=.3)
    target = HFLM(transformers.LlamaForCausalLM(config).eval())
    for branching in (1, (2, 2)):
        fast, _ = same_as_plain(target, ModelDrafter(target, 3, branching=branching))
        assert max(f.target_calls for f in fast) <= 10
