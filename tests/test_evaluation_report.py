"The report against outside counts, brute force, and identities of byte tokenizers."
import json, math
import numpy as np
import pytest
from tokenlab.evaluation.metrics import WORD, cut_texts, fertility, gold_morphemes, join_cuts, measure, morpheme_agreement, numbers_cut, renyi_efficiency
from tokenlab.evaluation.report import parallel_texts, report, report_html, tidy
from tokenlab.tokenizers.bpe import train_bpe
from tokenlab.tokenizers.core import ByteTokenizer, Tokenizer

TEXTS = ["The newest of 2024 words, don't cut 12345!\n    x = 7\n", "", "naïve Übergröße 漢字 \U0001F600"]
PAIRS = {"en": ["one two", "three"], "ru": ["один два", "три"]}


@pytest.fixture(scope="module")
def learnt(): return train_bpe([TEXTS[0]*5, "words of the newest words "*20], 330)


def test_a_byte_tokenizer_counts_bytes():
    found = report({"bytes": ByteTokenizer()}, TEXTS, parallel=PAIRS, progress=False)
    assert found.table.loc["bytes", "bytes per token"] == 1
    assert (found.languages["premium"] == found.languages["byte premium"]).all()
    assert found.table.loc["bytes", "characters per token"] == sum(map(len, TEXTS))/sum(len(t.encode()) for t in TEXTS)


@pytest.mark.parametrize("name", ["gpt-2", "gpt-neox", "llama", "mistral", "claude"])
def test_counts_are_those_of_the_tokenizers_library(data_dir, name):
    import tokenizers
    path = data_dir/"tokenizers"/f"{name}.json"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    cuts = cut_texts(Tokenizer.load(path), TEXTS)
    assert np.diff(cuts.docs).tolist() == [len(theirs.encode(t, add_special_tokens=False).ids) for t in TEXTS]
    assert cuts.source.size == cuts.ends[-1]


