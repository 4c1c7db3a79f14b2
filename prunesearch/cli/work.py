"""The command `work`. It starts without torch."""

from typing import Any

import click

from prunesearch.cli.help import Command
from prunesearch.cli.options.data import CALIBRATION, INCLUDE_PATH, TASK_DATA
from prunesearch.cli.options.execution import MODEL_OF_STUDY, TRUST
from prunesearch.cli.options.groups import RUN_OPTIONS
from prunesearch.cli.options.places import JSON, STORAGE
from prunesearch.cli.output import progress, quiet
from prunesearch.cli.parameters import with_options
from prunesearch.cli.recipes import options_of
from prunesearch.report.emit import emit


@click.command(cls=Command)
@click.argument("study")
@MODEL_OF_STUDY
@CALIBRATION.variant(show_default="where it was")
@with_options(TASK_DATA, INCLUDE_PATH)
@click.option(
    "--idle-exit",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds after which to end if nobody searches STUDY and nothing is left to score.",
)
@TRUST
@STORAGE
@with_options(*RUN_OPTIONS)
@JSON
def work(
    study: str,
    idle_exit: float,
    trust_remote_code: bool,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Help with STUDY: score what its search still lacks, until the study has its trials.

    Run it on any machine that reaches the storage and the cache of the search. It writes to the
    cache only. The content of model and data must be what is searched.
    """
    options = options_of(settings)
    quiet()
    from prunesearch.config.recipe import PATHS
    from prunesearch.pipeline.work import work
    from prunesearch.report.work import worked

    location = {place: settings[place] for place in PATHS}
    with progress():
        report = work(
            study, options, idle_exit=idle_exit, trust_remote_code=trust_remote_code, **location
        )
    emit(as_json, report, worked)
