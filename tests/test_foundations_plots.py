"Plots: what is drawn is what was given, HTML is safe and self-contained, colours can be read, and the module stays light."
import base64
import html.parser
import re
import subprocess
import sys
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from tokenlab.plots import (COLORS, INK, PAPER, STYLE, bars, contrast, figure_html, heat, ink_on, lines, number, show_tokens, subplots,
                            table_html, token_html, use_style, visible)


class Reader(html.parser.HTMLParser):
    "Collects the text, the tags and the styles of a fragment, and that every tag is closed."
    def __init__(self, code):
        super().__init__()
        self.text, self.tags, self.styles, self.open = [], [], [], []
        self.feed(code)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.styles.append(dict(attrs).get("style", ""))
        if tag != "img": self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text.append(data)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=6) | st.sampled_from(["<script>", "</span>", "&amp;", '"<i>"']), max_size=6))
def test_tokens_survive_any_text(pieces):
    read = Reader(token_html(pieces))
    assert read.tags == ["div"] + ["span"]*len(pieces)  # no markup comes from the text
    assert "".join(read.text) == "".join(map(visible, pieces))
    token_html(pieces).encode("utf8")  # lone surrogates are shown as code points


def test_whitespace_shows_and_breaks_lines():
    assert visible(" \t\r\n") == "·→␍↵\n"
    assert visible("\u200b\u2028\ufeff") == "⟨200B⟩⟨2028⟩⟨FEFF⟩"
    assert visible("نص") == "نص" and visible("e\u0301") == "e\u0301" and visible("\u0301") == "◌\u0301"


@pytest.mark.parametrize("values", [None, [0., .5, 1., float("nan")], [3., 3., 3., 3.], [float("nan")]*4, [-1e9, 0, 1e9, float("inf")]])
def test_letters_can_be_read_on_every_token(values):
    styles = Reader(token_html(list("abcd"), values=values)).styles[1:]
    assert len(styles) == 4
    for style in styles:
        back, ink = re.search(r"background:(#\w{6});color:(#\w{6})", style).groups()
        assert contrast(back, ink) >= 4.5


def test_larger_values_are_darker_and_limits_make_calls_comparable():
    back = lambda code: re.findall(r"<span style=\"background:(#\w{6})", code)
    dark = [contrast(c, "#ffffff") for c in back(token_html(list("abc"), values=[1, 2, 3]))]
    assert dark == sorted(dark) and dark[0] < dark[-1]
    assert back(token_html(["a"], values=[5], limits=(0, 10)))[0] == back(token_html(["a", "b"], values=[5, 9], limits=(0, 10)))[0]


def test_token_html_refuses_what_is_not_pieces():
    for wrong in ("text", b"text"):
        with pytest.raises(ValueError, match="list of pieces"): token_html(wrong)
    with pytest.raises(ValueError, match="2 pieces"): token_html(["a", "b"], values=[1, 2, 3])
    assert Reader(token_html([])).text == []
    shown = show_tokens(["a", " b"], values=[1, 2], label='<"x">')
    assert "<x" not in shown._repr_html_() and str(shown) == "a|·b"


def test_colours_are_distinct_and_readable():
    assert len(set(COLORS)) == len(COLORS) >= 6
    assert contrast(INK, PAPER) > 12 and min(contrast(ink_on(c), c) for c in COLORS) > 4.5
    assert min(contrast(c, PAPER) for c in COLORS) > 2


def test_lines_draws_mean_and_one_standard_deviation():
    ys = np.array([[1., 2., 3.], [3., 6., 5.]])
    fig, ax = subplots()
    line = lines(ax, [0, 1, 2], ys, label="a")
    np.testing.assert_allclose(line.get_ydata(), [2, 4, 4])
    band = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(sorted({round(y, 6) for x, y in band if x == 1}), np.round([4 - 8**.5, 4 + 8**.5], 6))
    single = lines(ax, [0, 1, 2], ys[0], label="b")
    assert len(ax.collections) == 1 and single.get_color() == COLORS[1]  # no band for one run, next colour
    with pytest.raises(ValueError, match="expected"): lines(ax, [0, 1], ys, label="c")


