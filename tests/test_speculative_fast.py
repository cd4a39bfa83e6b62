"The fast paths equal the slow ones: compiled model, several tokens of one row, chains; and the corners of the loop."
import pytest, torch
from tokenlab.generate import Sampler, generate, several_tokens
from tokenlab.lm import LM, LMConfig
from tokenlab.speculative.fused import Fused, can_fuse
from tokenlab.speculative.speculate import Draft, Drafter, Every, ModelDrafter, Step, accept_chain, accept_sampling, exact_law, speculate


def lm_of(seed=0, scale=4., **kw):
    lm = LM(LMConfig(**(dict(vocab_size=50, dim=32, n_layers=2, n_heads=4, max_len=64, tied=False) | kw)), seed=seed).eval()
    for w in lm.parameters():
        if w.ndim > 1: w.data.mul_(scale)
    return lm


def noisy(lm, amount):
    other, rng = LM(lm.config, seed=1).eval(), torch.Generator().manual_seed(5)
    other.load_state_dict({k: v + amount*v.std()*torch.randn(v.shape, generator=rng) if v.ndim > 1 else v for k, v in lm.state_dict().items()})
    return other


@pytest.mark.parametrize("kw", [{}, dict(n_kv_heads=2), dict(qk_norm=True), dict(qkv_bias=True), dict(tied=True, n_layers=1), dict(head_dim=6, mlp_dim=33, vocab_size=51),
                                dict(rope_scaling=dict(rope_type="linear", factor=2.))])
