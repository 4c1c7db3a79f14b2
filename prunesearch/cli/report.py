"""The command `report`. It starts without torch, and loads no model."""

from pathlib import Path

import click

from prunesearch.cli.help import Command
from prunesearch.cli.options import CACHE, JOINT, JSON, OUT, STORAGE
from prunesearch.cli.output import quiet_optuna
from prunesearch.report.emit import emit


@click.command(cls=Command)
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...")
@OUT.variant(
    required=True, help="New or empty folder for the report, or an earlier report to replace."
)
@JOINT
@STORAGE
@CACHE
@JSON
def report(
    studies: tuple[str, ...], out: str, joint: bool, storage: str, cache: str, as_json: bool
) -> None:
    """Make a page with figures of studies, which opens without network; also PNG, CSV, Markdown.

    Everything comes from the databases. No model is loaded.
    """
    quiet_optuna()
    from prunesearch.report.page.folder import ReportFolder
    from prunesearch.report.page.writing import write_report, written
    from prunesearch.report.reading import read_report, report_command

    folder = ReportFolder.of(Path(out))
    found = read_report(storage, studies, cache, joint=joint)
    line = report_command(found, folder.path.name, storage, joint=joint)
    emit(as_json, write_report(found, folder, line), written)