def test_bars_write_values_name_gaps_and_stand_in_order():
    fig, ax = subplots()
    bars(ax, ["a", "b", "c"], [1.23456, float("nan"), -2], errors=[.1, 0, .5], points=[[1, 1.4], [], [-3]])
    assert [t.get_text() for t in ax.texts] == ["1.235", "no value", "-2"]
    assert [t.xy[0] for t in ax.texts] == [1.4, 0, -3]  # beyond error bar and dots
    assert ax.yaxis_inverted() and [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="3 names, 2 values"): bars(ax, list("abc"), [1, 2])


def test_bars_on_shared_axes_are_turned_once():
    fig, axs = subplots(1, 2, sharey=True)
    for ax in axs: bars(ax, ["a", "b"], [1, 2])
    assert axs[0].yaxis_inverted() and axs[1].yaxis_inverted()


def test_heat_scale_names_and_values():
    fig, ax = subplots()
    image = heat(ax, [[1, -3], [float("nan"), 2]], rows=["r", "s"], columns=["c", "d"], center=0, write=True, label="bits")
    assert image.get_clim() == (-3, 3) and [t.get_text() for t in ax.texts] == ["1", "-3", "–", "2"]
    assert heat(subplots()[1], [[1, 5]], limits=(0, 9)).get_clim() == (0, 9)
    for wrong in ([1, 2], [[[1]]]):
        with pytest.raises(ValueError, match="expected a matrix"): heat(ax, wrong)
    with pytest.raises(ValueError, match="1 names for 2 columns"): heat(ax, [[1, 2]], columns=["x"])


def test_subplots_changes_no_default_of_the_caller():
    import matplotlib as mpl
    with mpl.rc_context():
        mpl.rcdefaults()
        before = dict(mpl.rcParams)
        fig, ax = subplots(2, 3, widths=[1, 2, 1])
        assert dict(mpl.rcParams) == before and ax.shape == (2, 3) and tuple(fig.get_size_inches()) == (8, 6)
        use_style()
        assert mpl.rcParams["font.family"] == [STYLE["font.family"]]


def test_figure_html_is_self_contained_sized_and_the_same_each_time():
    import matplotlib.pyplot as plt
    def code(limit=400_000):
        fig, ax = subplots(width=6, height=2)
        lines(ax, range(5), np.arange(5.), label="x")
        made = figure_html(fig, alt='a "rise" <up>', limit=limit)
        assert not plt.fignum_exists(fig.number)
        return made
    first = code()
    assert first == code() and Reader(first).tags == ["img"]
    assert 'width="576"' in first and "&quot;rise&quot; &lt;up&gt;" in first
    kind, data = re.search(r"data:image/([\w+]+);base64,([^\"]+)", first).groups()
    svg = base64.b64decode(data).decode()
    assert kind == "svg+xml" and svg.lstrip().startswith("<?xml") and "<text" not in svg
    assert "data:image/png" in code(limit=10)
    with pytest.raises(ValueError, match="alt is empty"): figure_html(subplots()[0], alt="")


def test_table_html_escapes_aligns_and_shows_what_is_missing():
    df = pd.DataFrame({"<b>": ["a&b", None], "n": [12345, 2017], "x": [.123456, np.nan], "ok": [True, False]}, index=pd.Index(["p", "q"], name="slug"))
    code = table_html(df, caption="5 < 6")
    read = Reader(code)
    assert read.text == ["5 < 6", "slug", "<b>", "n", "x", "ok", "p", "a&b", "12,345", "0.1235", "yes", "q", "–", "2017", "–", "no"]
    assert "slug" not in Reader(table_html(df.reset_index(drop=True))).text
    assert Reader(table_html(df.iloc[:0])).tags.count("td") == 0
    levels = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("bits", "mean"), ("bits", "±")]))
    assert Reader(table_html(levels)).text == ["bits mean", "bits ±", "1", "2"]
    assert "–" in Reader(table_html(pd.DataFrame({"t": [pd.NaT], "m": pd.array([pd.NA], dtype="Int64")}))).text


@pytest.mark.parametrize("value,text", [(None, "–"), (np.float32(.5), "0.5"), (np.int64(10_000), "10,000"), (9999, "9999"), (-12345.6, "-12,346"), (0.0, "0"),
                                        (1234.5, "1234"), (float("-inf"), "-∞"), (np.bool_(False), "no"), (3.0, "3"), ("x", "x"), (2e12, "2e+12")])
def test_number(value, text): assert number(value) == text


def test_importing_draws_in_nothing_heavy():
    code = "import sys, tokenlab.plots; print([m for m in ('matplotlib', 'pandas', 'torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
