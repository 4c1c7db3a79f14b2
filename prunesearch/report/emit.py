"""Printing a command's result: as JSON, or as tables for people."""

import io
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Group

_PIPE = 100_000  # columns; more than any row has


def emit(as_json: bool, document: Any, render: "Callable[[Any], list[Group | str]]") -> None:  # noqa: ANN401 (any JSON value)
    """Print a document on stdout."""
    if as_json:
        click.echo(json.dumps(document, indent=2, default=str))
        return
    from rich.console import Console

    from prunesearch.report.render import Commands
    from prunesearch.report.tables import Paragraph

    if isinstance(sys.stdout, io.TextIOWrapper):  # a name with letters that the terminal has not is still shown
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(emoji=False, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE  # a row is a line there
    for part in filter(None, render(document)):
        if isinstance(part, Commands):
            console.print(part, soft_wrap=True)
        else:
            console.print(Paragraph(part) if isinstance(part, str) else part, crop=False)
