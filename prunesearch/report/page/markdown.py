"""A report as Markdown, with links to the images. Names are escaped."""

import re
from collections.abc import Sequence
from pathlib import Path

from prunesearch.report.figures.figure import Figure, NumberTable
from prunesearch.report.figures.thinning import thinning_note
from prunesearch.report.page.cells import shown_rows
from prunesearch.report.page.contents import ReportContents

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
_MOST_ROWS = 30
_FENCE = "```"


def write_markdown(contents: ReportContents, path: Path) -> None:
    """Write a report as Markdown."""
    lines = [f"# {escaped(contents.title)}", "", f"Made {contents.made}.", ""]
    # 1. The summary and what must be known first.
    for sentence in contents.summary:
        badge = f" *({sentence.badge})*" if sentence.badge else ""
        lines += [f"{escaped(sentence.text)}{badge}", ""]
    for note in contents.notes:
        lines += [f"> {escaped(note)}", ""]
    lines += ["## What was searched", "", *_table(contents.studies), ""]
    # 2. The figures.
    for figure in contents.figures:
        lines += _figure(figure)
    if contents.absent:
        lines += ["## Not shown", ""]
        for title, reason in contents.absent:
            lines.append(f"* {escaped(title)}: {escaped(reason)}")
        lines.append("")
    # 3. How to repeat it.
    lines += ["## How to repeat it", "", "This report:", "", *_code(contents.command)]
    for recipe in contents.recipes:
        lines += [f"Study {escaped(recipe.name)}, with this recipe:", "", *_code(recipe.command)]
        lines += _code(recipe.text)
    path.write_text("\n".join(lines), encoding="utf-8")


def escaped(text: str) -> str:
    """Return a text that Markdown and HTML show as it is, in one line."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


def _code(text: str) -> list[str]:
    """Return a block of code. Its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(len(_FENCE), longest + 1)
    return [fence, text.rstrip("\n"), fence, ""]


def _table(table: NumberTable) -> list[str]:
    rows = shown_rows(table, min(_MOST_ROWS, table.shown))
    lines = [_row([escaped(head) for head in table.head]), _row(["---"] * len(table.head))]
    for row in rows:
        lines.append(_row([escaped(cell.text) for cell in row]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(figure: Figure) -> list[str]:
    badges = ", ".join(figure.badges)
    lines = [f"## {escaped(figure.title)}", ""]
    if badges:
        lines += [f"*{badges}*", ""]
    if figure.panels:
        lines += [f"![{escaped(figure.title)}](figures/{figure.key}.png)", ""]
    lines += [escaped(figure.caption + thinning_note(figure.panels)), ""]
    for sample in figure.texts:
        lines += ["Prompt:", "", *_code(sample.prompt)]
        for name, text in sample.texts:
            lines += [f"{escaped(name)}:", "", *_code(text)]
    if figure.table is not None:
        # A long table is in the CSV file only, unless it is what matters.
        if figure.open_table or len(figure.table.rows) <= _MOST_ROWS:
            lines += [*_table(figure.table), ""]
        lines += [f"All numbers: [data/{figure.key}.csv](data/{figure.key}.csv)", ""]
    return lines
