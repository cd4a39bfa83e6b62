"Hard cases of the ground floor's protocols, as fakes: another attention rule in a trained host, caches that differ, padding in a tree call."
import pytest, torch
from tokenlab.generate import generate
from tokenlab.lm import LM, LMConfig, sdpa, use_rule, visible

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]


def host(seed=0, **kw):
    lm = LM(LMConfig(**(dict(vocab_size=40, dim=32, n_layers=3, n_heads=2, max_len=64, tied=False) | kw)), seed=seed).eval()
    for w in lm.parameters():
        if w.ndim > 1: w.data.mul_(3)
    return lm


# ---- a rule that replaces the attention of a host without training

def last(n):
    "Every token sees itself and the n-1 before it, whatever the host was told."
    def rule(q, k, v, *, positions, mask, cache, layer):
        T, S = q.shape[2], k.shape[2]
        keys = torch.arange(S) if cache is None else torch.arange(S).expand(q.shape[0], -1)
        near = positions[..., :, None] - keys[..., None, :] < n                       # single rows: slot and position agree
        seen = torch.ones(T, S, dtype=torch.bool).tril(S - T) if mask is None else mask
        return sdpa(q, k, v, positions=positions, mask=seen & near[:, None] if near.ndim == 3 else seen & near, cache=cache, layer=layer)
    return rule


def test_a_rule_changes_a_host_and_leaves_no_trace():
    plain, window = host(), host(window=3)
    window.load_state_dict(plain.state_dict())
    before, other = generate(plain, PROMPTS, max_new_tokens=12), generate(window, PROMPTS, max_new_tokens=12)
    with use_rule(plain, last(3)): ruled = generate(plain, PROMPTS, max_new_tokens=12)
    assert [r.ids for r in ruled] == [o.ids for o in other] != [b.ids for b in before]
    assert [g.ids for g in generate(plain, PROMPTS, max_new_tokens=12)] == [b.ids for b in before]
    with pytest.raises(ZeroDivisionError), use_rule(plain, last(3)): 1/0
    assert all(b.mixer.rule is sdpa for b in plain.blocks)


def test_a_rule_may_keep_state_and_differ_by_layer():
    "Selection by attention mass: a rule that watches which cached tokens were used, layer by layer."
    lm, mass = host(), {}
    def watching(q, k, v, *, positions, mask, cache, layer):
        T, S = q.shape[2], k.shape[2]
        seen = torch.ones(T, S, dtype=torch.bool).tril(S - T) if mask is None else mask
        p = ((q @ k.mT)/q.shape[-1]**.5).masked_fill(~seen, -torch.inf).softmax(-1)
        mass[layer] = mass.get(layer, 0.) + float(p.sum())
        return p @ v
    with use_rule(lm, watching): ruled = generate(lm, PROMPTS, max_new_tokens=6)
    assert [r.ids for r in ruled] == [g.ids for g in generate(lm, PROMPTS, max_new_tokens=6)]
    assert set(mass) == {0, 1, 2} and all(m > 0 for m in mass.values())


def test_a_rule_that_fetches_fewer_keys():
    "Fetch the 4 keys each query likes best: exact while there are no more than 4."
    lm = host()
    def top4(q, k, v, *, positions, mask, cache, layer):
        T, S = q.shape[2], k.shape[2]
        seen = torch.ones(T, S, dtype=torch.bool).tril(S - T) if mask is None else mask
        scores = (q @ k.mT).masked_fill(~seen, -torch.inf)
        keep = scores >= scores.topk(min(4, S)).values[..., -1:]
        return sdpa(q, k, v, positions=positions, mask=seen & keep, cache=cache, layer=layer)
    with use_rule(lm, top4): ruled = generate(lm, [8], max_new_tokens=20)
    plain = generate(lm, [8], max_new_tokens=20)
    assert ruled.ids[:4] == plain.ids[:4]
    torch.testing.assert_close(torch.tensor(ruled.logprobs[:4]), torch.tensor(plain.logprobs[:4]))
    assert ruled.logprobs != plain.logprobs


def test_a_host_without_attention_is_told_so():
    class Mean(torch.nn.Module):
        def __init__(self, dim, *, heads, seq_len, causal): super().__init__()
        def forward(self, x, *, cache=None, positions=None, mask=None): return x.cumsum(1)
    lm = LM(LMConfig(40, dim=32, n_layers=1, n_heads=2), mixer=Mean)
    with pytest.raises(ValueError, match="no attention"), use_rule(lm, sdpa): pass


# ---- a tree call on a ragged cache, with padding

def test_no_query_sees_what_lies_behind_its_row():
    "Rows of 5 and 2 cached tokens, 3 new ones with a mask; the second has padding. Slots behind a row hold garbage."
    pad = torch.tensor([[False, False, True], [False, False, False]])
    seen = visible([5, 2], 3, torch.ones(3, 3, dtype=torch.bool).tril(), None, pad, None)[:, 0]
    assert not seen[1, :, 5:].any()                                        # row 1 ends at slot 2 + 3


def test_tree_call_on_a_ragged_cache_equals_single_rows():
    lm, tree = host(), dict(mask=torch.tensor([[[1, 0, 0], [0, 1, 0], [1, 0, 1]]]).bool())
    cache = lm.new_cache(2)
    with torch.no_grad():
        lm(torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, -1, -1, -1, -1]]), cache=cache)
        cache.rollback([5, 2])
        lm(torch.full((2, 6), 9), cache=cache); cache.rollback([5, 2])     # what is forgotten lies behind the rows
        ids, at = torch.tensor([[11, 12, -1], [11, 12, 13]]), torch.tensor([[5, 5, -1], [2, 2, 3]])
        both = lm(ids, cache=cache, positions=at, mask=tree["mask"].expand(2, 3, 3)).logits
        alone = lm.new_cache(1)
        lm(torch.tensor([[7, 8]]), cache=alone)
        one = lm(ids[1:], cache=alone, positions=at[1:], **tree).logits
    torch.testing.assert_close(both[1:], one, atol=1e-4, rtol=1e-4)