def test_counts_are_those_of_tiktoken(learnt):
    tiktoken = pytest.importorskip("tiktoken")
    theirs = tiktoken.Encoding("mine", pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""", special_tokens={}, mergeable_ranks={t: i for i, t in enumerate(learnt.tokens)})
    assert cut_texts(learnt, TEXTS).ids.tolist() == [i for t in TEXTS for i in theirs.encode_ordinary(t)]


def test_fertility_by_brute_force(learnt):
    cuts, at, touched = cut_texts(learnt, TEXTS), 0, []
    for text in TEXTS:
        for m in WORD.finditer(text):
            a, b = at + len(text[:m.start()].encode()), at + len(text[:m.end()].encode())
            touched.append(sum(x < b and y > a for x, y in zip(cuts.begins.tolist(), cuts.ends.tolist())))
        at += len(text.encode())
    assert len(touched) > 8 and fertility(cuts) == pytest.approx(sum(touched)/len(touched))


def test_renyi_by_hand():
    assert renyi_efficiency([2, 1, 1], alpha=2) == pytest.approx(-math.log(.375)/math.log(3))
    assert renyi_efficiency([2, 1, 1], alpha=1) == pytest.approx(1.5*math.log(2)/math.log(3))
    assert renyi_efficiency([2, 1, 1, 0], alpha=2, vocab_size=4) == pytest.approx(-math.log(.375)/math.log(4))
    assert math.isnan(renyi_efficiency([])) and math.isnan(renyi_efficiency([5]))
    with pytest.raises(ValueError, match="vocab_size=2"): renyi_efficiency([1, 1, 1], vocab_size=2)


def test_morphemes_by_brute_force(learnt):
    gold = [("newest", ["new", "est"]), ("undoing", ["un", "do", "ing"]), ("naïveté", ["naïve", "té"])]
    hit = cut = want = 0
    for word, parts in gold:
        ends = np.cumsum([len(learnt.token_bytes(i)) for i in learnt.encode(", " + word)]) - 2
        mine, true = {e for e in ends if 0 < e < len(word.encode())}, set(np.cumsum([len(p.encode()) for p in parts])[:-1])
        hit, cut, want = hit + len(mine & true), cut + len(mine), want + len(true)
    found = morpheme_agreement(learnt, gold)
    assert (found["precision"], found["recall"], found["f1"], found["words"]) == pytest.approx((hit/cut, hit/want, 2*hit/(cut + want), 3))


def test_joined_cuts_measure_as_one_encoding(learnt):
    joined, whole = measure(join_cuts([cut_texts(learnt, [t]) for t in TEXTS])), measure(cut_texts(learnt, TEXTS))
    for name in whole.keys() - {"MB/s"}: assert joined[name] == pytest.approx(whole[name], nan_ok=True), name


def test_numbers_by_length():
    found = numbers_cut(cut_texts(ByteTokenizer(), ["7 42 1234567"]))
    assert found["2 digits"] == found["6+ digits"] == found[""] == 1 and math.isnan(found["3 digits"])


def test_gold_lists_keep_words_that_are_spelt(data_dir, tmp_path):
    gold = gold_morphemes("eng", limit=50)
    assert len(gold) == 50 and all("".join(parts) == word for word, parts in gold)
    (tmp_path/"own.tsv").write_text("undo\tun do\nsubsidy\tsub\n")
    assert gold_morphemes(tmp_path/"own.tsv") == [("undo", ["un", "do"])]
    with pytest.raises(FileNotFoundError): gold_morphemes(tmp_path/"none.tsv")
    with pytest.raises(ValueError, match="klingon"): gold_morphemes("klingon")


@pytest.mark.parametrize("content, message", [("{", "not JSON"), ("[]", "no tokenizer.json"), ('{"model": {}}', "no model"), ('{"model": {"type": "Magic", "vocab": {}}}', "Magic")])
def test_malformed_tokenizers_are_named(tmp_path, content, message):
    (tmp_path/"bad.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error: report([str(tmp_path/"bad.json")], ["text"], progress=False)
    assert "bad.json" in str(error.value)


def test_parallel_tables(tmp_path):
    (tmp_path/"t.tsv").write_text("en\tde\none\teins\ntwo\t\n")
    assert parallel_texts(tmp_path/"t.tsv") == {"en": ["one", "two"], "de": ["eins", ""]}
    (tmp_path/"t.jsonl").write_text(json.dumps({"en": "one", "de": "eins"}) + "\n")
    assert parallel_texts(tmp_path/"t.jsonl") == {"en": ["one"], "de": ["eins"]}
    (tmp_path/"folder").mkdir()
    for name in ("en.txt", "de.txt"): (tmp_path/"folder"/name).write_text("a\nb\n")
    assert parallel_texts(tmp_path/"folder") == {"de": ["a", "b"], "en": ["a", "b"]}


@pytest.mark.parametrize("name, content, message", [("one.tsv", "en\none\n", "two at least"), ("side.tsv", "en\tde\none\t\n", "no text in de"), ("empty.jsonl", "", "no rows"), ("bad.jsonl", "{", "no table")])
def test_one_sided_parallel_files(tmp_path, name, content, message):
    (tmp_path/name).write_text(content)
    with pytest.raises(ValueError, match=message): parallel_texts(tmp_path/name)


def test_languages_without_a_common_text():
    with pytest.raises(ValueError, match="share no text"): report({"b": ByteTokenizer()}, ["x"], parallel={"en": ["a", ""], "de": ["", "b"]}, progress=False)
    with pytest.raises(ValueError, match="reference"): report({"b": ByteTokenizer()}, ["x"], parallel=PAIRS, reference="fr", progress=False)


def test_the_page_and_the_rows(learnt):
    found = report({"<b>": learnt, "bytes": ByteTokenizer()}, {"a": TEXTS, "b": ["more"]}, parallel=PAIRS, progress=False)
    page = report_html(found)
    assert "&lt;b&gt;" in page and "<b></td>" not in page and "<script" not in page
    rows = tidy(found)
    assert set(rows.columns) == {"tokenizer", "text", "measure", "value"} and {"all", "a", "b", "ru"} <= set(rows["text"])
