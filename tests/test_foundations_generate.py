"The plain loop: filters against transformers, rows against themselves alone, text against bytes, draws against the law."
import math
import pytest, torch
from hypothesis import given, settings, strategies as st
from tokenlab.generate import Generation, Meter, Sampler, Writer, end_ids, generate, greedy, keep_min_p, keep_top_k, keep_top_p, penalize, row_rng
from tokenlab.lm import LM, LMConfig

V = 61


@pytest.fixture(scope="module")
def lm():
    m = LM(LMConfig(V, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_len=48), seed=0)
    with torch.no_grad():
        for p in m.parameters():
            if p.ndim > 1: p.mul_(8)      # laws that are neither flat nor certain
    return m.eval()


class Bytes:
    "A token is a byte."
    def encode(self, text): return list(text.encode() if isinstance(text, str) else text)
    def token_bytes(self, i): return bytes([i])


class Script(torch.nn.Module):
    "A model that writes given bytes behind a prompt of one token, whatever the prompt."
    device = torch.device("cpu")
    def __init__(self, written, pieces=None, **config):
        super().__init__()
        self.written, self.calls = list(written), 0
        self.config = LMConfig(pieces or 256, dim=2, n_layers=1, n_heads=1, max_len=200, **config)
    def new_cache(self, batch, capacity): self.calls = 0; return LM(self.config).new_cache(batch, capacity)
    def forward(self, ids, cache=None):
        token = self.written[min(self.calls, len(self.written) - 1)]
        self.calls += 1
        return type("Out", (), {"logits": torch.nn.functional.one_hot(torch.full(ids.shape, token), self.config.vocab_size).float()*9})


# --- filters against transformers, exactly ------------------------------------------------------------------------

def scores(kind):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(7, 200, generator=g)*3
    return {"normal": x, "bf16 ties": x.bfloat16().float(), "few values": x.round(), "flat": torch.zeros(7, 200), "sharp": x*20}[kind]

KINDS = ["normal", "bf16 ties", "few values", "flat", "sharp"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name, value", [("top_k", 1), ("top_k", 5), ("top_k", 500), ("top_p", .1), ("top_p", .5), ("top_p", .9), ("top_p", .999), ("min_p", .01), ("min_p", .3), ("min_p", 1.)])
def test_filters_equal_transformers(kind, name, value):
    lp = pytest.importorskip("transformers.generation.logits_process")
    theirs = {"top_k": lp.TopKLogitsWarper, "top_p": lp.TopPLogitsWarper, "min_p": lp.MinPLogitsWarper}[name](value)
    ours = {"top_k": keep_top_k, "top_p": keep_top_p, "min_p": keep_min_p}[name]
    x = scores(kind)
    a, b = ours(x, value), theirs(None, x)
    if name == "top_p": assert torch.equal(a.sort(-1).values, b.sort(-1).values)     # of tied tokens transformers' sort keeps any
    if name != "top_p" or kind in ("normal", "sharp"): assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [.7, 1., 1.3])
def test_repetition_penalty_equals_transformers(kind, penalty):
    lp = pytest.importorskip("transformers.generation.logits_process")
    x, history = scores(kind), torch.randint(200, (7, 30), generator=torch.Generator().manual_seed(1))
    assert torch.equal(penalize(x, history, penalty), lp.RepetitionPenaltyLogitsProcessor(penalty)(history, x.clone()))


@pytest.mark.parametrize("kind", ["normal", "sharp"])
def test_whole_sampler_equals_the_chain_of_transformers(kind):
    lp = pytest.importorskip("transformers.generation.logits_process")
    x, history = scores(kind), torch.randint(200, (7, 30), generator=torch.Generator().manual_seed(1))
    chain = [lp.RepetitionPenaltyLogitsProcessor(1.2), lp.TemperatureLogitsWarper(.7), lp.TopKLogitsWarper(40), lp.TopPLogitsWarper(.9), lp.MinPLogitsWarper(.02)]
    y = x.clone()
    for step in chain: y = step(history, y)
    law = Sampler(.7, 40, .9, .02, 1.2).law(x, history)
    assert torch.equal(law > 0, y.isfinite())
    torch.testing.assert_close(law, y.softmax(-1), rtol=1e-5, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=1, max_size=30), st.floats(0, 1))
