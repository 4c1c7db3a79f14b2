"""Printing a command's result: as JSON, or as tables for people."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Group


def emit(as_json: bool, document: Any, render: "Callable[[Any], list[Group | str]]") -> None:  # noqa: ANN401 (any JSON value)
    """Print a document on stdout."""
    if as_json:
        click.echo(json.dumps(document, indent=2, default=str))
        return
    from rich.console import Console

    from prunesearch.report.render import Commands

    console = Console()
    if not console.is_terminal:
        console.width = 160
    for part in filter(None, render(document)):
        whole = isinstance(part, Commands) or (isinstance(part, str) and not console.is_terminal)
        console.print(part, highlight=False, soft_wrap=whole, markup=False)
