"""Tables and text for people, built from plain values. Numbers and names are never broken, lists only after a comma.

A table that does not fit the width is printed row by row instead, a line for each column. In pipes nothing is folded.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

_GAP = 2  # columns between two columns of a table
_LEAST = 16  # columns that a list of layers gets at least, if it has as many
_NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?( |%|$)|-?$")
_PLAIN = str.maketrans({"±": "+/-", "×": "x", "…": "...", "–": "-", "→": "->", "·": "-"})


class Layers(str):
    """A cell with a list of layers, which may be folded after a comma."""

    __slots__ = ()


class Prose(str):
    """A cell that may be folded between words."""

    __slots__ = ()


class Paragraph:
    """A line of text that is folded between words, and inside a long list after a comma.

    Args:
        indent: what a line that goes on begins with.
    """

    def __init__(self, text: str, indent: str = "", style: str = "") -> None:
        self._text, self._indent, self._style = text, indent, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = _encodable(self._text, options)
        for line in text.split("\n"):
            for part, folded in enumerate(_folded(line, options.max_width, self._indent)):
                yield _line((self._indent if part else "") + folded, self._style)


def _encodable(text: str, options: ConsoleOptions) -> str:
    """The text with signs of plain ASCII where the terminal has no others."""
    return text.translate(_PLAIN) if options.ascii_only else text


def _line(text: str, style: str = "") -> Text:
    """One line that is never folded: a name that is wider than the terminal stays whole."""
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def _folded(text: str, width: int, indent: str = "") -> list[str]:
    """Fold a line between words; a word that is a list, and does not fit, after its commas."""
    lines, room = [""], width
    for word in re.findall(r"\s*\S+|\s+$", text):
        if len(lines[-1] + word) <= room:
            lines[-1] += word
            continue
        bare = word.lstrip()
        if len(bare) <= width - len(indent):
            lines.append(bare)
            room = width - len(indent)
            continue
        blank = word[: len(word) - len(bare)]
        for item in re.findall(r"[^,]*,|[^,]+$", bare):
            if len(lines[-1] + blank + item) > room and lines[-1]:
                lines.append("")
                room = width - len(indent)
                blank = ""
            lines[-1] += blank + item
            blank = ""
    return lines


class Sheet:
    """A plain table; its columns of numbers are right-aligned, but for the first.

    Args:
        columns: headings, folded between words.
        rows: cells; only `Layers` and `Prose` are ever folded.
    """

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        self._columns = list(columns)
        self._rows = [[cell if isinstance(cell, str) else str(cell) for cell in row] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [_encodable(column, options) for column in self._columns]
        rows = [[type(cell)(_encodable(cell, options)) for cell in row] for row in self._rows]
        widths = _widths(columns, rows, options.max_width)
        if widths is None:
            yield from _row_by_row(columns, rows, options.max_width)
            return
        left = [not index or not all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
        yield _line("")
        yield from _lines([_folded(column, width) for column, width in zip(columns, widths, strict=True)], widths, left)
        rule = "-" if options.ascii_only else "─"
        yield _line(rule * (sum(widths) + _GAP * (len(widths) - 1)))
        for row in rows:
            yield from _lines([_cell(cell, width) for cell, width in zip(row, widths, strict=True)], widths, left)
        yield _line("")


def _lines(cells: Sequence[Sequence[str]], widths: Sequence[int], left: Sequence[bool]) -> Iterator[Text]:
    """The lines of one row, whose cells may have several."""
    for parts in zip_longest(*cells, fillvalue=""):
        row = zip(parts, widths, left, strict=True)
        aligned = [part.ljust(width) if is_left else part.rjust(width) for part, width, is_left in row]
        yield _line((" " * _GAP).join(aligned).rstrip())


def _is_number(cell: str) -> bool:
    return not isinstance(cell, Layers) and _NUMBER.match(cell) is not None


def _cell(cell: str, width: int) -> list[str]:
    return _folded(cell, width) if isinstance(cell, Layers | Prose) else [cell]


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """The columns' widths, or None where the table cannot be as narrow as the room."""
    least, most = [], []
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        words = max(map(len, column.split()), default=1)
        least.append(max([words, *(_least(cell) for cell in cells)]))
        most.append(max([len(column), *map(len, cells)]))
    room -= _GAP * (len(columns) - 1)
    if sum(least) > room:
        return None
    widths = list(least)
    for index in reversed(range(len(widths))):  # what is left goes to the last columns, where the lists are
        widths[index] += min(most[index] - widths[index], room - sum(widths))
    return widths