@pytest.mark.parametrize("make", [Fused, several_tokens])
def test_equals_forward_for_chains_and_trees(kw, make):
    lm, rng = lm_of(**kw), torch.Generator().manual_seed(0)
    for w in lm.parameters():
        if w.ndim == 1: w.data.normal_(1, .3, generator=rng)
    fast, caches = make(lm), (lm.new_cache(1), lm.new_cache(1))
    tree = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]]).bool()[None]
    n = 0
    with torch.inference_mode():
        for T, mask in [(7, None), (1, None), (2, None), (3, None), (5, tree), (9, None), (4, None)]:
            ids, extra = torch.randint(50, (1, T), generator=rng), {}
            if mask is not None: extra = dict(mask=mask, positions=n - 1 + mask.sum(-1))
            a, b = fast(ids, cache=caches[0], **extra), lm(ids, cache=caches[1], **extra)
            torch.testing.assert_close(a.logits, b.logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(a.hidden, b.hidden, atol=1e-4, rtol=1e-4)
            if mask is not None:
                for c in caches: c.select(torch.tensor([[0, 2, 4]]))
            n = caches[1]._lengths[0]


def test_compiled_is_refused_where_it_is_not_equal():
    assert not can_fuse(lm_of(window=8)) and not can_fuse(lm_of().to(torch.bfloat16))
    with pytest.raises(ValueError, match="call this model itself"): Fused(lm_of(window=8))


def test_ragged_batches_and_dropped_rows_through_the_compiled_model():
    lm = lm_of()
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
    plain = generate(lm, prompts, max_new_tokens=40)
    stop = plain[0].ids[4]
    for model in (lm, Fused(lm)):
        fast = speculate(model, prompts, drafter=ModelDrafter(noisy(lm, .1), 4), max_new_tokens=40, stop=stop)
        assert [g.ids for g in fast] == [g.ids for g in generate(lm, prompts, max_new_tokens=40, stop=stop)]


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("least", [0., .05])
def test_hundred_greedy_texts_are_the_same(fuse, least):
    lm = lm_of()
    drafter, rng, kept = ModelDrafter(noisy(lm, .05), 5, fuse=fuse, least=least), torch.Generator().manual_seed(3), 0
    for i in range(100):
        prompt = torch.randint(50, (1 + i % 7,), generator=rng).tolist()
        plain, fast = generate(lm, prompt, max_new_tokens=16), speculate(lm, prompt, drafter=drafter, max_new_tokens=16)
        assert fast.ids == plain.ids
        torch.testing.assert_close(torch.tensor(fast.logprobs), torch.tensor(plain.logprobs), atol=1e-4, rtol=0)
        kept += len(fast.ids) - fast.target_calls
    assert kept > 200


@pytest.mark.parametrize("length", [1, 3, 5])
def test_the_compiled_chain_counts_its_calls(length):
    lm = lm_of()
    counts = {fuse: speculate(lm, [1, 2], drafter=ModelDrafter(noisy(lm, .1), length, fuse=fuse), max_new_tokens=30) for fuse in (True, False)}
    assert counts[True].ids == counts[False].ids and counts[True].draft_calls == counts[False].draft_calls > 0
    assert counts[True].positions == counts[False].positions and counts[True].accepted == counts[False].accepted


def test_calls_are_counted_once_over_several_texts_and_rows():
    lm = lm_of()
    drafter = ModelDrafter(noisy(lm, .1), 3)
    first = speculate(lm, [[1, 2], [3]], drafter=drafter, max_new_tokens=20)
    again = speculate(lm, [[1, 2], [3]], drafter=drafter, max_new_tokens=20)
    assert [g.draft_calls for g in first] == [g.draft_calls for g in again]


def test_the_packed_copy_follows_a_change_of_the_weights():
    lm = lm_of()
    small = noisy(lm, 3.)
    drafter = ModelDrafter(small, 4)
    before = speculate(lm, [1, 2], drafter=drafter, max_new_tokens=30).target_calls
    with torch.no_grad():
        for p, q in zip(small.parameters(), lm.parameters()): p.copy_(q)
    assert speculate(lm, [1, 2], drafter=drafter, max_new_tokens=30).target_calls < before


def test_the_chain_is_the_fast_case_of_the_general_rule():
    rng = torch.Generator().manual_seed(0)
    for case in range(30):
        N, V = 3, 4
        laws = torch.rand(N, V, generator=rng).softmax(-1)
        logits, tokens = torch.randn(N + 1, V, generator=rng), torch.randint(V, (N,), generator=rng).tolist()
        draft = Draft(tokens, laws={i - 1: law for i, law in enumerate(laws) if (case + i) % 4})      # some chosen, some drawn
        general = Draft(tokens, counts=[1]*N, laws=draft.laws)                                        # counts keep it off the fast path
        step = lambda d: Step(d, logits, None, None, [0])
        fast = exact_law(lambda r: tuple(map(str, accept_chain(step(draft), Sampler(.8), r))))
        slow = exact_law(lambda r: tuple(map(str, accept_sampling(step(general), Sampler(.8), r))))
        assert fast.keys() == slow.keys()
        for k in fast: assert abs(fast[k] - slow[k]) < 1e-5


@pytest.mark.parametrize("least", [0., .3, .55])
def test_stopping_early_keeps_the_law(least):
    lm, small = lm_of(vocab_size=3, scale=20.), lm_of(seed=7, vocab_size=3, scale=20.)
    with torch.inference_mode(): true = {(): lm(torch.tensor([[0]])).logits[0, -1].softmax(-1).tolist()} | {(a,): lm(torch.tensor([[0, a]])).logits[0, -1].softmax(-1).tolist() for a in range(3)}
    law = exact_law(lambda rng: tuple(speculate(lm, [0], drafter=ModelDrafter(small, 2, least=least), max_new_tokens=2, sampler=Sampler(), seed=rng).ids))
    for (a, b), chance in law.items(): assert abs(chance - true[()][a]*true[(a,)][b]) < 1e-5


def test_the_compiled_chain_draws_from_the_law():
    lm = lm_of(vocab_size=5, scale=10.)
    fast, rng = Fused(lm), torch.Generator().manual_seed(0)
    with torch.inference_mode(): law = (lm(torch.tensor([[1, 2]])).logits[0, -1]/.7).softmax(-1)
    first = torch.tensor([fast.chain([1, 2], 1, fast.new_cache(1), temperature=.7, rng=rng)[0][0] for _ in range(4000)])
    torch.testing.assert_close(first.bincount(minlength=5)/4000, law, atol=.03, rtol=0)


def test_corners():
    lm = lm_of()
    small, plain = noisy(lm, .1), generate(lm, [1, 2, 3], max_new_tokens=30).ids
    write = lambda n, d, p=[1, 2, 3], **kw: speculate(lm, p, drafter=d, max_new_tokens=n, **kw)
    assert write(1, ModelDrafter(small, 4)).ids == plain[:1] and write(0, ModelDrafter(small, 4)).ids == []
    assert write(30, Drafter()).ids == plain                                                           # guesses nothing
    assert write(30, ModelDrafter(small, 200)).ids == plain                                            # longer than the context
    assert write(500, ModelDrafter(small, 6)).ids == generate(lm, [1, 2, 3], max_new_tokens=500).ids   # up to the context's end
    class Script(Drafter):
        def draft(self, context): n = len(context.ids) - 3; return Draft(plain[n:n + 8])
    end = plain[4]
    done = write(30, Script(), stop=[end])
    assert done.ids == plain[:plain.index(end) + 1] and done.finish == "stop"                          # the end inside a draft
    with pytest.raises(ValueError, match="same tokenizer"): write(5, ModelDrafter(lm_of(vocab_size=49)))
    with pytest.raises(ValueError, match="empty"): write(5, ModelDrafter(small), [[]])
    assert write(5, ModelDrafter(small), []) == []
    short = noisy(lm_of(max_len=64), .1)
    short = LM(LMConfig(**{**vars(lm.config), "max_len": 16}), seed=0).eval()
    assert write(30, ModelDrafter(short, 4)).ids == plain                                              # a draft model with a shorter context


def test_long_prompts_go_through_the_model_and_the_loops_go_on_from_its_cache():
    lm, rng = lm_of(max_len=128, n_kv_heads=2), torch.Generator().manual_seed(2)
    fast, calls = Fused(lm), []
    hook = lm.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[1]))
    ours, theirs = fast.new_cache(2), lm.new_cache(2)
    steps = [torch.randint(50, (2, T), generator=rng) for T in (20, 40, 5, 33, 1)]
    steps[2][1, 3:] = -1                                              # ragged
    with torch.inference_mode(): found = [fast(ids, cache=ours) for ids in steps]
    hook.remove()
    assert calls == [40, 33]                                          # only the long ones
    with torch.inference_mode():
        for ids, a in zip(steps, found):
            b, real = lm(ids, cache=theirs), ids >= 0
            torch.testing.assert_close(a.logits[real], b.logits[real], atol=1e-4, rtol=1e-4)
    assert ours._lengths == theirs._lengths == [99, 97]


def test_hundred_greedy_texts_with_a_compiled_target():
    lm, rng = lm_of(max_len=96), torch.Generator().manual_seed(4)
    target, drafter = Fused(lm), ModelDrafter(noisy(lm, .05), 3)
    for i in range(100):
        prompt = torch.randint(50, (1 + i % 45,), generator=rng).tolist()
        assert speculate(target, prompt, drafter=drafter, max_new_tokens=12).ids == generate(lm, prompt, max_new_tokens=12).ids
