"""Print the result of a command as JSON, or as tables for people."""

import io
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from prunesearch.runtime.masking import printable

if TYPE_CHECKING:
    from rich.console import Group

_PIPE = 100_000  # width of output that is not a terminal: wider than any row


def emit(as_json: bool, document: Any, render: "Callable[[Any], list[Group | str]]") -> None:  # noqa: ANN401 (any JSON value)
    """Print a document on stdout.

    Args:
        as_json: print JSON instead of tables.
        document: JSON values.
        render: function that turns the document into tables and lines.
    """
    if as_json:
        click.echo(json.dumps(document, indent=2, default=str))
        return
    from rich.console import Console

    from prunesearch.report.render import Commands
    from prunesearch.report.tables import Paragraph

    # Letters that the terminal cannot show are escaped.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(emoji=False, markup=False, highlight=False)
    # In a pipe each row is one line.
    if not console.is_terminal:
        console.width = _PIPE
    for part in filter(None, render(document)):
        if isinstance(part, Commands):
            lines = [printable(line) for line in part.split("\n")]
            console.print("\n".join(lines), soft_wrap=True)
        elif isinstance(part, str):
            console.print(Paragraph(part), crop=False)
        else:
            console.print(part, crop=False)
