"""The command `report`. It starts without torch, and loads no model without ``--score``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from prunesearch.cli.help import Command
from prunesearch.cli.options.groups import SCORE_OPTIONS
from prunesearch.cli.options.places import CACHE, JOINT, JSON, OUT, SCORE, STORAGE
from prunesearch.cli.output import progress, quiet, quiet_optuna, quiet_warnings
from prunesearch.cli.parameters import with_options
from prunesearch.cli.recipes import options_of
from prunesearch.errors import InputError
from prunesearch.report.emit import emit


@click.command(cls=Command)
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...")
@OUT.variant(required=True)
@JOINT
@SCORE
@with_options(*SCORE_OPTIONS)
@STORAGE
@CACHE
@JSON
def report(
    studies: tuple[str, ...],
    out: str,
    joint: bool,
    score: bool,
    storage: str,
    cache: str,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Make a page with figures of studies, which opens without network; also PNG, CSV, Markdown.

    Everything comes from the databases. No model is loaded, unless --score asks for it.
    """
    quiet_optuna()
    from prunesearch.cache.location import check_writable
    from prunesearch.report.page.folder import ReportFolder
    from prunesearch.report.page.writing import write_report, written
    from prunesearch.report.reading import check_studies, read_report, report_command

    folder = ReportFolder.of(Path(out))
    check_writable(folder.path)
    if score:
        # Measuring takes long, so what cannot be reported is refused first.
        check_studies(storage, studies, joint=joint)
        _measure(studies, {**settings, "storage": storage, "cache": cache})
    else:
        _refuse_unread(settings)
    found = read_report(storage, studies, cache, joint=joint)
    line = report_command(found, folder.path.name, storage, joint=joint)
    with quiet_warnings():
        made = write_report(found, folder, line)
    emit(as_json, made, written)


def _measure(studies: tuple[str, ...], settings: Mapping[str, Any]) -> None:
    """Measure what the report of studies lacks, and store it in the studies."""
    quiet()
    # Import torch only here, so that a report without scores stays fast.
    from prunesearch.config.recipe import PATHS
    from prunesearch.pipeline.held_out_data import HeldOutOptions
    from prunesearch.pipeline.measuring import MeasuringRequest, measure

    held_out = HeldOutOptions(
        settings["held_out"],
        settings["held_out_tokens"],
        settings["held_out_data"],
        settings["held_out_limit"],
    )
    request = MeasuringRequest(
        studies,
        options_of(settings),
        held_out,
        {place: settings[place] for place in PATHS},
        settings["trust_remote_code"],
        tuple(Path(folder) for folder in settings["exported"]),
    )
    with progress():
        measure(request)


def _refuse_unread(settings: Mapping[str, Any]) -> None:
    """Refuse options that are only read with ``--score``.

    Raises:
        InputError: one was given.
    """
    held_out = ("held_out", "held_out_tokens", "held_out_data", "held_out_limit")
    for name in ("model", "calibration", "task_data", "include_path", *held_out):
        if settings[name] is not None:
            raise InputError(f"`{name}` goes with `score`: without it, no model is loaded")
    if settings["exported"]:
        raise InputError("`exported` goes with `score`: without it, no model is loaded")
