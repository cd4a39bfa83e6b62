"Counts and premiums against exact identities, peers, and brute force."
from itertools import product
from pydoc_data.topics import topics
import numpy as np, pandas as pd, pytest
from tokenlab.evaluation import premiums as P
from tokenlab.tokenizers.bpe import train_bpe
from tokenlab.tokenizers.core import ByteTokenizer

PAGES = [text for _, text in sorted(topics.items())]
ENGLISH = P.Texts(PAGES[1::4], PAGES[::12])

@pytest.fixture(scope="module")
def lab(): return P.synthetic(ENGLISH)

def test_bytes_and_characters_are_exact(lab):
    counts = {k: P.ctc(ByteTokenizer(), t.test) for k, t in lab.items()}
    assert counts == {k: sum(len(s.encode()) for s in t.test) for k, t in lab.items()}
    assert P.premiums(counts, "English") == {k: P.byte_premium(t.test, lab["English"].test) for k, t in lab.items()}
    letters = sum(c.isascii() and c.isalpha() for s in ENGLISH.test for c in s)
    assert counts["other script"] - counts["English"] == 2*letters
    assert sum(map(len, lab["other script"].test)) == sum(map(len, ENGLISH.test))

@pytest.mark.parametrize("pattern", ["gpt2", P.SUBWORDS, None], ids=["gpt2", "subwords", "no cuts"])
def test_nested_sizes_are_trained_sizes(pattern):
    sizes = [257, 300, 512, 900]
    many = P.nested(ENGLISH.train, sizes, pattern=pattern)
    for v in sizes:
        alone = train_bpe(ENGLISH.train if pattern else P.lines_of(ENGLISH.train), v, pattern=pattern)
        assert (many[v].tokens, many[v].merges) == (alone.tokens, alone.merges)

def test_counts_fall_along_one_list_of_merges():
    sizes = list(range(256, 1200, 37))
    counts = [P.ctc(t, ENGLISH.test) for t in P.nested(ENGLISH.train, sizes).values()]
    assert all(a > b for a, b in zip(counts, counts[1:]))

@pytest.mark.parametrize("method", list(P.METHODS))
def test_counts_are_those_of_the_tokenizers_library(method):
    text = P.Texts(ENGLISH.train[:20], ENGLISH.test[:6])
    made = P.METHODS[method](text.train, [400])[400]
    assert P.ctc(made, text.test) == P.ctc(made.to_hf(), text.test) == sum(len(made.to_hf().encode(s, add_special_tokens=False).ids) for s in text.test)
    assert P.measure_sizes({"en": text}, [400], method=method).tokens.item() == P.ctc(made, text.test)

