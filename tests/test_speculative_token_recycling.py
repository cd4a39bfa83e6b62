"Token recycling: the released template, the matrix after a call, and the target's own text whatever the matrix holds."
import numpy as np, pytest, torch
from tokenlab.generate import Sampler, generate, greedy
from tokenlab.lm import HFLM, LM, LMConfig
from tokenlab.speculative.speculate import exact_law, speculate
from tokenlab.speculative.token_recycling import RecyclingMatrix, TokenRecycling, TreeTemplate, grown_template, paper_template, write_rows
from test_speculative_speculate import TARGET, TableLM, true_law

LEVEL_3 = "000 001 002 003 004 005 006 007 010 011 012 020 021 030 040 050 060 070 100 101 110 200 300 400 500"
LEVEL_4 = "0000 0001 0002 0003 0004 0010 0011 0020 0030 0040 0100 0200 1000 2000 3000"
RELEASED = "0 1 2 3 4 5 6 7 00 01 02 03 04 05 06 07 10 11 12 13 20 21 22 30 31 40 50 60 70 " + LEVEL_3 + " " + LEVEL_4 + " 00000 00001 00002 00010 00020 00100 01000 10000 000000 000001 000100"


def small_lm(**kw): return LM(LMConfig(**(dict(vocab_size=40, dim=32, n_layers=2, n_heads=2, max_len=96) | kw)), seed=0).eval()
def little(k=2): return TokenRecycling(grown_template([.5, .3], 6), memory=RecyclingMatrix(k))


def test_template_is_the_released_one():
    assert paper_template().paths == [tuple(map(int, p)) for p in RELEASED.split()]     # model/recycling/tree_template_.py, 2.2.2


def test_fill_follows_fathers_and_ranks():
    rows, template, rng = np.random.default_rng(0).integers(0, 30, (30, 8)), paper_template(), np.random.default_rng(1)
    for root in rng.integers(0, 30, 5):
        tokens, at = template.fill(rows, int(root)), {(): int(root)}
        for path, t in zip(template.paths, tokens[1:]):
            at[path] = int(rows[at[path[:-1]], path[-1]])
            assert t == at[path]
        for depth in range(1, 6): assert (template.fill(rows, int(root), depth) == tokens[:1 + sum(len(p) <= depth for p in template.paths)]).all()


@pytest.mark.parametrize("V,k", [(8, 8), (50, 3), (1000, 8), (40, 1)])
def test_rows_are_those_of_topk(V, k):
    x, rows = torch.randn(12, V, generator=torch.Generator().manual_seed(V)), np.zeros((V, k), np.int64)
    tokens = np.arange(12) % V
    write_rows(rows, tokens, x.numpy())
    for token in set(tokens.tolist()): assert rows[token].tolist() == x[np.flatnonzero(tokens == token)[-1]].topk(k).indices.tolist()


def test_matrix_after_a_call_holds_separate_forwards():
    lm, steps = small_lm(), []
    class Watched(TokenRecycling):
        def observe(self, step): super().observe(step); steps.append((step, self.memory.rows.copy()))
    speculate(lm, [3, 4, 5], drafter=Watched(), max_new_tokens=30)
    step, rows = steps[-4]
    tokens, parents, wanted = step.draft.tokens.tolist(), step.draft.parents.tolist(), {}
    for node in range(-1, len(tokens)):
        path, up = [], node
        while up >= 0: path.insert(0, tokens[up]); up = parents[up]
        with torch.inference_mode(): wanted[path[-1] if path else step.ids[-1]] = lm(torch.tensor([step.ids + path])).logits[0, -1]
    for token, logits in wanted.items():                    # values, since float rounding may swap near ties
        torch.testing.assert_close(logits[rows[token]], logits.topk(8).values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("matrix", ["empty", "noise"])
def test_greedy_text_is_plain_greedy_text_ragged(matrix):
    lm, rng, memory = small_lm(), np.random.default_rng(0), RecyclingMatrix()
    if matrix == "noise": memory.rows = rng.integers(0, 40, (40, 8))
    prompts, drafter = [rng.integers(0, 40, n).tolist() for n in (1, 7, 30, 92)], TokenRecycling(memory=memory)
    for stop in (None, [generate(lm, prompts[1], max_new_tokens=20).ids[7]]):
        plain, quick = generate(lm, prompts, max_new_tokens=40, stop=stop), speculate(lm, prompts, drafter=drafter, max_new_tokens=40, stop=stop)
        assert [q.ids for q in quick] == [p.ids for p in plain]
    assert speculate(lm, prompts[0], drafter=drafter, max_new_tokens=1).ids == plain[0].ids[:1]


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=.6), Sampler(top_p=.7)])
def test_sampled_text_has_the_targets_law(sampler):
    target = TableLM(TARGET)
    def run(rng):
        drafter = little()
        drafter.memory.rows = np.array([[2, 1], [0, 2], [2, 2]])        # a duplicate among siblings, too
        return tuple(speculate(target, [0], drafter=drafter, max_new_tokens=3, sampler=sampler, seed=rng).ids)
    law, truth = exact_law(run), true_law(target, 0, 3, sampler)
    assert sum(abs(law.get(s, 0) - truth.get(s, 0)) for s in {*law, *truth}) < 1e-6


def test_rows_and_requests_share_the_matrix():
    lm, drafter = small_lm(), TokenRecycling()
    speculate(lm, [[1], [2]], drafter=drafter, max_new_tokens=20)
    filled = drafter.memory.rows.copy()
    assert filled[[1, 2]].any(1).all()
    hot = speculate(lm, [1], drafter=drafter, max_new_tokens=20)
    assert hot.target_calls < speculate(lm, [1], drafter=TokenRecycling(), max_new_tokens=20).target_calls


def test_black_box_target():
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    model = HFLM(LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, eos_token_id=None)).eval())
    assert speculate(model, [1, 2, 3], drafter=TokenRecycling(), max_new_tokens=30).ids == generate(model, [1, 2, 3], max_new_tokens=30).ids


def test_state_is_below_two_megabytes():
    memory = RecyclingMatrix()
    memory.fit(32_000)
    assert memory.nbytes == 32_000*8*8 < 2*2**20


def test_other_dtypes_take_the_other_way(tmp_path):
    x, memory = torch.randn(5, 30), RecyclingMatrix(4)
    memory.fit(30)
    memory.update(np.arange(5), x.bfloat16())
    assert memory.rows[:5].tolist() == x.bfloat16().topk(4).indices.tolist()
    memory.save(tmp_path/"m.safetensors")
    again = RecyclingMatrix.load(tmp_path/"m.safetensors")
    assert again.k == 4 and (again.rows == memory.rows).all()


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="beginning"): TreeTemplate([[0], [1, 0]])
    with pytest.raises(ValueError, match="paths"): TreeTemplate([])
    with pytest.raises(ValueError, match="nodes"): grown_template([.5], 0)
    with pytest.raises(ValueError, match="successor"): RecyclingMatrix(0)
    with pytest.raises(ValueError, match="empty"): RecyclingMatrix().save(tmp_path/"x")
    with pytest.raises(FileNotFoundError, match="save"): RecyclingMatrix.load(tmp_path/"x")
    drafter = little()
    speculate(small_lm(), [1], drafter=drafter, max_new_tokens=3)
    with pytest.raises(ValueError, match="the target has 30"): speculate(small_lm(vocab_size=30), [1], drafter=drafter, max_new_tokens=3)
    with pytest.raises(ValueError, match="successors"): speculate(small_lm(), [1], drafter=TokenRecycling(memory=RecyclingMatrix(2)), max_new_tokens=3)
