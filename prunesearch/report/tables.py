"""Tables and text for people, built from plain values.

Numbers and names are never broken; lists are broken only after a comma. A table that is too wide
for the terminal is printed row by row, with one line per column. In pipes nothing is folded.
"""

import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

from prunesearch.objectives.registry import metric_labels, relative_metrics, zero_metrics
from prunesearch.runtime.masking import printable

Parts = list[Group | str]
"""Tables and lines, in the order in which they are printed."""
_GAP = 2  # characters between two columns of a table
_LEAST = 16  # smallest width of a column with a list of layers, unless the list is shorter
_NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?( |%|$)|-?$")
_PLAIN = str.maketrans({"±": "+/-", "×": "x", "…": "...", "–": "-", "→": "->", "·": "-"})


class LayerList(str):
    """A cell with a list of layers. It may be folded after a comma."""

    __slots__ = ()


class Prose(str):
    """A cell that may be folded between words."""

    __slots__ = ()


class Commands(str):
    """Lines for copying. They are not wrapped."""

    __slots__ = ()


def next_commands(*commands: str) -> Commands:
    """Format commands that the user may run next."""
    lines = ["next:"]
    for command in commands:
        lines.append(f"  {command}")
    return Commands("\n".join(lines))


class Paragraph:
    """A line of text that is folded between words, and inside a long list after a comma.

    Args:
        text: text to show.
        indent: prefix of continuation lines.
        style: style of the text, as rich takes it.
    """

    def __init__(self, text: str, indent: str = "", style: str = "") -> None:
        lines = [printable(line) for line in text.split("\n")]
        self._text, self._indent, self._style = "\n".join(lines), indent, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = _encodable(self._text, options)
        for line in text.split("\n"):
            for part, folded in enumerate(_folded(line, options.max_width, self._indent)):
                yield _line((self._indent if part else "") + folded, self._style)


def _encodable(text: str, options: ConsoleOptions) -> str:
    """Replace symbols by plain ASCII if the terminal cannot show them."""
    if options.ascii_only:
        return text.translate(_PLAIN)
    return text


def _clean(cell: str) -> str:
    """Escape what could control a terminal in a cell, and keep its class."""
    return type(cell)(printable(cell))


def _line(text: str, style: str = "") -> Text:
    """Return a line that is never folded, so that a name wider than the terminal stays whole."""
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def _folded(text: str, width: int, indent: str = "") -> list[str]:
    """Fold a line between words. A word that is too long is folded after its commas."""
    lines, room = [""], width
    for word in re.findall(r"\s*\S+|\s+$", text):
        # The word fits on this line.
        if len(lines[-1] + word) <= room:
            lines[-1] += word
            continue
        # It fits on the next line.
        bare = word.lstrip()
        if len(bare) <= width - len(indent):
            lines.append(bare)
            room = width - len(indent)
            continue
        # It fits on no line: fold it after commas.
        blank = word[: len(word) - len(bare)]
        for item in re.findall(r"[^,]*,|[^,]+$", bare):
            if len(lines[-1] + blank + item) > room and lines[-1]:
                lines.append("")
                room = width - len(indent)
                blank = ""
            lines[-1] += blank + item
            blank = ""
    return lines


class WrappedTable:
    """A plain table. Columns of numbers are right-aligned, except the first.

    Args:
        columns: headings, folded between words.
        rows: cells; only `LayerList` and `Prose` are ever folded.
    """

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        self._columns = list(columns)
        self._rows: list[list[str]] = []
        for row in rows:
            # `LayerList` and `Prose` are strings and keep their class.
            self._rows.append(
                [_clean(cell) if isinstance(cell, str) else str(cell) for cell in row]
            )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [_encodable(column, options) for column in self._columns]
        rows = []
        for row in self._rows:
            rows.append([type(cell)(_encodable(cell, options)) for cell in row])
        widths = _widths(columns, rows, options.max_width)
        if widths is None:
            yield from _row_by_row(columns, rows, options.max_width)
            return
        # The first column, and columns with text, are left-aligned.
        left = []
        for index in range(len(columns)):
            left.append(index == 0 or not all(_is_number(row[index]) for row in rows))
        # The heading, a rule, and the rows.
        yield _line("")
        heading = [_folded(column, width) for column, width in zip(columns, widths, strict=True)]
        yield from _lines(heading, widths, left)
        rule = "-" if options.ascii_only else "─"
        yield _line(rule * (sum(widths) + _GAP * (len(widths) - 1)))
        for row in rows:
            cells = [_cell(cell, width) for cell, width in zip(row, widths, strict=True)]
            yield from _lines(cells, widths, left)
        yield _line("")


def _lines(
    cells: Sequence[Sequence[str]], widths: Sequence[int], left: Sequence[bool]
) -> Iterator[Text]:
    """Yield the lines of one row. A cell may have several lines."""
    for parts in zip_longest(*cells, fillvalue=""):
        aligned = []
        for part, width, is_left in zip(parts, widths, left, strict=True):
            aligned.append(part.ljust(width) if is_left else part.rjust(width))
        yield _line((" " * _GAP).join(aligned).rstrip())


def _is_number(cell: str) -> bool:
    """Return whether a cell holds a number, a unit included, or a dash."""
    return not isinstance(cell, LayerList) and _NUMBER.match(cell) is not None


