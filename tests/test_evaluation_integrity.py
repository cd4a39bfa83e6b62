"Shares of valid and pure tokens against the authors' steps written out, brute force, peers and the published table."
import itertools, random
import numpy as np, pandas as pd, pytest
from tokenlab.evaluation import integrity as I
from tokenlab.tokenizers.bpe import train_bpe
from tokenlab.tokenizers.core import ByteTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:the merges ran out")
WORDS = {"ev": ["ev"], "evler": ["ev"], "göz": ["göz"], "gözlük": ["göz"], "ve": ["ve"], "kalem": ["kalem"], "kalemler": ["kalem"]}
AFFIXES = ["ler", "lük", "le"]
TEXT = ["evler ve gözlük", "kalemler evler göz", "ev Ev kalem, ve gözlükler"]*5

def as_published(tokenizer, text, oracle):
    "The steps of the authors' notebook: a set of decoded ids, joined and split again, asked one by one."
    tokens = {tokenizer.decode([i]) for i in tokenizer.encode(text)}
    strings = set(" ".join(tokens).split())
    valid = {s: s in oracle.affixes or oracle.is_valid(s) for s in strings}
    left = [s for s in strings if s not in oracle.affixes]
    roots = set(itertools.chain.from_iterable(oracle.roots(s) for s in left))
    pure = {s: s in oracle.affixes or s in roots for s in strings}
    return len(strings), sum(valid.values()), sum(pure.values())

@pytest.mark.parametrize("size", [256, 260, 275, 290])
def test_the_authors_steps(size):
    oracle, made = I.WordOracle(WORDS, AFFIXES), train_bpe(TEXT, size)
    found = I.integrity(made, " ".join(TEXT), oracle)
    assert (found["unique"], found["n_valid"], found["n_pure"]) == as_published(made, " ".join(TEXT), oracle)
    assert found["tr"] == pytest.approx(100*found["n_valid"]/found["unique"]) and found["vocab"] == made.vocab_size

def test_a_root_of_another_token_is_pure():
    "`ev` has no analysis of its own here; it is the root of `evler`, which stands in the text as well."
    oracle = I.WordOracle({"evler": ["ev"], "göz": []})
    made = train_bpe(["evler göz"]*9, 270, pattern=r"\S+|\s+")
    assert I.integrity(made, ["evler"], oracle)["n_pure"] == 0
    both = train_bpe(["evler ev ev"]*9, 262, pattern=r"\S+|\s+")
    assert set(map(both.decode, ([i] for i in both.encode("evler ev")))) == {"evler", " ", "ev"}
    assert I.integrity(both, ["evler ev"], oracle)["n_pure"] == 1

def test_running_tokens_are_counted_one_by_one():
    oracle, made = I.WordOracle(WORDS, AFFIXES), train_bpe(TEXT, 280)
    strings = [part for t in TEXT for i in made.encode(t) for part in made.decode([i]).split()]
    found = I.integrity(made, TEXT, oracle, unit="token")
    assert found["tr"] == pytest.approx(100*np.mean([oracle.is_valid(s) for s in strings]))

def test_pure_is_never_more_than_valid():
    rng = random.Random(0)
    for _ in range(30):
        letters = ["".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(40)]
        oracle = I.WordOracle({w: [rng.choice(letters[:10])] for w in letters[:20]} | {w: [w] for w in letters[:10]}, letters[20:25])
        made = train_bpe([" ".join(rng.choices(letters, k=60)) for _ in range(5)], 300)
        found = I.integrity(made, " ".join(letters*3), oracle)
        assert 0 <= found["pure"] <= found["tr"] <= 100

def test_whole_words_and_single_letters():
    oracle = I.WordOracle(WORDS, [])
    made = train_bpe(list(WORDS)*3, 256 + sum(len(w.encode()) for w in WORDS), pattern=r"\S+")
    found = I.integrity(made, list(WORDS), oracle)
    assert found["tr"] == 100 and found["pure"] == pytest.approx(100*4/7)
    letters = I.integrity(ByteTokenizer(), "o ev", I.WordOracle({"o": ["o"]}))
    assert letters["tr"] == pytest.approx(100/3)

def test_other_libraries_count_the_same():
    oracle, made = I.WordOracle(WORDS, AFFIXES), train_bpe(TEXT, 280)
    drop = lambda r: {k: v for k, v in r.items() if k != "seconds"}
    assert drop(I.integrity(made, TEXT, oracle)) == drop(I.integrity(made.to_hf(), TEXT, oracle))
    transformers = pytest.importorskip("transformers")
    assert drop(I.integrity(made, TEXT, oracle)) == drop(I.integrity(transformers.PreTrainedTokenizerFast(tokenizer_object=made.to_hf()), TEXT, oracle))