def test_any_librarys_tokenizer_is_counted_without_special_tokens():
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257}
    made = tiktoken.Encoding("toy", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<s>": 258})
    assert P.token_ids(made, "the <s>") == [257, 32, 60, 115, 62]

def test_tokens_that_a_library_would_add_are_not_counted():
    from tokenizers.processors import TemplateProcessing
    plain = train_bpe(ENGLISH.train[:20], 400, special_tokens=["<s>"])
    hf = plain.to_hf()
    hf.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", plain.special_tokens["<s>"])])
    assert len(hf.encode("a page of text").ids) == len(plain.encode("a page of text")) + 1
    assert P.token_ids(hf, "a page of text") == plain.encode("a page of text")
    transformers = pytest.importorskip("transformers")
    assert P.token_ids(transformers.PreTrainedTokenizerFast(tokenizer_object=hf, bos_token="<s>"), "a page of text") == plain.encode("a page of text")

@pytest.mark.parametrize("slope, noise", [(.45, .25), (.9, .5)])
def test_paired_variances_agree_with_swapping_pairs(slope, noise):
    "Under the null the two values of a pair may be swapped: all 2^10 ways."
    rng = np.random.default_rng(3)
    a = rng.normal(10, 1, 10); b = 10 + slope*(a - 10) + rng.normal(0, noise, 10)
    a, b = a/a.mean(), b/b.mean()
    ratio = lambda x, y: abs(np.log(y.var(ddof=1)/x.var(ddof=1)))
    all_ways = [ratio(np.where(s, b, a), np.where(s, a, b)) for s in map(np.array, product([False, True], repeat=10))]
    brute = np.mean(np.array(all_ways) >= ratio(a, b) - 1e-12)
    found = P.variance_test(dict(enumerate(a)), dict(enumerate(b)))
    assert abs(found["paired_p"] - brute) < .08 and found["F"] == pytest.approx(b.var(ddof=1)/a.var(ddof=1))
    assert slope < .5 or brute > .1  # both sides of significance are looked at

def test_f_test_is_symmetric_and_exact_for_two_degrees():
    "With df (2, 2) the F distribution is F/(1+F)."
    a, b = {"x": 9., "y": 10., "z": 11.}, {"x": 8., "y": 10., "z": 12.}
    one, two = P.variance_test(a, b), P.variance_test(b, a)
    assert one["p"] == pytest.approx(two["p"]) == pytest.approx(2*(1 - 4/5)) and one["F"] == pytest.approx(4)
    assert P.paired_test(a, {k: v - 1 for k, v in a.items()} | {"x": 7.5})["fewer"] == 3

def test_spread_does_not_change_with_the_unit():
    counts = {str(i): float(v) for i, v in enumerate(np.random.default_rng(0).uniform(50, 90, 40))}
    a, b = P.spread(counts), P.spread({k: 7*v for k, v in counts.items()})
    for name in ("cv", "cv_low", "cv_high", "ratio"): assert a[name] == pytest.approx(b[name])
    assert a["cv_low"] < a["cv"] < a["cv_high"] and b["sd"] == pytest.approx(7*a["sd"])

def test_curve_against_scipy():
    from scipy.optimize import curve_fit
    sizes = np.array([512, 1024, 2048, 4096, 8192]); rng = np.random.default_rng(1)
    counts = (9e5*sizes**-.6 + 3000)*(1 + rng.normal(0, .002, 5))
    ours = P.fit_curve(sizes, counts, floor=True)
    theirs = curve_fit(lambda v, a, b, c: a*v**-b + c, sizes, counts, p0=(9e5, .6, 3000), sigma=counts, maxfev=20_000)[0]
    assert np.allclose([ours(v) for v in sizes], theirs[0]*sizes**-theirs[1] + theirs[2], rtol=.004)
    for v in (700, 3000): assert ours.inverse(ours(v)) == pytest.approx(v)
    assert ours.inverse(ours.c) == np.inf
    pure = P.fit_curve(sizes, 5000*sizes**-.25)
    assert (pure.a, pure.b, pure.c) == (pytest.approx(5000), pytest.approx(.25), 0)

def test_fitted_sizes_level_what_they_promise(lab):
    study = P.premium_study(lab, [400, 600, 900, 1400, 2100], level=900, reference="English", floor=True)
    inside = [k for k, v in study.sizes.items() if 400 < v < 2100]
    assert len(inside) >= 3
    for k in inside: assert abs(study.fitted[k]/study.target - 1) < .05
    assert P.spread(study.fitted)["cv"] < .5*P.spread(P.counts_at(study.counts, 900))["cv"]
    for k, v in study.sizes.items(): assert study.fitted[k] == P.ctc(train_bpe(lab[k].train, v, pattern=P.SUBWORDS), lab[k].test)

def test_left_out_groups_against_scikit_learn():
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    rng = np.random.default_rng(5); n = 60
    table = pd.DataFrame({"x": rng.normal(size=n), "script": rng.choice(["A", "B", "C"], n), "z": rng.normal(size=n)})
    table["tokens"] = 4*table.x + 2*(table.script == "B") + rng.normal(size=n)
    groups = rng.integers(0, 15, n)
    found = P.explain(table, "tokens", ["x", "script", "z"], groups=groups)
    X = np.c_[table.x, table.z, pd.get_dummies(table.script).to_numpy()[:, 1:]]
    guess = cross_val_predict(LinearRegression(), X, table.tokens, cv=LeaveOneGroupOut(), groups=groups)
    mean = np.array([table.tokens[groups != g].mean() for g in groups])
    assert found.r2 == pytest.approx(LinearRegression().fit(X, table.tokens).score(X, table.tokens))
    assert found.r2_out == pytest.approx(1 - ((table.tokens - guess)**2).sum()/((table.tokens - mean)**2).sum())
    assert found.r2_out < found.r2 and found.p < 1e-6 and abs(found.effects["z"]) < abs(found.effects["x"])

def test_rare_scripts_are_one():
    table = pd.DataFrame({"script": ["A"]*8 + ["B"]*6 + ["C", "D", "E"]})
    x, names = P.design(table, ["script"])
    assert len(names) == 2 and x.shape == (17, 2)

def test_features_by_hand():
    f = P.text_features(["да нет"], ["yes no!!"])
    assert (f["script"], f["white space"], f["word length"], f["length ratio"], f["bytes per character"], f["distinct characters"]) == ("CYRILLIC", 1/6, 2.5, 6/8, 11/6, 6)

def test_budgets():
    texts = {"en": P.Texts(["abcd"]*100, ["day"]), "uk": P.Texts(["абвг"]*100, ["день"])}
    size = lambda t: len("".join(t.train).encode())
    assert [size(t) for t in P.budget(texts, 60, reference="en").values()] == [60, 60]
    assert [size(t) for t in P.budget(texts, 60, reference="en", scaled=True).values()] == [60, 160]
    assert P.budget(texts, 61, reference="en")["uk"].train[-1] == "абв"[:3] or size(P.budget(texts, 61, reference="en")["uk"]) == 60

def test_ugly_input():
    texts = {"a": P.Texts(["x y z"]*9, ["x"]), "b": P.Texts([], ["y"])}
    with pytest.raises(ValueError, match="no text to learn from or to test on for b"): P.measure_sizes(texts, [300])
    with pytest.raises(ValueError, match="no method 'bpe'"): P.measure_sizes(texts, [300], method="bpe")
    with pytest.raises(ValueError, match="stand on one side only"): P.paired_test({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "d": 3})
    with pytest.raises(ValueError, match="needs three"): P.variance_test({"a": 1, "b": 2}, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="level 5"): P.premium_study(texts, [300, 400], level=5, reference="a")
    with pytest.raises(ValueError, match="a, b: the text gives no vocabularies"): P.premium_study({k: P.Texts(["x y"], ["x"]) for k in "ab"}, [300, 400], level=300, reference="a")
    one = P.measure_sizes({"a": P.Texts(["x"], ["x"])}, [300])
    assert one["size"].item() == 256 and one.tokens.item() == 1  # the text ran out: the real size is recorded

def test_parallel_text_needs_both_sides(tmp_path):
    with pytest.raises(ValueError, match="unknown parallel text"): P.halved(tmp_path/"none")
    (tmp_path/"en.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="needs two at least"): P.halved(tmp_path)
    (tmp_path/"de.txt").write_text("c\n")
    with pytest.raises(ValueError, match="text i must say the same in every language"): P.halved(tmp_path)
    (tmp_path/"de.txt").write_text("c\n\n")
    with pytest.raises(ValueError, match="1 lines have a text in every language"): P.halved(tmp_path)

def test_a_table_is_halved_like_a_folder(tmp_path):
    (tmp_path/"t.tsv").write_text("en\tde\none\teins\ntwo\t\nthree\tdrei\nfour\tvier\n")
    (tmp_path/"both").mkdir()
    for k, lines in {"en": "one two three four", "de": "eins  drei vier"}.items(): (tmp_path/"both"/f"{k}.dev").write_text(lines.replace(" ", "\n") + "\n")
    table, folder = P.halved(tmp_path/"t.tsv", 3), P.halved(tmp_path/"both", 3)
    assert table == folder and sorted(table["en"].train + table["en"].test) == ["four", "one", "three"] and len(table["de"].train) == 1

def test_command_on_a_folder(tmp_path):
    for k, t in P.synthetic(P.Texts([], PAGES[:40])).items(): (tmp_path/f"{k.replace(' ', '_')}.txt").write_text("\n".join(s[:400].replace("\n", " ") for s in t.test))
    out = tmp_path.parent/"p.html"
    table = P.tokenizer_premiums(str(tmp_path), sizes=[300, 400, 500], reference="English", methods=["Unigram"], out=out)
    assert list(table.tokenizers) == ["BPE", "Unigram", "BPE, fitted sizes"] and table.cv.notna().all()
    assert out.read_text().count("<img") == 2
    shared = P.tokenizer_premiums(str(tmp_path), tokenizers=["lab-base"], reference="English")
    assert set(shared.language) == {p.stem for p in tmp_path.glob("*.txt")} and shared.loc[shared.language == "English", "lab-base"].item() == 1
    with pytest.raises(ValueError, match="no language Dutch"): P.tokenizer_premiums(str(tmp_path), reference="Dutch")

def test_manuals_are_parallel_and_held_out(data_dir):
    texts = P.manuals()
    held = set(texts["en"].test)
    assert list(texts) == list(P.MANUALS) and len({len(t.test) for t in texts.values()}) == 1 and not held & set(texts["en"].train)
    pages = P.manual_pages()
    assert not any(set(t.test) & set(t.train) for t in texts.values())
    english = {}
    for (_, en), text in pages["fr"].items(): english.setdefault(text, set()).add(en)
    assert all(e in english[s] for s, e in zip(texts["fr"].test, texts["en"].test))

def test_declaration_halves_are_the_same_articles(data_dir):
    from tokenlab.corpora import parallel
    texts = P.declarations(3, languages=["eng", "fra"])
    articles = {c: [t for k, t in zip(*(parallel("udhr", languages=["eng", "fra"])[n] for n in ("code", "text"))) if k == c] for c in ("eng", "fra")}
    where = {c: [articles[c].index(s) for s in texts[c].test] for c in texts}
    assert where["eng"] == where["fra"] and len(where["eng"]) == 15
    assert P.declarations(3, languages=["fra"])["fra"] == texts["fra"] and "bin" not in P.declarations(languages=["bin", "eng"])

def test_byte_premiums_are_the_published_ones(data_dir):
    "byte_coef_udhr of catherinearnett/byte-premium-tool, which counted another copy of the declaration."
    theirs = {"jpn": 1.160, "rus": 2.034, "afr": .977, "acu": 1.355, "ada": 1.150}
    texts = P.declarations(languages=[*theirs, "eng"])
    for code, value in theirs.items():
        if code in texts: assert P.byte_premium([*texts[code].train, *texts[code].test], [*texts["eng"].train, *texts["eng"].test]) == pytest.approx(value, rel=.06)
