"Drafts from the text itself: equal to transformers' lookup, to plain counting, and lossless with any model."
from collections import Counter, defaultdict
import numpy as np, pytest, torch
from tokenlab.generate import Sampler, generate, greedy
from tokenlab.lm import HFLM, LM, LMConfig
from tokenlab.speculative.lookup import NGramDrafter, NGramTable, PromptLookup, lab_tasks, until_stop
from tokenlab.speculative.speculate import Context, exact_law, speculate
from test_speculative_speculate import TARGET, TableLM, true_law


def small_lm(**kw): return LM(LMConfig(**(dict(vocab_size=40, dim=32, n_layers=2, n_heads=2, max_len=96) | kw)), seed=0).eval()


def drafted(drafter, ids, left=100, stop=()):
    context = Context(list(ids), [], left, greedy, None, frozenset(stop))
    drafter.start(None, list(ids), context)
    return drafter.draft(context)


DRAFTERS = {"first": lambda: PromptLookup(4), "latest": lambda: PromptLookup(4, latest=True), "chain": lambda: NGramDrafter(4),
            "tree": lambda: NGramDrafter(9, 3), "corpus": lambda: NGramDrafter(9, 3, corpus=NGramTable.count([[0, 1, 2, 1, 0, 2, 2, 0]]))}
MANY = {**DRAFTERS, "empty": lambda: PromptLookup(0), "long": lambda: PromptLookup(500, latest=True), "sure": lambda: NGramDrafter(9, least=.4)}


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_first_place_is_that_of_transformers(longest):
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
    rng = np.random.default_rng(longest)
    for size in (2, 3, 10, 60):
        for _ in range(20):
            ids = rng.integers(0, 6, size).tolist()
            peer = PromptLookupCandidateGenerator(num_output_tokens=5, max_matching_ngram_size=longest, max_length=1000)
            theirs = peer.get_candidates(torch.tensor([ids]))[0][0, len(ids):].tolist()
            assert drafted(PromptLookup(5, longest=longest), ids).tokens.tolist() == theirs


@pytest.mark.parametrize("name", MANY)
def test_greedy_text_is_plain_greedy_text_ragged(name):
    lm, rng = small_lm(), np.random.default_rng(0)
    prompts = [rng.integers(0, 40, n).tolist() for n in (1, 7, 30, 3, 90)]
    for stop in (None, [generate(lm, prompts[1], max_new_tokens=20).ids[7]]):
        plain = generate(lm, prompts, max_new_tokens=40, stop=stop)
        quick = speculate(lm, prompts, drafter=MANY[name](), max_new_tokens=40, stop=stop)
        assert [q.ids for q in quick] == [p.ids for p in plain]
        assert [q.finish for q in quick] == [p.finish for p in plain]
    assert speculate(lm, prompts[0], drafter=MANY[name](), max_new_tokens=1).ids == plain[0].ids[:1]


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=.7, top_p=.8)])
def test_sampled_text_has_the_targets_law(name, sampler):
    target = TableLM(TARGET)
    law = exact_law(lambda rng: tuple(speculate(target, [0, 1, 2, 0], drafter=DRAFTERS[name](), max_new_tokens=3, sampler=sampler, seed=rng).ids))
    truth = true_law(target, 0, 3, sampler)
    assert sum(abs(law.get(s, 0) - truth.get(s, 0)) for s in {*law, *truth}) < 1e-6


def test_black_box_target():
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    model = HFLM(LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, eos_token_id=None)).eval())
    plain = generate(model, [1, 2, 3], max_new_tokens=30).ids
    for make in (DRAFTERS["latest"], DRAFTERS["tree"]): assert speculate(model, [1, 2, 3], drafter=make(), max_new_tokens=30).ids == plain