def test_top_p_by_definition(values, p):
    "The kept set has more than p of the mass, and no longer does without its least likely member; nothing kept is less likely than anything dropped."
    x = torch.tensor(values, dtype=torch.float64)
    kept, probs = keep_top_p(x, p).isfinite(), x.softmax(-1)
    assert kept.any() and (kept.all() or probs[kept].min() >= probs[~kept].max())
    assert kept.all() or probs[kept].sum() > p - 1e-9
    assert kept.sum() == 1 or probs[kept].sum() - probs[kept].min() <= p + 1e-9


def test_ties_at_the_border_go_to_the_smaller_ids():
    x = torch.tensor([[0., 2., 0., 0., 0.], [1., 1., 1., 1., 1.]])
    assert keep_top_p(x, .7).isfinite().tolist() == [[True, True, False, False, False], [True, True, True, True, False]]
    assert keep_top_p(x, 0.).isfinite().nonzero().tolist() == [[0, 1], [1, 0]]


def test_laws_are_laws(lm):
    x = scores("normal").view(7, 1, 200)
    for s in (Sampler(), Sampler(.1), Sampler(1e-9), Sampler(1e9), Sampler(top_k=3, top_p=.2, min_p=.9), greedy, Sampler(0, repetition_penalty=2.)):
        law = s.law(x, torch.zeros(7, 1, 1, dtype=torch.long))
        assert law.shape == x.shape and law.dtype == torch.float32
        torch.testing.assert_close(law.sum(-1), torch.ones(7, 1))
    assert torch.equal(Sampler(1e-9).law(x).argmax(-1), x.argmax(-1))


@pytest.mark.parametrize("bad", [dict(temperature=-1), dict(temperature=math.inf), dict(top_k=0), dict(top_k=1.5), dict(top_p=1.1), dict(min_p=-.1), dict(repetition_penalty=0), dict(temperature=math.nan)])
def test_senseless_samplers(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}="): Sampler(**bad)


# --- draws follow the law -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", [Sampler(), Sampler(.6, top_k=20), Sampler(1.3, top_p=.8), Sampler(min_p=.1)])
def test_draws_follow_the_law(sampler):
    "Chi-square of 40 000 draws: below the 1 - 1e-6 quantile of its law."
    from scipy.stats import chi2
    law, n = sampler.law(torch.randn(50, generator=torch.Generator().manual_seed(2))), 40_000
    seen = sampler.draw(law.expand(n, -1), row_rng(5)).bincount(minlength=50).double()
    some = law > 0
    assert seen[~some].sum() == 0
    stat = ((seen[some] - n*law[some].double())**2/(n*law[some].double())).sum()
    assert stat < chi2.ppf(1 - 1e-6, int(some.sum()) - 1)


def test_generate_follows_the_law(lm):
    "The second token of 4000 rows, given the first, against the model's own law."
    from scipy.stats import chi2
    sampler, n = Sampler(.9, top_k=6), 4000
    rows = generate(lm, [[5]]*n, max_new_tokens=2, sampler=sampler, seed=1)
    first = torch.tensor([r.ids[0] for r in rows])
    with torch.no_grad():
        law1 = sampler.law(lm(torch.tensor([[5]])).logits[0, -1])
        top = int(law1.argmax())
        law2 = sampler.law(lm(torch.tensor([[5, top]])).logits[0, -1])
    second = torch.tensor([r.ids[1] for r in rows])[first == top]
    for law, got in ((law1, first), (law2, second)):
        want, have = len(got)*law.double(), got.bincount(minlength=V).double()
        assert have[law == 0].sum() == 0
        assert ((have - want)**2/want)[law > 0].sum() < chi2.ppf(1 - 1e-6, int((law > 0).sum()) - 1)


def test_draw_never_leaves_the_vocabulary_nor_a_zero():
    law = torch.tensor([0., .5, 0., .5, 0.])
    assert set(Sampler().draw(law.expand(5000, 5), row_rng(0)).tolist()) == {1, 3}
    import tokenlab.generate as g
    old = g.uniforms
    g.uniforms = lambda shape, rng=None: torch.full(shape, 1 - 2**-53, dtype=torch.float64)
    try: assert int(Sampler().draw(torch.full((3,), 1/3))) == 2
    finally: g.uniforms = old


def test_row_generators_are_unrelated():
    firsts = [torch.rand(1, generator=row_rng(s, r)).item() for s in range(30) for r in range(30)]
    assert len(set(firsts)) == 900 and abs(sum(firsts)/900 - .5) < .05
    assert torch.rand(1, generator=row_rng(-3)).item() != torch.rand(1, generator=row_rng(3)).item()
    assert torch.rand(1, generator=row_rng(None)).item() != torch.rand(1, generator=row_rng(None)).item()


