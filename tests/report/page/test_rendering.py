"""The renderers: page, images, CSV and Markdown. Names that hold markup stay text."""

import csv
import itertools
import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image

from prunesearch.analysis.intervals import ends, reach_of
from prunesearch.report.figures.figure import Figure, Heatmap, NumberTable, Panel, Rule, Series
from prunesearch.report.figures.styles import style_of
from prunesearch.report.page.cells import shown_cell, shown_rows
from prunesearch.report.page.csv_files import write_csv
from prunesearch.report.page.html_page import render_page
from prunesearch.report.page.images import _distances, _draw_panel, write_image
from prunesearch.report.page.legend import legend_of
from prunesearch.report.page.markdown import escaped, write_markdown
from prunesearch.report.page.plotly_panel import panel_document, plotly_figure
from tests.support.html_page import Element, check_accessible, parse
from tests.support.report_contents import HOSTILE, contents


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(contents())


@pytest.fixture(scope="module")
def root(page: str) -> Element:
    # plotly.js is several megabytes of no interest here.
    return parse(re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL))


def test_every_text_of_the_page_is_escaped(root: Element) -> None:
    # The names hold an image and a script; the page has neither.
    assert root.all("img") == []
    assert len(root.all("script")) == 2
    assert root.one("h1").text == " ".join(f"Report of {HOSTILE}".split())
    (title, *_) = root.all("h2", id="lines-title")
    assert HOSTILE in title.text


def test_the_page_loads_nothing(page: str, root: Element) -> None:
    (policy,) = root.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy.attributes["content"].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.attributes["content"].partition("style-src")[0]
    for element in root.all():
        assert "src" not in element.attributes
        assert not element.attributes.get("href", "#").startswith(("http", "//"))
    assert page.count("plotly.js v") == 1


def test_a_screen_reader_and_a_keyboard_find_everything(root: Element) -> None:
    check_accessible(root)
    assert root.one("a", class_="skip").attributes["href"] == "#main"


def test_every_figure_has_a_caption_badges_and_its_numbers(root: Element) -> None:
    figures = root.all("section", class_="figure")
    assert [figure.attributes["id"] for figure in figures] == ["lines", "bars", "heat", "text"]
    lines, _, heat, text = figures
    assert [badge.text for badge in heat.one("p", class_="badges").children] == [
        "searched on", "held out",
    ]  # fmt: skip
    assert "Of 3,000 points 2,000 are drawn" in lines.one("figcaption").text
    assert "The first 200 of 3,000 rows." in lines.one("details").text
    assert len(lines.one("tbody").children) == 200
    for plot in lines.all("div", role="img"):
        assert plot.attributes["aria-describedby"] == "lines-caption"
    # The comparison is open; the others open with a click.
    assert "open" in text.one("details").attributes
    assert "open" not in lines.one("details").attributes
    assert text.one("blockquote").text == " ".join(HOSTILE.split())


def test_the_values_are_json_that_cannot_end_its_element(root: Element) -> None:
    (script,) = root.all("script", id="figures")
    (text,) = script.texts
    assert "<" not in text
    documents = json.loads(text)
    assert list(documents) == ["lines-0", "lines-1", "bars-0", "bars-1", "heat-0", "heat-1"]
    # NaN is null; a name is escaped for plotly, which reads markup.
    assert documents["heat-0"]["data"][0]["z"][3][4] is None
    assert documents["lines-1"]["data"][0]["name"].startswith("&lt;img")


def test_a_panel_becomes_traces_with_bands_and_errors() -> None:
    x, y = [1, 2], [1.0, math.nan]
    line = Series("pso", x, y, "step", low=[0.5, 1.0], high=[2.0, 3.0], style=style_of("pso"))
    points = Series("woa", x, [1.0, 2.0], "points", low=[0.5, 1.0], high=[2.0, 3.0])
    panel = Panel("", "a", "b", (line, points), (Rule(0.5, "dense model"),))
    document = plotly_figure(panel, "<b>").to_plotly_json()
    low, high, step, cloud = document["data"]
    assert (low["fill"], high["fill"]) == ("none", "tonexty")
    assert high["fillcolor"] == "rgba(0,114,178,0.2)"
    assert (step["line"]["shape"], step["line"]["color"]) == ("hv", "#0072B2")
    assert list(step["y"]) == [1.0, None]
    assert list(cloud["error_y"]["array"]) == [1.0, 1.0]
    assert list(cloud["error_y"]["arrayminus"]) == [0.5, 1.0]
    assert document["layout"]["title"]["text"] == "&lt;b&gt;"
    assert document["layout"]["shapes"][0]["y0"] == 0.5
    # On the page, colours are variables.
    assert '{"colour": "--s2"}' in json.dumps(panel_document(panel))


@pytest.mark.parametrize("categories", [(), ("12-13", "8-9", "10-11")])
def test_names_of_layers_are_no_dates(categories: tuple[str, ...]) -> None:
    series = (
        Series("best tenth", ["8-9", "10-11"], [1.0, 2.0], "bars"),
        Series("all", ["10-11", "12-13"], [1.0, 2.0], "bars"),
    )
    layout = panel_document(Panel("", "block", "", series, categories=categories))["layout"]
    assert isinstance(layout, dict) and isinstance(layout["xaxis"], dict)
    axis = layout["xaxis"]
    assert (axis["type"], axis["categoryorder"]) == ("category", "array")
    assert axis["categoryarray"] == list(categories or ("8-9", "10-11", "12-13"))