def _cell(cell: str, width: int) -> list[str]:
    """Return the lines of a cell."""
    if isinstance(cell, LayerList | Prose):
        return _folded(cell, width)
    return [cell]


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return the widths of the columns; None if the table does not fit into `room` characters."""
    # The smallest and the largest useful width of each column.
    least, most = [], []
    for index, column in enumerate(columns):
        narrowest = max(map(len, column.split()), default=1)
        widest = len(column)
        for row in rows:
            narrowest = max(narrowest, _least(row[index]))
            widest = max(widest, len(row[index]))
        least.append(narrowest)
        most.append(widest)
    room -= _GAP * (len(columns) - 1)
    if sum(least) > room:
        return None
    # The remaining room goes to the last columns, which hold the lists.
    widths = list(least)
    for index in reversed(range(len(widths))):
        widths[index] += min(most[index] - widths[index], room - sum(widths))
    return widths


def _least(cell: str) -> int:
    """Return the smallest width of a cell."""
    if isinstance(cell, LayerList):
        return min(len(cell), _LEAST)
    if isinstance(cell, Prose):
        return max([min(len(cell), _LEAST), *map(len, cell.split())])
    return len(cell)


def _row_by_row(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> Iterator[Text]:
    """Yield the lines of a table that is too wide: the first cell of each row, then one line per
    other column.
    """
    label_width = max(map(len, columns))
    yield _line("")
    for row in rows:
        yield _line(f"{columns[0]} {row[0]}".strip() if columns[0] else row[0])
        for column, cell in zip(columns[1:], row[1:], strict=True):
            begin = f"  {column:<{label_width}}  "
            for part in _cell(cell, max(_LEAST, width - len(begin))):
                yield _line(begin + part)
                begin = " " * len(begin)
    yield _line("")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Group:
    """Return a title above a table (see `WrappedTable`)."""
    return Group(Paragraph(title, style="bold"), WrappedTable(columns, rows))


def without_constant(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    constants: Container[object] | None = None,
) -> tuple[list[str], list[list[object]]]:
    """Leave out columns that have the same value in every row, except the first column.

    Args:
        columns: headings.
        rows: cells.
        constants: values for which a constant column is left out. None for any value, if there are
            several rows.

    Returns:
        The remaining headings and rows.
    """
    kept = []
    for index in range(len(columns)):
        cells = {row[index] for row in rows}
        constant = len(cells) == 1
        if constant and constants is None:
            constant = len(rows) > 1
        elif constant and constants is not None:
            constant = next(iter(cells)) in constants
        if index == 0 or not constant:
            kept.append(index)
    kept_rows = []
    for row in rows:
        kept_rows.append([row[index] for index in kept])
    return [columns[index] for index in kept], kept_rows


def dense_against_pruned(
    title: str,
    dense: Mapping[str, float],
    pruned: Mapping[str, float],
    stderr: Mapping[str, float] | None = None,
    dense_stderr: Mapping[str, float] | None = None,
) -> Group:
    """Return a table of the dense and the pruned model's metrics, with the ratio pruned / dense.

    Args:
        title: title of the table.
        dense, pruned: metrics by name.
        stderr: standard errors of the pruned model's metrics.
        dense_stderr: standard errors of the dense model's metrics.
    """
    rows = []
    for name, after in pruned.items():
        # The dense model may lack a metric, and a ratio to 0 says nothing.
        before = dense.get(name)
        ratio = shown = "-"
        if before:
            ratio = f"{after / before:.3f}"
        if before is not None:
            shown = _with_error(name, before, dense_stderr)
        rows.append(
            (Prose(label(name)), Prose(shown), Prose(_with_error(name, after, stderr)), ratio)
        )
    return table(title, ("", "dense", "pruned", "pruned/dense"), rows)


def _with_error(name: str, value: float, errors: Mapping[str, float] | None) -> str:
    """Format a metric with its standard error, if there is one that is not zero."""
    shown = number(name, value)
    if error := (errors or {}).get(name):
        shown += f" ± {stderr_of(name, value, error)}"
    return shown


def stderr_of(name: str, value: float, error: float) -> str:
    """Format a standard error with digits that fit those of its metric."""
    if abs(value) >= 100:
        return f"{error:.3g}"
    return number(name, error)


_LABELS = {
    "params": "parameters",
    "bytes": "bytes",
    "latency_ms": "latency (ms)",
    "measured_ms": "latency, measured (ms)",
    "predicted_ms": "latency, predicted (ms)",
    "held_out_perplexity": "held-out perplexity",
    "held_out_kl": "held-out KL (nats/token)",
}


def label(metric: str) -> str:
    """Return the displayed name of a metric."""
    return (_LABELS | metric_labels()).get(metric, metric)


def example_loss(dense: Collection[str]) -> str:
    """Return a loss for the example of a command: a share, or a difference if a share of the
    searched metric is not defined.

    Args:
        dense: names of the dense model's metrics.
    """
    if any(name in dense for name in relative_metrics()):
        return "10%"
    return "0.05" if any(name in dense for name in zero_metrics()) else "10%"


def number(metric: str, value: float) -> str:
    """Format the value of a metric."""
    if metric == "bytes":
        return f"{int(value):,} ({gib(value)})"
    if metric == "params":
        return f"{int(value):,}"
    if metric in ("latency_ms", "measured_ms", "predicted_ms"):
        return f"{value:.1f}"
    if abs(value) >= 100:
        return f"{value:.4g}"
    return f"{value:.4f}"


def gib(size: float) -> str:
    """Format a number of bytes in GiB (2^30)."""
    digits = 2 if size >= 2**30 else 3
    return f"{size / 2**30:.{digits}f} GiB"


def size(size: float) -> str:
    """Format a number of bytes in the largest unit of which there is at least one."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= 1000 * least:
            return f"{size / least:,.0f} {unit}"
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{int(size)} bytes"


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