# --- one prompt, many prompts -------------------------------------------------------------------------------------

PROMPTS = [[1, 2, 3], [7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1], [30]*5, [60, 59]]
SAMPLERS = [greedy, Sampler(), Sampler(.7, top_k=10), Sampler(1.2, top_p=.8), Sampler(min_p=.1), Sampler(0, repetition_penalty=1.5), Sampler(.9, 20, .95, .01, 1.3)]


@torch.no_grad()
def naive(lm, ids, n):
    out = list(ids)
    for _ in range(n): out.append(int(lm(torch.tensor([out])).logits[0, -1].argmax()))
    return out[len(ids):]


def test_greedy_is_the_naive_loop(lm):
    for p in PROMPTS: assert generate(lm, p, max_new_tokens=9).ids == naive(lm, p, 9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_of_a_ragged_batch_equal_the_same_alone(lm, sampler):
    seeds, stop = [3, 1, 4, 1, 5], list(range(0, V, 5))
    rows = generate(lm, PROMPTS, max_new_tokens=20, sampler=sampler, seed=seeds, stop=stop)
    assert len({len(r.ids) for r in rows}) > 1                   # they do end at different tokens
    for p, s, r in zip(PROMPTS, seeds, rows):
        alone = generate(lm, p, max_new_tokens=20, sampler=sampler, seed=s, stop=stop)
        assert (r.ids, r.finish, r.target_calls, r.positions, r.layer_tokens, r.prompt_length) == (alone.ids, alone.finish, alone.target_calls, alone.positions, alone.layer_tokens, len(p))
        torch.testing.assert_close(r.logprobs, alone.logprobs, atol=1e-4, rtol=0)


def test_a_row_does_not_depend_on_its_neighbours(lm):
    a = generate(lm, PROMPTS, max_new_tokens=8, sampler=Sampler(), seed=5)
    b = generate(lm, PROMPTS[:2] + [[3]] + PROMPTS[3:], max_new_tokens=8, sampler=Sampler(), seed=5)
    assert [x.ids for i, x in enumerate(a) if i != 2] == [x.ids for i, x in enumerate(b) if i != 2]


def test_seeds(lm):
    draw = lambda seed: generate(lm, [1, 2], max_new_tokens=12, sampler=Sampler(), seed=seed).ids
    assert draw(3) == draw(3) != draw(4) and draw(None) != draw(None)
    state = torch.get_rng_state()
    draw(0)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="2 seeds for 3 prompts"): generate(lm, [[1]]*3, max_new_tokens=1, seed=[1, 2])


@pytest.mark.parametrize("kind", ["list", "tuple", "tensor", "array", "scalars"])
def test_forms_of_a_prompt(lm, kind):
    import numpy as np
    p = [4, 5, 6]
    forms = {"list": p, "tuple": tuple(p), "tensor": torch.tensor(p), "array": np.array(p), "scalars": list(torch.tensor(p))}
    want = generate(lm, p, max_new_tokens=3).ids
    got = generate(lm, forms[kind], max_new_tokens=3)
    assert isinstance(got, Generation) and got.ids == want
    many = generate(lm, [forms[kind], [1]], max_new_tokens=3)
    assert isinstance(many, list) and many[0].ids == want
    padded = generate(lm, torch.tensor([[4, 5, 6, -1], [1, -1, -1, -1]]), max_new_tokens=3)
    assert [r.ids for r in padded] == [r.ids for r in many] and [r.prompt_length for r in padded] == [3, 1]


# --- the fast step ------------------------------------------------------------------------------------------------

FAMILIES = [dict(), dict(n_kv_heads=2), dict(n_kv_heads=1), dict(qkv_bias=True), dict(qk_norm=True, head_dim=16), dict(tied=False), dict(window=6), dict(window=6, window_layers=(1,)),
            dict(rope_scaling={"rope_type": "linear", "factor": 2.}), dict(qk_norm=True, qkv_bias=True, n_kv_heads=2)]