def test_a_legend_names_each_series_once() -> None:
    (lines, bars, heat, _) = contents().figures
    assert [entry.name for entry in legend_of(lines)] == [
        "all candidates", "pso", "woa", "random", "worst", "dense model", HOSTILE,
    ]  # fmt: skip
    assert [entry.kind for entry in legend_of(bars)] == ["bars"] * 5
    assert legend_of(heat) == ()


def test_every_kind_of_figure_is_drawn(tmp_path: Path) -> None:
    for figure in contents().figures[:3]:
        path = tmp_path / f"{figure.key}.png"
        write_image(figure, path)
        with Image.open(path) as image:
            assert image.width == 1350
            # Something is drawn in several colours.
            colours = image.convert("RGB").getcolors(maxcolors=2**24)
            assert colours is not None
            assert len(colours) > 50


def test_csv_has_all_rows_and_digits_and_no_formula(tmp_path: Path) -> None:
    rows = (("=1+1", 0.1234567890123, 3), ("-", None, math.nan), ("a,b", True, -1.5))
    write_csv(NumberTable(("study", "value", "n"), rows, shown=1), tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["study", "value", "n"],
            ["'=1+1", "0.1234567890123", "3"],
            ["'-", "", ""],
            ["a,b", "True", "-1.5"],
        ]


def test_markdown_shows_names_as_they_are(tmp_path: Path) -> None:
    write_markdown(contents(), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "<img" not in re.sub(r"^```$.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert r"\`b\` \|c\| \*d\*" in text
    assert "![Bars](figures/bars.png)" in text
    assert "*(searched on)*" in text
    assert escaped("a\n# b") == r"a \# b"
    # A code block ends with a fence that the text does not hold.
    assert "```\n" + HOSTILE in text


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (12345, "12,345"),
        (268_000_000.0, "268,000,000"),
        (0.123456, "0.1235"),
        (1234.56, "1,234.6"),
        (1.5e-7, "1.5e-07"),
        ("a", "a"),
    ],
)
def test_cells_have_few_digits(cell: str | float | None, text: str) -> None:
    assert shown_cell(cell).text == text


def test_tiny_probabilities_of_tests_have_no_digits() -> None:
    table = NumberTable(("p", "share"), ((3e-220, 3e-220), (0.03, 0.5)))
    texts = [[cell.text for cell in row] for row in shown_rows(table, 10)]
    assert texts == [["< 0.0001", "3e-220"], ["0.03", "0.5"]]


def test_names_of_any_letters_and_length_leave_room_for_the_panel(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    names = ["\x1b[31m\u202e" + "n" * 400 + str(number) for number in range(2)]
    series = [Series(name, [name], [1.0], "points") for name in names]
    panel = Panel("", "study", "time (s)", tuple(series), categories=tuple(names))
    heat = Panel("", "block", "", (Heatmap(["0"], names, [[1.0], [0.0]], "share"),))
    write_image(Figure("a", "A", "A.", (), (panel, heat)), tmp_path / "a.png")
    # matplotlib warns of letters that it cannot draw, and of panels without room.
    assert [str(warning.message) for warning in recwarn] == []


def test_numbers_on_an_axis_do_not_overlap() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    drawn = Canvas(figsize=(4, 3))
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    close = Series("a", [0.2130851, 0.2130951, 0.2131262], [1.0, 2.0, 3.0], "points")
    _draw_panel(axes, Panel("", "size (GiB)", "", (close,)), (3.0, 2.0), {})
    drawn.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
    inside = [box for box in boxes if 0 <= box.x0 <= 400]
    assert len(inside) > 1
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(inside))


def test_an_unknown_error_is_not_drawn_as_an_error_of_zero() -> None:
    low, high = ends([1.0, 2.0], [reach_of(None), reach_of(0.5, 2.0)])
    drawn = _distances(Series("a", [0, 1], [1.0, 2.0], "points", low, high))
    assert drawn is not None
    for distances in drawn:
        assert math.isnan(distances[0])
        assert distances[1] == 1.0


@pytest.mark.parametrize(
    ("largest", "ticks"),
    [(2.0, None), (20.0, "D2"), (90_000.0, 1)],
    ids=["digits", "2 5", "powers"],
)
def test_a_logarithmic_axis_has_no_more_labels_than_room(largest: float, ticks: object) -> None:
    series = Series("a", [1, 2, 3], [1.0, 0.0, largest], "line", style=style_of("pso"))
    panel = Panel("", "evaluations", "KL (nats/token)", (series,), log_y=True)
    layout = panel_document(panel)["layout"]
    assert isinstance(layout, dict)
    axis = layout["yaxis"]
    assert isinstance(axis, dict)
    assert (axis["type"], axis.get("dtick")) == ("log", ticks)
