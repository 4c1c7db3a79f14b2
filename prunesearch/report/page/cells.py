"""Cells of tables as text, the same on the page and in Markdown."""

import math
from dataclasses import dataclass

from prunesearch.report.figures.figure import Cell, NumberTable
from prunesearch.studies.measurements import BADGES

MISSING = "–"
_LEAST_P = 0.0001


@dataclass(frozen=True)
class ShownCell:
    """A cell as it is shown.

    Attributes:
        text: text of the cell.
        is_number: whether it is aligned on the right.
        is_badge: whether the text is a badge.
    """

    text: str
    is_number: bool = False
    is_badge: bool = False


def shown_cell(cell: Cell) -> ShownCell:
    """Return a cell as it is shown. Numbers have at most five significant digits."""
    if cell is None:
        return ShownCell(MISSING)
    if isinstance(cell, str):
        return ShownCell(cell, is_badge=cell in BADGES)
    return ShownCell(shown_number(cell), is_number=True)


def shown_number(value: float) -> str:
    """Return a number with at most five significant digits; whole ones with all digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return MISSING
    # A whole number of a large amount, such as bytes, is not shortened.
    if value == round(value) and abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:,.1f}"
    return f"{value:.4g}"


def shown_rows(table: NumberTable, most: int) -> list[list[ShownCell]]:
    """Return the first rows of a table as they are shown.

    A probability of a test that is very small is shown as such: its digits mean nothing.
    """
    tests = {place for place, head in enumerate(table.head) if head in ("p", "p (Holm)")}
    found = []
    for row in table.rows[:most]:
        cells = []
        for place, cell in enumerate(row):
            if place in tests and isinstance(cell, float) and cell < _LEAST_P:
                cells.append(ShownCell(f"< {_LEAST_P}", is_number=True))
            else:
                cells.append(shown_cell(cell))
        found.append(cells)
    return found