def test_counts_are_those_of_a_dictionary_while_the_table_grows():
    rng = np.random.default_rng(1)
    texts, counts = [rng.integers(0, 20, n).tolist() for n in (0, 1, 2, 700, 900)], defaultdict(Counter)
    for ids in texts:
        for i, t in enumerate(ids):
            for n in range(1, min(3, i) + 1): counts[tuple(ids[i-n:i])][t] += 1
    whole, grown = NGramTable.count(texts, top=20), NGramTable(3, contexts=1)
    for ids in texts:
        for i in range(len(ids)): grown.add(ids[max(0, i-3):i+1], min(3, i))
    assert len(whole) == len(grown) == len(counts)
    for context, c in counts.items():
        assert dict(whole.successors(context)) == dict(grown.successors(context)) == dict(c)
        assert [k for _, k in whole.successors(context)] == sorted(c.values(), reverse=True)
    few = NGramTable.count(texts, top=2, normalise=True)
    for context, c in counts.items():
        np.testing.assert_allclose([p for _, p in few.successors(context)], [k/sum(c.values()) for _, k in c.most_common(2)], rtol=1e-6)


def test_cap_and_amount():
    table = NGramTable(2, 2)
    for _ in range(10): table.add([1, 2, 3], 2, amount=.4, cap=1.5)
    assert table.successors([1, 2]) == [(3, 1.5)] and table.copy().successors([1, 2]) == [(3, 1.5)]


def test_rows_do_not_share_their_text_and_never_write_to_the_corpus():
    corpus = NGramTable.count([[1, 2, 3, 1, 2, 3]])
    before, lm = [a.copy() for a in corpus.slots], small_lm()
    speculate(lm, [[1, 2, 1], [5, 6]], drafter=NGramDrafter(8, 2, corpus=corpus), max_new_tokens=20)
    assert all((a == b).all() for a, b in zip(before, corpus.slots))
    drafter = NGramDrafter(4)
    assert len(drafted(drafter, [7, 8, 9, 7])) and not len(drafted(drafter, [8]))


def test_bad_arguments():
    with pytest.raises(ValueError, match="longest"): PromptLookup(longest=0)
    with pytest.raises(ValueError, match="length"): PromptLookup(-1)
    with pytest.raises(ValueError, match="width"): NGramDrafter(width=0)
    with pytest.raises(ValueError, match="corpus"): NGramDrafter(adapt=False)
    with pytest.raises(ValueError, match="shortest"): NGramTable(1, 2)


def test_stop_tokens_end_a_draft():
    assert until_stop([1, 2, 3, 2], frozenset([2])) == [1, 2] and until_stop([1, 3], frozenset([2])) == [1, 3] and until_stop([], frozenset()) == []


def lab_prompts_100(tok):
    from tokenlab import corpora
    cut = lambda text: tok.encode(text.rstrip("\n"))[-200:]
    prompts = [cut(r["text"]) for name, n in (("humaneval", 60), ("spec-bench", 24)) for r in list(corpora.load(name))[:n]]
    return prompts + [p for ps in lab_tasks(tok, 8).values() for p in ps]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first", "latest", "tree", "recycling", "aded"])
def test_hundred_prompts_with_the_lab_model(name, data_dir):
    from tokenlab.lab import load_lab
    from tokenlab.speculative.aded import ADED, trigram_table
    from tokenlab.speculative.lookup import lab_corpus
    from tokenlab.speculative.token_recycling import TokenRecycling
    lm, tok = load_lab("lab-base")
    prompts = [p for p in lab_prompts_100(tok) if p]
    assert len(prompts) >= 100
    make = {**DRAFTERS, "recycling": TokenRecycling, "aded": lambda: ADED(trigram_table([tok.encode(t) for t in lab_corpus("train")[::32]]))}[name]
    drafter = make()
    for i in range(0, len(prompts), 12):
        plain, quick = generate(lm, prompts[i:i+12], max_new_tokens=48), speculate(lm, prompts[i:i+12], drafter=drafter, max_new_tokens=48)
        assert [q.ids for q in quick] == [p.ids for p in plain]
