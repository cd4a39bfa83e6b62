"Landmark attention: the two-level definition by loops, the authors' code where it is at hand, cached retrieval against the parallel pass."
import math, os, sys, types
from functools import partial
from pathlib import Path
import pytest, torch
from tokenlab.lm import LMConfig
from tokenlab.mixers.checks import check_mixer
from tokenlab.mixers.core import MIXERS
from tokenlab.mixers.landmark import LandmarkAttention, LandmarkLM, grouped_softmax, insert_landmarks, retrieve, turned, with_landmarks
from tokenlab.mixers.recall import VOCAB, needle


def loops(scores, marks, seen):
    "Two levels by loops over one query; probabilities of the first level, then of each block."
    block, n = [sum(marks[:j]) for j in range(len(marks))], len(marks)
    own = max(block[j] for j in range(n) if seen[j])
    local = [j for j in range(n) if seen[j] and block[j] == own and not marks[j]]
    gates = [j for j in range(n) if seen[j] and block[j] < own and marks[j]]
    z, w = sum(math.exp(scores[j]) for j in local + gates), [0.]*n
    for j in local: w[j] = math.exp(scores[j])/z
    for g in gates:
        inside = [j for j in range(n) if block[j] == block[g] and not marks[j]]
        for j in inside: w[j] = math.exp(scores[g])/z*math.exp(scores[j])/sum(math.exp(scores[i]) for i in inside)
    return w


@pytest.mark.parametrize("marks", [[0, 0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]], ids=["two", "ends", "none"])
def test_grouped_softmax_is_the_two_level_definition(marks):
    torch.manual_seed(0)
    scores, is_mark = 3*torch.randn(2, 2, 7, 7), torch.tensor([marks, marks[::-1] if marks[-1] == 0 and marks[0] == 0 else marks]).bool()
    mask = torch.ones(1, 1, 7, 7, dtype=torch.bool).tril()
    w = grouped_softmax(scores, is_mark, mask)
    for b in range(2):
        for i in range(7): torch.testing.assert_close(w[b, 1, i], torch.tensor(loops(scores[b, 1, i].tolist(), is_mark[b].tolist(), mask[0, 0, i].tolist())), atol=1e-6, rtol=1e-5)
    assert not w.masked_select(is_mark[:, None, None]).any()


def test_grouped_softmax_is_stable_and_has_gradients():
    marks, mask = torch.tensor([[0, 0, 1, 0, 0]]).bool(), torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    scores = torch.tensor([300., 200., -400., 500., -500.]).expand(1, 1, 5, 5)
    w = grouped_softmax(scores, marks, mask)
    assert bool(w.isfinite().all()) and torch.allclose(w.sum(-1), torch.ones(1, 1, 5))
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: grouped_softmax(x, marks, mask), (x,))


@pytest.mark.parametrize("every, row, want", [(2, [1, 2, 3], [1, 2, 9, 3]), (2, [1, 2], [1, 2, 9]), (3, [1, 2], [1, 2]), (1, [1, 2], [1, 9, 2, 9]), (4, [], [])])
def test_insert_landmarks(every, row, want):
    assert insert_landmarks(torch.tensor([row], dtype=torch.long), every, 9).tolist() == [want]


@pytest.mark.parametrize("block, top_k, places", [(3, 2, "stingy"), (1, 1, "stingy"), (4, 1, "true")])
def test_retrieval_keeps_the_protocol(block, top_k, places):
    check_mixer(partial(LandmarkAttention, block=block, top_k=top_k, places=places), forms=("causal",))


def test_registered():
    for name in ("landmark", "landmark-top"): check_mixer(MIXERS[name])


def slowly(m, x):
    "Retrieval for one row, query by query, with keys turned to the places of the table."
    (_, T, D), s, K, d = x.shape, m.block + 1, m.top_k, x.shape[-1]//m.heads
    q, k, v = (p(x)[0].view(T, m.heads, d).transpose(0, 1) for p in (m.q_proj, m.k_proj, m.v_proj))
    turn, y = lambda z, at: turned(z, torch.tensor(at), m.freq), torch.zeros(m.heads, T, d)
    for h in range(m.heads):
        for t in range(T):
            b, o = divmod(t, s)
            start = b if b <= K else K + 1
            query = turn(q[h, t], start*s + o)
            slot = [max(0, c - (b - K) + 1) if b > K else c for c in range(b)]
            score = [float(query @ turn(k[h, c*s + s - 1], slot[c]*s + s - 1))/math.sqrt(d) + 1e-5*c for c in range(b)]
            chosen = sorted(sorted(range(b), key=lambda c: -score[c])[:K])
            index, at = [], []
            for j, c in enumerate(chosen):
                first = c if b <= K else j + (c >= b - K)
                index += range(c*s, c*s + s); at += range(first*s, first*s + s)
            index += range(b*s, t + 1); at += range(start*s, start*s + o + 1)
            keys = torch.stack([turn(k[h, i], p) for i, p in zip(index, at)])
            if o == s - 1: index, keys = index[:-1], keys[:-1]            # a landmark does not see itself
            w = loops((keys @ query/math.sqrt(d)).tolist(), [int(i % s == s - 1) for i in index], [True]*len(index))
            y[h, t] = torch.tensor(w) @ v[h, index]
    return m.o_proj(y.transpose(0, 1).reshape(1, T, D))