@pytest.mark.parametrize("kw", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_fast_step_is_the_forward(kw, dtype):
    from tokenlab.generate import one_token
    m = LM(LMConfig(V, dim=32, n_layers=2, n_heads=4, max_len=20, **kw), seed=0).eval()
    for p in m.parameters(): p.normal_(std=.3, generator=torch.Generator().manual_seed(1)) if p.ndim > 1 else p.normal_(1, .3)
    m.to(dtype)
    a, b, step = m.new_cache(3, 4), m.new_cache(3, 4), one_token(m)      # a capacity that must grow on the way
    start = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    m(start, cache=a); m(start, cache=b)
    for t in range(12):
        if t == 6: a.rows([2, 0]); b.rows([2, 0])
        ids = torch.arange(len(a._lengths))[:, None] + t
        x, y = m(ids, cache=a), step(ids, cache=b)
        tol = dict(atol=1e-4, rtol=1e-5) if dtype == torch.float32 else dict(atol=.1, rtol=.05)      # another order of sums
        torch.testing.assert_close(y.logits, x.logits, **tol); torch.testing.assert_close(y.hidden, x.hidden, **tol)
        assert a._lengths == b._lengths
    m(ids, cache=a, layers=range(2)); m(ids, cache=b)                     # the caches go on alike
    torch.testing.assert_close(a.store.k[1][:, :, :16], b.store.k[1][:, :, :16], **tol)


def test_the_fast_step_is_only_for_plain_models(lm):
    import copy
    from tokenlab.generate import one_token
    from tokenlab.lm import sdpa, use_rule
    assert one_token(lm) is not None
    with use_rule(lm, lambda *a, **k: sdpa(*a, **k)): assert one_token(lm) is None
    seen, handle = [], lm.blocks[1].mlp.register_forward_hook(lambda *a: seen.append(1))
    assert one_token(lm) is None
    generate(lm, [1], max_new_tokens=4)
    handle.remove()
    assert len(seen) == 4 and one_token(lm) is not None
    class Other(LM): pass
    assert one_token(Other(lm.config)) is None and one_token(Script(b"x")) is None
    m = copy.deepcopy(lm)
    m.blocks[0].mlp.up_proj = torch.nn.Sequential(m.blocks[0].mlp.up_proj)
    assert one_token(m) is None
    class Id(torch.nn.Module):
        def forward(self, x, **kw): return x
    odd = LM(LMConfig(V, dim=16, n_layers=2, n_heads=2, max_len=30), mixer=lambda *a, **k: Id(), seed=0)
    assert one_token(odd) is None and len(generate(odd, [1, 2], max_new_tokens=3).ids) == 3


# --- log-probabilities and counts ---------------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.no_grad()
def test_logprobs_are_those_of_a_teacher_forced_forward(lm, sampler):
    for p, r in zip(PROMPTS, generate(lm, PROMPTS, max_new_tokens=12, sampler=sampler, seed=2)):
        text = torch.tensor([p + r.ids])
        want = lm(text).logits.log_softmax(-1)[0, len(p) - 1:-1].gather(-1, text[0, len(p):, None])[:, 0]
        torch.testing.assert_close(torch.tensor(r.logprobs), want, atol=1e-4, rtol=0)


def test_counts(lm):
    r = generate(lm, [[1, 2, 3], [4]], max_new_tokens=6)[0]
    assert (r.target_calls, r.positions, r.layer_tokens, r.accepted, r.draft_calls) == (6, 8, 16, [1]*6, 0) and r.seconds > 0 and r.tokens_per_second > 0
    calls = []
    class Spy(Meter):
        def target(self, ids=None, **kw): calls.append(tuple(ids.shape)); return super().target(ids, **kw)
    import tokenlab.generate as g
    old, g.Meter = g.Meter, Spy
    try: generate(lm, PROMPTS, max_new_tokens=20, seed=[3, 1, 4, 1, 5], sampler=Sampler(), stop=list(range(0, V, 9)))
    finally: g.Meter = old
    assert calls[0] == (5, 11) and all(c[1] == 1 for c in calls[1:]) and [c[0] for c in calls] == sorted((c[0] for c in calls), reverse=True) and calls[-1][0] < 5


# --- edges --------------------------------------------------------------------------------------------------------

def test_edges(lm):
    none = generate(lm, [1, 2], max_new_tokens=0)
    assert (none.ids, none.logprobs, none.target_calls, none.finish, none.accepted) == ([], [], 0, "length", [])
    assert generate(lm, [1, 2], max_new_tokens=1).ids == naive(lm, [1, 2], 1)
    assert generate(lm, [], max_new_tokens=4) == []
    full = generate(lm, [[1]*47, [1]*48, [1]], max_new_tokens=3)
    assert [(len(r.ids), r.finish) for r in full] == [(1, "context"), (0, "context"), (3, "length")]


def test_empty_prompts():
    for config, start in ((dict(bos_id=3, eos_id=4), 3), (dict(eos_id=4), 4), (dict(eos_id=(6, 7)), 6)):
        m = LM(LMConfig(V, dim=16, n_layers=1, n_heads=2, max_len=20, **config), seed=1)
        assert generate(m, [[]], max_new_tokens=3)[0].ids == generate(m, [start], max_new_tokens=3).ids
        assert generate(m, "", max_new_tokens=2, tokenizer=Bytes()).prompt_length == 1


@pytest.mark.parametrize("kw, match", [
    (dict(prompt=[1]*49), "prompt 0 has 49 tokens, the model's context 48: keep the last 48"), (dict(prompt=[[1], [1]*50]), "prompt 1 has 50 tokens"),
    (dict(prompt=[[1], []]), "prompt 1 is empty"), (dict(prompt=""), "pass tokenizer="), (dict(prompt=[61]), r"ids outside 0..60"), (dict(prompt=[1, -1, 2]), "ids outside"),
    (dict(prompt=[1], max_new_tokens=-1), "max_new_tokens=-1"), (dict(prompt=[1], max_new_tokens=1.5), "max_new_tokens=1.5"), (dict(prompt=3), "give a list of ids"),
    (dict(prompt=None), "prompt=None: give text, token ids"), (dict(prompt=[[1], None]), "prompt 1 is None: give text or token ids"), (dict(prompt=2.5), "prompt=2.5"), (dict(prompt=[1.5]), "prompt 0 is 1.5"),
    (dict(prompt=[1], stop="x"), "pass tokenizer="), (dict(prompt=[1], stop=["a", ""], tokenizer=Bytes()), "empty stop string"), (dict(prompt=[1], stop=99), "stop id 99 is outside"),
])
def test_bad_input(lm, kw, match):
    with pytest.raises(ValueError, match=match): generate(lm, **{"max_new_tokens": 3} | kw)


def test_nan_logits_are_an_error(lm):
    import copy
    broken = copy.deepcopy(lm)
    with torch.no_grad(): broken.norm.weight.fill_(math.nan)
    for s in (greedy, Sampler(), Sampler(top_p=.9)):
        with pytest.raises(ValueError, match="NaN.*token 0 of row 0"): generate(broken, [1], max_new_tokens=3, sampler=s)


def test_training_mode_is_restored(lm):
    lm.train()
    try:
        generate(lm, [1], max_new_tokens=2)
        assert lm.training
        with pytest.raises(ValueError): generate(lm, [[1]*49], max_new_tokens=1)
        assert lm.training
    finally: lm.eval()


def test_bf16():
    m = LM(LMConfig(V, dim=32, n_layers=2, n_heads=4, max_len=48), seed=0).bfloat16()
    rows = generate(m, PROMPTS, max_new_tokens=6, sampler=Sampler(.8, 10, .9, .01, 1.1), seed=0)
    assert all(len(r.ids) == 6 and all(math.isfinite(x) and x <= 0 for x in r.logprobs) for r in rows)
    with torch.no_grad(): want = m(torch.tensor([[1, 2, 3]])).logits[0, -1].float().log_softmax(-1)
    one = generate(m, [1, 2, 3], max_new_tokens=1)
    assert one.ids == [int(want.argmax())] and abs(one.logprobs[0] - want.max().item()) < 1e-5


def test_transformers_model_through_hflm(lm, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenlab.lm import HFLM
    lm.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    black = HFLM(theirs)
    for sampler in (greedy, Sampler(.8, top_k=9)):
        a, b = (generate(m, PROMPTS, max_new_tokens=10, sampler=sampler, seed=1, stop=[3, 9]) for m in (lm, black))
        assert [r.ids for r in a] == [r.ids for r in b]
    theirs.generation_config.update(eos_token_id=None, pad_token_id=0)
    for p in PROMPTS:
        ids = torch.tensor([p])
        assert theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10)[0, len(p):].tolist() == generate(lm, p, max_new_tokens=10).ids


def test_repetition_penalty_as_transformers_generates(lm, tmp_path):
    transformers = pytest.importorskip("transformers")
    lm.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs.generation_config.update(eos_token_id=None, pad_token_id=0)
    ids = torch.tensor([[1, 2, 3]])
    want = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=15, repetition_penalty=1.4)[0, 3:].tolist()
    assert generate(lm, [1, 2, 3], max_new_tokens=15, sampler=Sampler(0, repetition_penalty=1.4)).ids == want


