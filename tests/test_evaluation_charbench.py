"CharBench: the generator against the released one, features against the tokenizers library, correlations against closed forms, scoring of ragged batches."
import hashlib, json, random
import numpy as np, pytest, torch
from tokenlab.corpora import data_file
from tokenlab.evaluation.charbench import (LENGTHS, TASKS, Item, answer_probe, build_charbench, correlate, draw_items, error_overlap, feature_table, pearson, rank_answers,
                                           scored, summarise, target_token, token_lengths, train_probe, words_of)
from tokenlab.lm import LM, LMConfig
from tokenlab.tokenizers.bpe import train_bpe
from tokenlab.tokenizers.core import ByteTokenizer, Tokenizer


@pytest.fixture(scope="module")
def words():
    rng = random.Random(7)
    return sorted({"".join(rng.choice("abcdefgHIJKlmno") for _ in range(n)) for n in LENGTHS for _ in range(500)})


@pytest.fixture(scope="module")
def bpe(words): return train_bpe(words, 400)


def test_rows_of_the_released_generator(words):
    "benchmark.py of github.com/omriuz/CharBench, run on these words with seed 42 and 400 words a bucket, gave rows of this digest."
    rows = [(it.task, it.word, it.char or "", str(it.answer), it.question) for it in build_charbench(words, per_bucket=400)]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == "522acbd9e5fc42e4f08fa284c0a52d48bbbebe30f545f11de440597312b403a2"


def test_buckets_are_equal_and_words_are_used_once(words):
    items = build_charbench(words, per_bucket=40, seed=1)
    assert len({it.word for it in items}) == len(items) == 7*40
    for task in TASKS: assert [sum(it.task == task and len(it.word) == n for it in items) for n in LENGTHS] == [10]*7


def test_letters_are_drawn_by_position():
    "A letter that stands in a word three times out of four is asked for three times out of four."
    items = draw_items([["aaab"]], 4000, np.random.default_rng(0))
    asked = [it.char for it in items if it.char]
    assert abs(asked.count("a")/len(asked) - .75) < .03


def test_what_is_wrong_is_said(words):
    with pytest.raises(ValueError, match="per_bucket="): build_charbench(words, per_bucket=10_000)
    with pytest.raises(ValueError, match="one word for each task"): build_charbench(words, per_bucket=3)
    with pytest.raises(ValueError, match="comes twice"): build_charbench(["four"]*4, per_bucket=4, lengths=[4])
    with pytest.raises(ValueError, match="0 words of 5"): build_charbench([], per_bucket=4, lengths=[5])
    with pytest.raises(ValueError, match="no words"): train_probe(ByteTokenizer(), ["a"], steps=1)
    assert words_of([]) == [] and words_of(["naïve x1 ab"]) == []


@pytest.mark.parametrize("name", ["gpt-2", "gpt-neox", "claude", "llama", "mistral"])
def test_features_of_published_tokenizers(name, data_dir, words):
    "Token lengths are those of the tokenizers library's tokens, marks removed; they sum to the word; the target token covers the answer."
    from tokenizers import Tokenizer as HF
    path = data_file(f"tokenizers/{name}.json")
    ours, theirs = Tokenizer.load(path), HF.from_file(str(path))
    for word in ["Strawberry", "internationally", "aaaa", "Xq", *words[::200]]:
        lengths = token_lengths(ours, word)
        pieces = theirs.encode(word, add_special_tokens=False).tokens
        assert lengths == [n for p in pieces if (n := len(p.replace("▁", ""))) or p != "▁"] and sum(lengths) == len(word)
        covered = [n for n in lengths for _ in range(n)]
        assert [target_token(lengths, i) for i in range(len(word))] == covered


def test_a_tokenizer_of_characters_has_targets_of_one(words):
    found = feature_table(ByteTokenizer(), build_charbench(words, per_bucket=40))
    assert set(found.target_token_length.dropna()) == {1.} and (found.number_of_tokens == found.word_length).all()
    rows = scored(found, [a if i % 2 else None for i, a in enumerate(found.answer)])
    table = correlate(rows)
    assert table[table.feature == "target_token_length"].r.isna().all() and not table[table.feature == "gold_truth"].r.isna().any()


def test_correlation_and_partial_correlation(words, bpe):
    from scipy.stats import pearsonr
    table = feature_table(bpe, build_charbench(words, per_bucket=200))
    rng = np.random.default_rng(0)
    rows = scored(table, [a if rng.random() > .1*n else None for a, n in zip(table.answer, table.word_length)])
    found = correlate(rows).set_index(["task", "feature"])
    for (task, feature), line in found.iterrows():
        some = rows[(rows.task == task) & rows[feature].notna()]
        if len(some): assert line.r == pytest.approx(pearsonr(some[feature], some.correct)[0])
    for task in TASKS:                                      # errors go by word length alone, so nothing is left once it is held fixed
        assert found.r[task, "word_length"] < -.15 and abs(found.partial[task, "gold_truth"]) < .15
    assert np.isnan(pearson([1, 1, 1], [0, 1, 0])[0]) and np.isnan(pearson([], [])[0])


def test_unreadable_answers_are_wrong(words, bpe):
    table = feature_table(bpe, build_charbench(words, per_bucket=4))
    rows = scored(table, [None]*len(table))
    assert not rows.correct.any() and (summarise(rows)["no number"] == 1).all()
    with pytest.raises(ValueError, match="predictions"): scored(table, [1])
    assert error_overlap(rows, scored(table, table.answer.tolist())) == 0


def test_ranking_is_the_best_of_separate_scores(bpe, words):
    "One candidate at a time, by the model's own law, gives the answers of the batch."
    torch.manual_seed(0)
    lm, items = LM(LMConfig(bpe.vocab_size, 32, 2, 2), seed=0).eval(), build_charbench(words, per_bucket=4)[::5]
    rows = rank_answers(lm, bpe, items, candidates=(1, 10, 5), batch_size=4)
    for it, best in zip(items, rows.prediction):
        prompt, scores = bpe.encode(f"Question: {it.question}\nAnswer:"), []
        for c in (1, 10, 5):
            tail = bpe.encode(f" {c}")
            with torch.no_grad(): logp = lm(torch.tensor([prompt + tail])).logits[0].log_softmax(-1)
            scores.append(sum(logp[len(prompt) - 1 + i, t].item() for i, t in enumerate(tail)))
        assert best == (1, 10, 5)[int(np.argmax(scores))]


def test_a_probe_learns_to_count_characters(words):
    "One task that a tiny model over characters learns at once: the answer is asked for behind the end mark and read from there."
    lm, probe = train_probe(ByteTokenizer(), [w for w in words if len(w) == 4], steps=150, rows=64, dim=32, layers=1, heads=2)
    items = [Item("count_unique_chars", w, None, len(set(w))) for w in ("abcd", "efga", "HIJK", "lmno")]
    rows = answer_probe(lm, probe, items)
    assert rows.correct.mean() >= .75 and probe.batch(items)["targets"].max().item() == probe.base + 5 + 4