def test_retrieval_is_the_table_of_places():
    torch.manual_seed(0)
    m, x = LandmarkAttention(16, heads=2, block=3, top_k=2), 2*torch.randn(1, 45, 16)
    with torch.no_grad(): want, loops = slowly(m, x), m(x)                  # without gradients: compiled
    tensors = m(x)
    torch.testing.assert_close(loops, want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tensors, want, atol=1e-5, rtol=1e-4)


def test_positions_stay_small_and_loaded_keys_few():
    torch.manual_seed(0)
    m, largest = LandmarkAttention(8, heads=1, block=3, top_k=2), 0
    import tokenlab.mixers.landmark as module
    old = module.turned
    def watch(x, at, freq): nonlocal largest; largest = max(largest, int(at.max())); return old(x, at, freq)
    module.turned = watch
    try: m(torch.randn(1, 400, 8))
    finally: module.turned = old
    assert largest < (m.top_k + 2)*(m.block + 1)


def test_model_decodes_as_it_reads():
    torch.manual_seed(0)
    lm, ids = LandmarkLM(LMConfig(30, dim=16, n_layers=2, n_heads=2, max_len=64), block=3, seed=1).eval(), torch.randint(30, (1, 40))
    with torch.no_grad(), retrieve(lm, 2):
        whole, cache = lm(ids).logits, lm.new_cache(1)
        got = torch.cat([lm(part, cache=cache).logits for part in ids.split([1, 1, 4, 6, 1, 27], 1)], 1)
    torch.testing.assert_close(got, whole, atol=1e-4, rtol=1e-3)
    assert cache.lengths.tolist() == [40] and cache.inner.lengths.tolist() == [53]


def test_bad_input():
    with pytest.raises(ValueError, match="1 or more"): LandmarkAttention(8, block=0)
    with pytest.raises(ValueError, match="choose"): LandmarkAttention(8, places="far")
    m, x = LandmarkAttention(8), torch.randn(1, 4, 8)
    tree = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]).bool()[None, None]
    with pytest.raises(ValueError, match="no mask but the causal"): m(x, mask=tree)
    with pytest.raises(ValueError, match="packed"): LandmarkLM(LMConfig(9, dim=8, n_layers=1, n_heads=1))(torch.zeros(1, 4, dtype=torch.long), segments=torch.zeros(1, 4))


@pytest.mark.parametrize("ids, text", [([[3, 9, 1]], "puts in itself"), ([[3, 12]], "tokenizer")])
def test_landmark_is_no_token_of_the_text(ids, text):
    with pytest.raises(ValueError, match=text): LandmarkLM(LMConfig(9, dim=8, n_layers=1, n_heads=1))(torch.tensor(ids))


def test_padding_stays_allowed():
    lm = LandmarkLM(LMConfig(9, dim=8, n_layers=1, n_heads=1), block=2, seed=0)
    with torch.no_grad(): torch.testing.assert_close(lm(torch.tensor([[1, 2, 3, -1], [4, 5, 6, 8]])).logits[0, :3], lm(torch.tensor([[1, 2, 3]])).logits[0])


def test_landmarks_of_a_recall_task_ask_nothing():
    plain = needle(3, 40, 1)
    marked = with_landmarks(plain, 4)
    tokens = marked["ids"] != VOCAB
    assert marked["ids"].shape == (3, 50) and (~tokens).sum(1).tolist() == [10]*3 and (marked["targets"][~tokens] == -1).all()
    for name in plain: assert torch.equal(marked[name][tokens].view(3, 40), plain[name])


@pytest.fixture
def authors(monkeypatch):
    "The released code: LANDMARK_CODE names a checkout of epfml/landmark-attention."
    folder = Path(os.environ.get("LANDMARK_CODE", ""), "lm_benchmark")
    if not os.environ.get("LANDMARK_CODE") or not folder.is_dir(): pytest.skip("LANDMARK_CODE names no checkout of epfml/landmark-attention")
    monkeypatch.syspath_prepend(str(folder))
    if "tiktoken" not in sys.modules: monkeypatch.setitem(sys.modules, "tiktoken", types.ModuleType("tiktoken"))
    for name in [n for n in sys.modules if n == "models" or n.startswith("models.")]: monkeypatch.delitem(sys.modules, name)
    import models.landmark as landmark
    from models.caches.mem_cache import MemLMCache
    from models.positional_encoders.rotary_mem_jump import JumpingRotaryPositionalEncoderClosure
    return landmark, MemLMCache, JumpingRotaryPositionalEncoderClosure