def test_tiktoken():
    tiktoken = pytest.importorskip("tiktoken")
    made = tiktoken.Encoding("toy", pat_str=r"\S+|\s+", mergeable_ranks={bytes([b]): b for b in range(256)} | {b"ev": 256}, special_tokens={})
    found = I.integrity(made, "ev ler", I.WordOracle(WORDS, AFFIXES))
    assert (found["vocab"], found["unique"], found["n_valid"]) == (257, 4, 1)

def test_suffixes_by_enumeration():
    suffixes, known = frozenset(["a", "ba", "c"]), {"x", "xy", "xa"}
    for tail in itertools.chain.from_iterable(itertools.product(sorted(suffixes), repeat=n) for n in range(4)):
        word = "xy" + "".join(tail)
        brute = {w for w in known if w != word and any(w + "".join(t) == word for n in range(1, 5) for t in itertools.product(sorted(suffixes), repeat=n))}
        found = I.without_suffixes(word, known, suffixes)
        assert found - {"x"} == brute - {"x"}  # a single letter is never what is left

def test_suffix_oracle_closed_under_its_roots():
    oracle = I.SuffixOracle(["ev", "evler", "kitap", "göz"], ["ler", "lar", "da"], stems=["oku"])
    assert oracle.known == {"ev", "kitap", "göz", "oku"} and oracle.roots("evlerda") == {"ev"} and not oracle.is_valid("lerev")
    assert all(oracle.is_valid(r) for r in oracle.known | oracle.affixes)

def test_letters_of_turkish():
    assert I.lower_turkish("IŞIK İyi") == "ışık iyi" and I.letters_of("a1b_c ğ'ü") == ["a", "b", "c", "ğ", "ü"]
    assert I.prose("x :func:`open` ``y`` `z`_ son").split() == ["x", "son"]

def test_published_correlations():
    table = I.published()
    r = lambda rows, a: np.corrcoef(rows[a], rows.score)[0, 1]
    four = table.loc[[*I.FOUR]]
    for rows, key, value in ((four, "tr", .900), (four, "pure", .684), (table, "tr", .101), (table, "pure", -.510), (table, "vocab", .80)):
        found = I.correlate(rows, "score").set_index("metric").r[key]
        assert found == pytest.approx(r(rows, key)) and found == pytest.approx(value, abs=.01)

def test_interval_is_scipys():
    from scipy.stats import pearsonr
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=9)}).assign(y=lambda t: t.x + rng.normal(size=9), flat=1., name="a")
    found = I.correlate(table, "y")
    ci = pearsonr(table.x, table.y).confidence_interval()
    assert list(found.metric) == ["x"] and (found.fisher_low[0], found.fisher_high[0]) == pytest.approx((ci.low, ci.high), abs=1e-3)
    assert found.boot_low[0] <= found.r[0] <= found.boot_high[0] and found.least[0] <= found.r[0] <= found.most[0]

def test_ugly_input(tmp_path):
    oracle = I.WordOracle(WORDS)
    for text in ("", [], "  \n"):
        with pytest.raises(ValueError, match="no tokens but spaces"): I.integrity(ByteTokenizer(), text, oracle)
    with pytest.raises(ValueError, match="unit='types'"): I.integrity(ByteTokenizer(), "a", oracle, unit="types")
    with pytest.raises(ValueError, match="without words"): I.WordOracle({})
    with pytest.raises(ValueError, match="3 rows"): I.correlate(I.published()[:3], "score")
    with pytest.raises(ValueError, match="no gold segmentations"): I.gold_words("xyz")
    with pytest.raises(ValueError, match="no words"): I.gold_oracle([])
    assert I.integrity(ByteTokenizer(), "a", oracle)["unique"] == 1

@pytest.mark.parametrize("language, words", [("ces", 4000), ("mon", 1900)])
def test_gold(data_dir, language, words):
    gold = I.gold_words(language)
    oracle = I.gold_oracle(gold)
    assert len(gold) == words and all(oracle.is_valid(g.word) and all(oracle.is_valid(m) for m in g.morphs) for g in gold)
    assert I.gold_words("ces")[1] == I.Gold("absolutno", ("absolut", "n", "o"))

def test_turkish(data_dir):
    train, test, oracle = I.turkish()
    assert not set(test) & set(train) and oracle.is_valid("ve") and oracle.is_valid("fonksiyonların")
    assert "gözlük" in oracle.words and "göz" in oracle.roots("gözlük") and not oracle.is_valid("function")
    small, large = (I.integrity(train_bpe(train, v), test, oracle) for v in (500, 4000))
    assert small["tr"] < large["tr"] and small["pure"] > large["pure"]