# --- stops and streams --------------------------------------------------------------------------------------------

def test_stop_ids(lm):
    whole = naive(lm, [1, 2, 3], 12)
    end = whole[5]
    r = generate(lm, [1, 2, 3], max_new_tokens=12, stop=end)
    assert r.ids == whole[:whole.index(end) + 1] and r.finish == "stop" and len(r.logprobs) == len(r.ids)


@pytest.mark.parametrize("eos", [100, (7, 100), [100]])
def test_end_of_text_tokens(eos):
    m = Script(b"ab" + bytes([100]) + b"zz", eos_id=eos)
    assert 100 in end_ids(m.config)
    r = generate(m, "x", max_new_tokens=9, tokenizer=Bytes())
    assert (r.ids, r.text, r.finish) == ([97, 98, 100], "ab", "stop")


@pytest.mark.parametrize("text, stop, want", [
    ("hello END more", "END", "hello "), ("hello EN ENEND", "END", "hello EN EN"), ("aaab", "aab", "a"), ("no stop here", ["xyz", "q"], "no stop here"),
    ("one two three", ["three", "two"], "one "), ("über größe", "ß", "über grö"), ("日本語です", "語で", "日本"), ("a👩‍🔬b", "b", "a👩‍🔬"), ("stop", "stop", ""), ("ababac", "abac", "ab"),
])
def test_stop_strings_over_byte_tokens(text, stop, want):
    n, pieces = len(text.encode()), []
    r = generate(Script(text.encode()), "x", max_new_tokens=n, stop=stop, tokenizer=Bytes(), stream=pieces.append)
    assert r.text == want == "".join(pieces) and r.finish == ("length" if want == text else "stop")
    assert "\ufffd" not in "".join(pieces)