def _least(cell: str) -> int:
    """How narrow a cell may get."""
    if isinstance(cell, Layers):
        return min(len(cell), _LEAST)
    if isinstance(cell, Prose):
        return max([min(len(cell), _LEAST), *map(len, cell.split())])
    return len(cell)


def _row_by_row(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[Text]:
    """A table that is too wide: the first cell of each row, and below it a line for every other column."""
    label_width = max(map(len, columns))
    yield _line("")
    for row in rows:
        yield _line(f"{columns[0]} {row[0]}".strip() if columns[0] else row[0])
        for column, cell in zip(columns[1:], row[1:], strict=True):
            begin = f"  {column:<{label_width}}  "
            for part in _folded(cell, max(_LEAST, width - len(begin))) if isinstance(cell, Layers | Prose) else [cell]:
                yield _line(begin + part)
                begin = " " * len(begin)
    yield _line("")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Group:
    """A title over a table; see `Sheet`."""
    return Group(Paragraph(title, style="bold"), Sheet(columns, rows))


def without_constant(
    columns: Sequence[str], rows: Sequence[Sequence[object]], constants: Container[object] | None = None
) -> tuple[list[str], list[list[object]]]:
    """A table without columns that are the same in every row, but for the first.

    Args:
        constants: the values that a column is left out for; None: any, where there are several rows.
    """
    kept = []
    for index in range(len(columns)):
        cells = {row[index] for row in rows}
        constant = len(cells) == 1 and (len(rows) > 1 if constants is None else next(iter(cells)) in constants)
        if index == 0 or not constant:
            kept.append(index)
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def dense_against_pruned(
    title: str,
    dense: Mapping[str, float],
    pruned: Mapping[str, float],
    stderr: Mapping[str, float] | None = None,
    dense_stderr: Mapping[str, float] | None = None,
) -> Group:
    """Metrics of the dense and the pruned model side by side, with the ratio pruned / dense.

    Args:
        stderr: standard errors of the pruned model's metrics, shown after them.
        dense_stderr: those of the dense model's.
    """
    rows = []
    for name, after in pruned.items():
        before = dense.get(name)
        ratio = f"{after / before:.3f}" if before else "-"
        shown = "-" if before is None else _with_error(name, before, dense_stderr)
        rows.append((Prose(label(name)), Prose(shown), Prose(_with_error(name, after, stderr)), ratio))
    return table(title, ("", "dense", "pruned", "pruned/dense"), rows)


def _with_error(name: str, value: float, errors: Mapping[str, float] | None) -> str:
    """A metric with its standard error, where there is one that is not zero."""
    error = (errors or {}).get(name)
    return f"{number(name, value)} ± {stderr_of(name, value, error)}" if error else number(name, value)


def stderr_of(name: str, value: float, error: float) -> str:
    """A standard error for people, with digits that suit its metric's."""
    return f"{error:.3g}" if abs(value) >= 100 else number(name, error)


_LABELS = {
    "params": "parameters",
    "bytes": "bytes",
    "kl": "KL to dense (nats/token)",
    "cross_entropy": "cross-entropy (nats/token)",
    "latency_ms": "latency (ms)",
    "measured_ms": "latency, measured (ms)",
    "predicted_ms": "latency, predicted (ms)",
    "held_out_perplexity": "held-out perplexity",
    "held_out_kl": "held-out KL (nats/token)",
}


def label(metric: str) -> str:
    """A metric's name for people."""
    return _LABELS.get(metric, metric)


def number(metric: str, value: float) -> str:
    """A metric's value for people."""
    if metric == "bytes":
        return f"{int(value):,} ({gib(value)})"
    if metric == "params":
        return f"{int(value):,}"
    if metric in ("latency_ms", "measured_ms", "predicted_ms"):
        return f"{value:.1f}"
    return f"{value:.4g}" if abs(value) >= 100 else f"{value:.4f}"


def gib(size: float) -> str:
    """Bytes as GiB (2^30)."""
    return f"{size / 2**30:.{2 if size >= 2**30 else 3}f} GiB"


def size(size: float) -> str:
    """Bytes in the largest unit of which there is at least one."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= least:
            return f"{size / least:.3g} {unit}" if size < 1000 * least else f"{size / least:,.0f} {unit}"
    return f"{int(size)} bytes"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
