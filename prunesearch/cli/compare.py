"""The command `compare`. It starts without torch."""

import click

from prunesearch.cli.help import Command
from prunesearch.cli.options.places import CACHE, JOINT, JSON, STORAGE
from prunesearch.cli.output import quiet_optuna
from prunesearch.report.emit import emit


@click.command(cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="STUDY...")
@JOINT
@STORAGE
@CACHE
@JSON
def compare(names: tuple[str, ...], joint: bool, storage: str, cache: str, as_json: bool) -> None:
    """Compare studies: what each found, what it cost, and whether their winners differ.

    Winners are compared on the same documents, from what is stored. Nothing is scored, and no
    model is loaded.
    """
    from prunesearch.report import comparison as rendered
    from prunesearch.studies import comparison

    quiet_optuna()
    emit(as_json, comparison.compare(storage, names, cache, joint), rendered.comparison)