def test_a_stop_within_a_long_token_cuts_its_text():
    class Words:
        words = [b"The ", b"answer\n\nUs", b"er: ", b"\xe2", b"\x82\xac!"]
        def encode(self, text): return [0]
        def token_bytes(self, i): return self.words[i]
    pieces = []
    r = generate(Script([0, 3, 4, 1, 2, 0], pieces=5), "x", max_new_tokens=6, stop="\nUser:", tokenizer=Words(), stream=pieces.append)
    assert (r.text, r.ids, "".join(pieces)) == ("The €!answer\n", [0, 3, 4, 1, 2], r.text) and pieces[:3] == ["The ", "€!", "answer\n"]


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abé語", max_size=20), st.lists(st.text(alphabet="abé語", min_size=1, max_size=4), max_size=3), st.randoms())
def test_writer_equals_the_search_in_the_whole_text(text, stops, random):
    "Any cut of the bytes into tokens: the text ends before the first stop that is complete first, and the stream says the same."
    raw, tokens = text.encode(), []
    while raw:
        n = random.randint(1, 5)
        tokens.append(raw[:n]); raw = raw[n:]
    class Pieces:
        def token_bytes(self, i): return tokens[i]
    sent = []
    w = Writer(stop_texts=stops, tokenizer=Pieces(), stream=sent.append)
    for i in range(len(tokens)):
        if w.push(i): break
    got = w.close()
    assert got == "".join(sent) and not any(s in got for s in stops) and text.startswith(got)
    if not any(s in text for s in stops): assert got == text
    else: assert w.done and any(text[len(got):].startswith(s) for s in stops)


def test_unfinished_character_at_the_end():
    r = generate(Script("é".encode()[:1]), "x", max_new_tokens=1, tokenizer=Bytes())
    assert r.text == "\ufffd"


def test_streams(lm):
    got = []
    r = generate(lm, [1, 2], max_new_tokens=5, stream=got.append)
    assert got == r.ids
    got = []
    rows = generate(lm, [[1, 2], [3]], max_new_tokens=5, stream=lambda row, piece: got.append((row, piece)))
    assert [[t for i, t in got if i == row] for row in (0, 1)] == [r.ids for r in rows]
    whole = naive(lm, [1, 2], 5)
    got = []
    generate(lm, [1, 2], max_new_tokens=5, stream=got.append, stop=whole[2])
    assert got == whole[:whole.index(whole[2])]                 # the stop itself is no text
