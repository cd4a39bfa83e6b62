"The comparison of tokenizers: equal vocabulary, honest counts, failures as rows."
import math
import pytest
from pydoc_data.topics import topics
from tokenlab.comparison import load_comparison
from tokenlab.tokenizers.bpe import train_bpe
from tokenlab.tokenizers.comparison import METHODS, Work, comparison, learn, measure, prepare, small_model_bits, take, vocabulary_use
from tokenlab.tokenizers.core import ByteTokenizer

PAGES = [t for _, t in sorted(topics.items())]
WORK = Work(PAGES[1::4], PAGES[::10], vocab_size=600, lm_bytes=0)


def test_found_by_the_command(): assert load_comparison("tokenizers") is comparison and next(iter(comparison.methods)) == "bpe"


@pytest.mark.filterwarnings("ignore")
def test_equal_vocabulary_and_order():
    names = [n for n in comparison.methods if n != "lib"]
    df = comparison.run(WORK, only=names, seeds=[0], progress=False)
    assert df["error"].isna().all(), df["error"].tolist()
    assert set(df["vocabulary"]) == {600}
    by = df.set_index("method")["bytes per token"]
    assert by["superbpe"] > by["bpe"] > by["character"]
    assert by["fewest"] >= by["greedy"] and by["fewest"] >= by["bpe"] and by["stochastok"] == by["bpe"]
    assert df["vocabulary used"].between(.2, 1).all() and (df["MB/s"] > 0).all()


def test_failures_are_rows(monkeypatch):
    def broken(work, *, seed=0): raise RuntimeError("broken")
    monkeypatch.setitem(comparison.methods, "broken", broken)
    df = comparison.run(WORK, only=["broken"], seeds=[0], progress=False)
    assert df.set_index("method")["error"]["broken"] == "RuntimeError: broken"


def test_vocabulary_use_by_hand():
    tok = train_bpe(["abab"], 258, pattern=None)                          # ab, abab
    assert vocabulary_use(tok, ["abab", "c"]) == 2/258
    assert vocabulary_use(ByteTokenizer(["<s>"]), ["ab"]) == 2/256


def test_take():
    assert take(["abc", "defg", "h"], 5) == ["abc", "de"] and take(["abc"], 0) == [] and take(["a"], 9) == ["a"]


def test_small_model_learns():
    "On one sentence, over and over, a few bits per byte less than the uniform log2(V) a token; and the same seed gives the same number."
    text = ["the cat sat on the mat. "*200]*4
    tok = train_bpe(text, 300, special_tokens=["<|endoftext|>"])
    bits = small_model_bits(tok, text, text[:1], context=128)
    assert bits < math.log2(300)/2 and bits == small_model_bits(tok, text, text[:1], context=128)
    bytes_ = small_model_bits(ByteTokenizer(["<|endoftext|>"]), text, text[:1], context=128)
    assert bytes_ < 8


def test_prepare(tmp_path):
    for i in range(60): (tmp_path/f"{i}.txt").write_text(f"document {i}\n"*50)
    work = prepare(str(tmp_path))
    assert work.train and work.valid and not set(work.train) & set(work.valid)


def test_too_little_text(tmp_path):
    (tmp_path/"a.txt").write_text("by the way\n"*50)
    with pytest.raises(ValueError, match="characters to learn from"): prepare(str(tmp_path/"a.txt"))
    (tmp_path/"b.txt").write_text("".join(f"line {i} of the only file\n" for i in range(2000)))
    work = prepare(str(tmp_path/"b.txt"))
    assert not set(work.train) & set(work.valid)


def test_rules_change_reading_only():
    "The model of `greedy` is that of `bpe`; only held-out text is cut otherwise, so bits differ and tokens are those of the rule."
    work = Work(PAGES[1::8], PAGES[::20], vocab_size=400, lm_bytes=30_000)
    plain, rule = measure("bpe", work), measure("greedy", work)
    assert plain["bits per byte"] != rule["bits per byte"] and plain["bytes per token"] != rule["bytes per token"]


@pytest.mark.filterwarnings("ignore")
def test_digits():
    def cuts(name): return [len(t) for t in learn(METHODS[name], ["123456 7890 "*9], 300).tokens if t.strip().isdigit()]
    assert (max(cuts("digits-single")), max(cuts("digits-right"))) == (1, 3) and max(cuts("bpe")) > 4
    tok = learn(METHODS["digits-right"], ["in 1234567 or 1234567 "*9], 300)
    assert tok.pattern.digits == "r2l" and [tok.decode([i]) for i in tok.encode(" 1234567")] == [" ", "1", "234", "567"] # the space stands alone