def their_config(**kw):
    base = dict(bias=False, dropout=0., softmax_func="mem_opt", enable_rem_score=False, sequence_length=256, max_groups_for_softmax=40, group_dropout=None,
                postpone_lm_cache=False, batch_size=2, mem_cache_size=64, cache_selection_method="per_token_and_head")
    return types.SimpleNamespace(**base | kw)


def their_attention(authors, m, **kw):
    "Their attention layer with the weights of ours; their rotary pairs are neighbours, ours are halves."
    landmark, MemLMCache, Closure = authors
    c = their_config(n_embd=m.dim, n_head=m.heads, mem_cache_freq=m.block, cache_topk=m.top_k or 0, **kw)
    theirs, d = landmark.CausalSelfAttention(c, MemLMCache(c)).eval(), m.dim//m.heads
    order = torch.cat([h*d + torch.arange(d).view(2, d//2).T.flatten() for h in range(m.heads)])
    with torch.no_grad():
        theirs.c_attn.weight.copy_(torch.cat([m.q_proj.weight[order], m.k_proj.weight[order], m.v_proj.weight]))
        theirs.c_proj.weight.copy_(m.o_proj.weight)
    return theirs, c, Closure(types.SimpleNamespace(freqs=m.freq, config=c), None)


def test_training_form_is_the_authors(authors):
    torch.manual_seed(0)
    m = LandmarkAttention(32, heads=4, block=5)
    theirs, c, places = their_attention(authors, m)
    x = torch.randn(2, 64, 32, requires_grad=True)
    is_mem = (torch.arange(64) % 6 == 5).expand(2, 64)
    want, got, probe = theirs(x, is_mem, places, None, 0)[0], m(x), torch.randn(2, 64, 32)
    g1, g2 = (torch.autograd.grad((y*probe).sum(), x)[0] for y in (want, got))
    print("output", (got - want).abs().max().item(), "gradient", (g1 - g2).abs().max().item(), "of", g1.abs().max().item())
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(g2, g1, atol=1e-5, rtol=1e-4)


def test_grouped_softmax_is_the_authors(authors):
    landmark, *_ = authors
    torch.manual_seed(0)
    B, H, T = 2, 3, 40
    marks = torch.rand(B, T) < .2
    marks[:, 0] = False
    marks = marks & ~torch.cat([torch.zeros(B, 1, dtype=torch.bool), marks[:, :-1]], 1)          # no empty block
    scores = (2*torch.randn(B, H, T, T)).requires_grad_()
    hidden = torch.ones(1, 1, T, T, dtype=torch.bool).triu(1)
    wide = marks[:, None, None].repeat(1, H, 1, 1)                                              # the masks that their layer hands over
    block = torch.where(hidden, 0., wide.cumsum(-1) - wide.int())
    last = block.amax(-1, keepdim=True) == block
    mask = hidden | wide & last
    want, _ = landmark.landmark_grouped_softmax(scores.masked_fill(mask, -math.inf), -1, wide & ~mask, mask, last & ~mask, False, 40)
    got, probe = grouped_softmax(scores, marks, ~hidden), torch.randn(B, H, T, T)
    g1, g2 = (torch.autograd.grad((y*probe).sum(), scores)[0] for y in (want, got))
    print("weights", (got - want).abs().max().item(), "gradient", (g1 - g2).abs().max().item())
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(g2, g1, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("top_k", [2, 4])
def test_retrieval_is_the_authors(authors, top_k):
    torch.manual_seed(0)
    m = LandmarkAttention(32, heads=4, block=5, top_k=top_k)
    theirs, c, places = their_attention(authors, m)
    s, n, x = 6, 20, 2*torch.randn(2, 120, 32)
    is_mem, worst = (torch.arange(s) == s - 1).expand(2, s), 0.
    with torch.no_grad():
        got = m(x).split(s, 1)
        for b, part in enumerate(x.split(s, 1)):
            c.cache_topk = 0 if b <= top_k else top_k           # their cache cannot load more blocks than it holds
            y = theirs(part, is_mem, places, object(), min(b, top_k + 1)*s)[0]
            if b > top_k: worst = max(worst, (y - got[b]).abs().max().item())
    print("largest difference", worst)
    assert worst < 1e-5
