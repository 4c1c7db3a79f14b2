"""The numbers of a figure as a CSV file, with all rows and all digits."""

import csv
import math
from pathlib import Path

from prunesearch.report.figures.figure import Cell, NumberTable

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First letters that make a spreadsheet compute a cell."""


def write_csv(table: NumberTable, path: Path) -> None:
    """Write a table as CSV in UTF-8: a heading, and one line for each row."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([_safe(head) for head in table.head])
        for row in table.rows:
            writer.writerow([_plain(cell) for cell in row])


def _plain(cell: Cell) -> str | int | float:
    """Return a cell as it is written. What is missing or not finite is left empty."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return _safe(cell)
    if isinstance(cell, float) and not math.isfinite(cell):
        return ""
    return cell


def _safe(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula, as the name of a study might be."""
    return f"'{text}" if text.startswith(_FORMULA) else text
