"The tour: ugly and small corpora, sections that fail, a page that stands alone."
import re
import pytest
from tokenlab import registry, tour as roof
from tokenlab.registry import section


def folder_of(path, texts):
    for name, text in texts.items(): (path/name).write_text(text, encoding="utf8")
    return path


def test_small_folder_is_cut_so_that_something_is_held_out(tmp_path):
    text = "\n".join(f"line {i}: the quick brown fox & <b>friends</b>" for i in range(900))
    made = roof.start(str(folder_of(tmp_path, {"one.txt": text[:20_000], "two.txt": text[20_000:]})))
    assert made.train and made.valid and not set(made.train) & set(made.valid)


@pytest.mark.parametrize("files, size", [(1, 8_000), (1, 20_000), (3, 5_000), (10, 1_500), (30, 1_000)])
def test_every_small_folder_has_both_sides(files, size):
    for run in range(10):
        texts = [(f"{run}-{files}/{i}.txt", "".join(f"{run} {i} {n} some words\n" for n in range(size//18))) for i in range(files)]
        train, valid = roof.held_out(texts)
        assert train and valid and not set(train) & set(valid)
        assert sum(map(len, train)) > .5*files*size


def test_a_section_that_lacks_an_earlier_one_says_which():
    with pytest.raises(ValueError, match="needs what 'A small language model' makes"): roof.completion_section(roof.Tour("x", ["a"], ["b"]))


def test_out_is_checked_before_any_work(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(ValueError, match="name a folder"): roof.tour(out=tmp_path/"file")


def test_too_little_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="held out|give .* or more|give more documents|falls into"): roof.start(str(folder_of(tmp_path, {"a.txt": "hello"})))


def test_unknown_corpus_names_the_nearest():
    with pytest.raises(ValueError, match="python-code"): roof.start("python-coed")


def test_page_escapes_and_needs_nothing_else(tmp_path):
    made = roof.Tour("<script>alert(1)</script>", ["x"], ["y"], headlines=[("1 < 2", "a & b")])
    page = roof.page(made, [("The text", "<p>fine</p>")], 1.)
    assert "<script>" not in page and "1 &lt; 2" in page and "a &amp; b" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_a_failed_section_stays_on_the_page_and_is_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "LIVE", dict(registry.LIVE))
    @section("Fails", order=98)
    def fails(tour): raise RuntimeError("no <luck>")
    @section("Works", order=99)
    def works(tour): return "<p>still here</p>"
    monkeypatch.setattr(roof, "start", lambda corpus, seed: roof.Tour(corpus, ["a"], ["b"], seed))
    with pytest.raises(ValueError, match="1 of 2 sections failed: Fails"): roof.tour(out=tmp_path/"deep"/"er", only=["Fails", "Works"])
    page = (tmp_path/"deep"/"er"/"report.html").read_text(encoding="utf8")
    assert "RuntimeError: no &lt;luck&gt;" in page and "still here" in page
    assert not list((tmp_path/"deep"/"er").glob("*.tmp"))


def test_sections_come_in_order():
    orders = [e.options["order"] for e in roof.chosen()]
    assert orders == sorted(orders) and len({e.name for e in roof.chosen()}) == len(orders)


@pytest.mark.parametrize("n", [0, 1, 7, 10_000])
def test_some_texts_never_exceed_their_bytes_nor_split_a_character(n):
    texts = ["äöü", "", "漢字", "plain"]
    out = roof.some_texts(texts, n, seed=3)
    assert roof.n_bytes(out) <= n and all(any(t.startswith(o) for t in texts) for o in out)


def test_cut_points_of_text_without_definitions():
    points = roof.cut_points(["word " * 300, "x"], 3)
    assert all(points) and len(points) <= 3


def test_a_text_whose_merges_run_out_still_has_its_tokens_drawn():
    made = roof.Tour("small", ["".join(f"row {i*i}\n" for i in range(700))], ["row 49\nrow 64\n"]*20)
    with pytest.warns(UserWarning, match="merges ran out"): shown = roof.token_section(made)
    assert made.found["tokenizer"].vocab_size <= roof.MODEL_SIZE and shown.count("bytes per token") >= 2
