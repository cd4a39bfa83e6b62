"The catalogue: the data of all 184 papers, statuses from code and results alone, and errors that name the nearest thing."
import json
import re
import subprocess
import sys
import pytest
from tokenlab import catalogue, registry
from tokenlab.catalogue import STAGES, implementations, nearest, paper, papers, papers_markdown, results_dir, stored, url


@pytest.fixture
def results(tmp_path, monkeypatch):
    "An empty folder of results, and none in the package."
    monkeypatch.setenv("TOKENLAB_RESULTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def built(monkeypatch):
    "Kangaroo is implemented by an object of this module; SpecTr by two."
    monkeypatch.setattr(registry, "LIVE", dict(registry.LIVE))
    for slug, name in (("kangaroo", "Exit"), ("spectr", "KSeq"), ("spectr", "Otm")):
        registry.implements(slug)(type(name, (), {"__module__": __name__}))


def write(folder, slug, verdict):
    folder.mkdir(parents=True, exist_ok=True)
    (folder/f"{slug}.json").write_text(json.dumps({"kind": "claim", "slug": slug, "verdict": verdict}))


# The data

def test_184_papers_each_with_a_slug_a_title_and_an_id():
    table = papers()
    assert len(table) == 184 and table.slug.is_unique and table.id.is_unique and table.title.is_unique
    assert table.slug.str.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*").all()
    assert (table.title.str.strip() == table.title).all() and (table.title.str.len() > 8).all()
    assert not table.title.str.contains(r"\n|  | :", regex=True).any()


def test_ids_are_arxiv_numbers_of_a_real_month_and_agree_with_the_year():
    for row in papers().itertuples():
        match = re.fullmatch(r"arXiv:(\d\d)(\d\d)\.(\d{4,5})", row.id)
        assert match, row.slug
        year, month = 2000 + int(match[1]), int(match[2])
        assert row.year == year and 2007 <= year <= 2026 and 1 <= month <= 12, row.slug
        assert len(match[3]) == (5 if year >= 2015 else 4), row.slug


def test_spot_checks_against_the_published_numbers():
    known = {"awq": "2306.00978", "electra": "2003.10555", "few-shot-learners": "2005.14165", "token-recycling": "2408.08696",
             "landmark-attention": "2305.16300", "superbpe": "2503.13423", "h-net": "2507.07955", "uniter": "1909.11740",
             "falcon": "2412.12639", "tokens-with-meaning": "2508.14292"}
    assert {slug: paper(slug)["id"].removeprefix("arXiv:") for slug in known} == known


def test_every_stage_has_papers_and_no_paper_has_another_stage():
    assert set(papers().stage) == set(STAGES)
    assert list(STAGES.values()) == list(range(1, 21))
    assert sum(len(papers(stage)) for stage in STAGES) == 184


def test_the_data_holds_no_abstracts():
    assert {key for row in json.loads((registry.PACKAGE/"data"/"papers.json").read_text(encoding="utf8")) for key in row} == {
        "slug", "title", "id", "year", "stage"}


def test_whatever_the_package_implements_or_claims_is_a_paper_of_the_catalogue():
    for kind in ("implements", "claim"):
        for entry in registry.registered(kind):
            if entry.module.startswith("tokenlab."): assert paper(entry.name), entry


# Status

def test_status_follows_code_and_results(results, built):
    write(results, "kangaroo", "partly")
    write(results, "falcon", "reproduced")   # no code stands behind it
    table = papers().set_index("slug")
    assert tuple(table.loc["kangaroo", ["status", "verdict"]]) == ("claimed", "partly")
    assert tuple(table.loc["spectr", ["status", "verdict"]]) == ("built", "")
    if "falcon" not in implementations(): assert tuple(table.loc["falcon", ["status", "verdict"]]) == ("planned", "")


def test_filters_by_stage_status_and_verdict(results, built):
    write(results, "kangaroo", "not reproduced")
    assert list(papers(status="not reproduced").slug) == ["kangaroo"]
    assert "kangaroo" in set(papers("speculative", status="claimed").slug)
    assert "kangaroo" not in set(papers(status="built").slug) and "spectr" in set(papers(status="built").slug)
    assert list(papers("tokenizers", status="partly").columns) == ["slug", "title", "id", "year", "stage", "status", "verdict"]


def test_implementations_list_every_object(built):
    assert {f"{__name__}:KSeq", f"{__name__}:Otm"} <= set(implementations()["spectr"])
    assert all(re.fullmatch(r"[\w.]+:\w+", where) for found in implementations().values() for where in found)


# Results

def test_benchmarks_and_strangers_are_not_claims(results):
    write(results/"benchmarks", "generate", "reproduced")
    write(results, "spectr", "partly")
    (results/"spectr.json").rename(results/"kangaroo.json")    # the name of the file is not its slug
    (results/"speed.json").write_text('{"tokens/s": 900}')
    (results/"flops.json").write_text('{"kind": "benchmark", "slug": "flops", "verdict": "reproduced"}')
    (results/"list.json").write_text("[1, 2]")
    (results/"spectr.json.tmp").write_text("{")
    assert not {"generate", "kangaroo", "speed", "flops", "list"} & stored([results]).keys()


def test_a_broken_file_does_not_take_the_table_down(results, built):
    (results/"kangaroo.json").write_text('{"kind": "cl')
    assert papers().set_index("slug").verdict["kangaroo"] == "unreadable"


def test_a_verdict_that_is_none_of_the_three_is_unreadable(results, built):
    write(results, "kangaroo", "great")
    (results/"spectr.json").write_text('{"kind": "claim", "slug": "spectr"}')
    assert set(papers().set_index("slug").verdict[["kangaroo", "spectr"]]) == {"unreadable"}


def test_own_results_come_before_the_packaged_ones(tmp_path):
    write(tmp_path/"mine", "spectr", "partly")
    write(tmp_path/"theirs", "spectr", "reproduced")
    write(tmp_path/"theirs", "falcon", "reproduced")
    found = stored([tmp_path/"mine", tmp_path/"theirs", tmp_path/"absent"])
    assert {slug: r["verdict"] for slug, r in found.items()} == {"spectr": "partly", "falcon": "reproduced"}


def test_results_dir_is_the_variable_then_the_checkout_then_here(tmp_path, monkeypatch):
    monkeypatch.delenv("TOKENLAB_RESULTS", raising=False)
    deep = tmp_path/"repo"/"nbs"/"00"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert results_dir() == deep/"results"
    (tmp_path/"repo"/"settings.ini").write_text("[DEFAULT]")
    assert results_dir() == deep/"results"                     # the settings of another project
    (tmp_path/"repo"/"tokenlab").mkdir()
    assert results_dir() == tmp_path/"repo"/"results"
    monkeypatch.setenv("TOKENLAB_RESULTS", str(tmp_path/"else"))
    assert results_dir() == tmp_path/"else"


# Errors and links

def test_unknown_names_list_the_nearest():
    with pytest.raises(ValueError, match="nearest: token-recycling"): paper("token-recyling")
    with pytest.raises(ValueError, match="nearest: speculative"): papers("speculativ")
    with pytest.raises(ValueError, match="choose from tokenizers, .*applications"): papers("")
    with pytest.raises(ValueError, match="nearest: reproduced, not reproduced"): papers(status="Reproduced")
    with pytest.raises(ValueError, match="lists all"): url("")


@pytest.mark.parametrize("slug", list(catalogue.entries()))
def test_a_slug_with_two_letters_swapped_still_finds_itself(slug):
    i = len(slug)//2
    assert slug in nearest(slug[:i - 1] + slug[i] + slug[i - 1] + slug[i + 1:], list(catalogue.entries()))


def test_links():
    assert all(url(slug) == "https://arxiv.org/abs/" + row["id"][6:] for slug, row in catalogue.entries().items())


def test_other_ids_and_missing_ones(monkeypatch):
    rows = {n: {"slug": n, "title": "A | B", "id": i, "year": 2020, "stage": "mixers"}
            for n, i in (("x", "doi:10.1/a"), ("y", "acl:2020.acl-main.1"), ("z", None))}
    monkeypatch.setattr(catalogue, "entries", lambda: rows)
    assert url("x") == "https://doi.org/10.1/a" and url("y") == "https://aclanthology.org/2020.acl-main.1"
    with pytest.raises(ValueError, match="no public id"): url("z")
    assert "| A \\| B (`z`) | 2020 |" in papers_markdown()


def test_markdown_has_a_row_and_a_link_for_each():
    lines = papers_markdown().splitlines()
    assert len(lines) == 186 and all(line.count("https://arxiv.org/abs/") == 1 for line in lines[2:])


def test_the_records_are_copies():
    paper("spectr")["year"] = 1900
    assert paper("spectr")["year"] == 2023


def test_import_is_light():
    code = "import sys, tokenlab.catalogue; print([m for m in ('pandas', 'torch', 'matplotlib', 'transformers', 'datasets', 'numba') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
