"""The page of a report: one file with its style, its script, plotly.js and all values.

The page loads nothing. A content policy forbids it to the browser, and allows the scripts of the
page alone, by their digests.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import jinja2
from markupsafe import Markup

import prunesearch
from prunesearch.report.figures.figure import Figure, NumberTable, Panel
from prunesearch.report.figures.styles import STYLES
from prunesearch.report.figures.thinning import thinning_note
from prunesearch.report.page.cells import ShownCell, shown_rows
from prunesearch.report.page.contents import ReportContents, Sentence, StudyFacts, StudyRecipe
from prunesearch.report.page.legend import LegendEntry, legend_of
from prunesearch.report.page.plotly_panel import panel_document
from prunesearch.runtime.json_values import JsonObject

_HEIGHT = 360  # pixels of a panel with series
_ROW = 14  # pixels of a row of a heat map
_AROUND = 150  # pixels of a heat map's axis and colours


@dataclass(frozen=True)
class TableView:
    """A table as it is shown."""

    head: tuple[str, ...]
    rows: list[list[ShownCell]]

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Headings, and whether the column holds numbers, which stand on the right."""
        found = []
        for index, head in enumerate(self.head):
            found.append((head, any(row[index].is_number for row in self.rows)))
        return found


@dataclass(frozen=True)
class FigureView:
    """A figure as the template reads it.

    Attributes:
        figure: the figure.
        caption: its caption, with the sentence about points that are left out.
        legend: names of its series.
        heights: height of each panel in pixels.
        table: the first rows of its numbers; None without.
        left_out: number of rows that only the CSV file has.
    """

    figure: Figure
    caption: str
    legend: tuple[LegendEntry, ...]
    heights: tuple[int, ...]
    table: TableView | None
    left_out: int


@dataclass(frozen=True)
class PageView:
    """The page as the template reads it; see `ReportContents`.

    Attributes:
        sections: pairs of an anchor and a title.
    """

    title: str
    made: str
    version: str
    command: str
    sections: tuple[tuple[str, str], ...]
    summary: tuple[Sentence, ...]
    notes: tuple[str, ...]
    studies: TableView
    facts: tuple[StudyFacts, ...]
    recipes: tuple[StudyRecipe, ...]
    figures: tuple[FigureView, ...]
    absent: tuple[tuple[str, str], ...]


def render_page(contents: ReportContents) -> str:
    """Return the page as HTML. Every text of it is escaped."""
    from plotly.offline import get_plotlyjs

    script, plotly = _template_file("page.js"), get_plotlyjs()
    documents: JsonObject = {}
    for figure in contents.figures:
        for index, panel in enumerate(figure.panels):
            documents[f"{figure.key}-{index}"] = panel_document(panel)
    template = _environment().get_template("page.html")
    return template.render(
        page=_page_view(contents),
        policy=_policy(plotly, script),
        style=Markup(_style()),
        documents=Markup(_json_in_html(documents)),
        plotly=Markup(plotly),
        script=Markup(script),
    )


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def _template_file(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _json_in_html(value: JsonObject) -> str:
    """Return JSON that can stand in a script element: no text of it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(*scripts: str) -> str:
    """Return a content policy that allows the scripts of the page and nothing from elsewhere."""
    digests = []
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        digests.append(f"'sha256-{digest}'")
    # Plotly draws heat maps and images through data and blob addresses of the page itself.
    return (
        f"default-src 'none'; script-src {' '.join(digests)}; style-src 'unsafe-inline'; "
        "img-src data: blob:"
    )


def _style() -> str:
    """Return the style sheet, with the colours of the series as variables."""
    light = "".join(f"--s{index}:{style.light};" for index, style in enumerate(STYLES))
    dark = "".join(f"--s{index}:{style.dark};" for index, style in enumerate(STYLES))
    return (
        f"{_template_file('page.css')}:root{{{light}}}"
        f"@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    )


def _page_view(contents: ReportContents) -> PageView:
    sections = [("summary", "In short"), ("studies", "What was searched")]
    sections += [(figure.key, figure.title) for figure in contents.figures]
    if contents.absent:
        sections.append(("absent", "Not shown"))
    sections.append(("reproduce", "How to repeat it"))
    return PageView(
        title=contents.title,
        made=contents.made,
        version=prunesearch.__version__,
        command=contents.command,
        sections=tuple(sections),
        summary=contents.summary,
        notes=contents.notes,
        studies=_table_view(contents.studies),
        facts=contents.facts,
        recipes=contents.recipes,
        figures=tuple(_figure_view(figure) for figure in contents.figures),
        absent=contents.absent,
    )


def _table_view(table: NumberTable) -> TableView:
    return TableView(table.head, shown_rows(table, table.shown))


def _figure_view(figure: Figure) -> FigureView:
    table, left_out = None, 0
    if figure.table is not None:
        table = _table_view(figure.table)
        left_out = max(0, len(figure.table.rows) - figure.table.shown)
    return FigureView(
        figure=figure,
        caption=figure.caption + thinning_note(figure.panels),
        legend=legend_of(figure),
        heights=tuple(_height(panel) for panel in figure.panels),
        table=table,
        left_out=left_out,
    )


def _height(panel: Panel) -> int:
    """Return the height of a panel in pixels. A heat map grows with its rows."""
    if panel.heatmap is None:
        return _HEIGHT
    return max(320, min(900, _AROUND + _ROW * len(panel.heatmap.y)))
