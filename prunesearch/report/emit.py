"""Print the result of a command as JSON, or as tables for people."""

import io
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from prunesearch.runtime.json_values import to_json
from prunesearch.runtime.masking import printable

if TYPE_CHECKING:
    from rich.console import Group

Value = TypeVar("Value")
_PIPE = 100_000  # width of output that is not a terminal: wider than any row


def emit(as_json: bool, value: Value, render: "Callable[[Value], list[Group | str]]") -> None:
    """Print a result on stdout.

    Args:
        as_json: print JSON instead of tables.
        value: the result: a dataclass, or a list of dataclasses (see `to_json`).
        render: function that turns the result into tables and lines.
    """
    if as_json:
        emit_json(value)
        return
    from rich.console import Console

    from prunesearch.report.tables import Commands, Paragraph

    # Letters that the terminal cannot show are escaped.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(emoji=False, markup=False, highlight=False)
    # In a pipe each row is one line.
    if not console.is_terminal:
        console.width = _PIPE
    for part in filter(None, render(value)):
        if isinstance(part, Commands):
            lines = [printable(line) for line in part.split("\n")]
            console.print("\n".join(lines), soft_wrap=True)
        elif isinstance(part, str):
            console.print(Paragraph(part), crop=False)
        else:
            console.print(part, crop=False)


def emit_json(value: object) -> None:
    """Print a value on stdout as one JSON document. This is the only place that does it.

    Args:
        value: a dataclass, or lists and mappings of them (see `to_json`).
    """
    click.echo(json.dumps(to_json(value), indent=2))
