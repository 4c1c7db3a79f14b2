"""The commands `study …`. They start without torch."""

import sys
from typing import Any

import click

from prunesearch.cli.help import Group
from prunesearch.cli.options.data import CALIBRATION, INCLUDE_PATH, TASK_DATA
from prunesearch.cli.options.execution import MODEL_OF_STUDY, TRUST
from prunesearch.cli.options.groups import RUN_OPTIONS, SELECTION_OPTIONS
from prunesearch.cli.options.places import COPY_FROM, COPY_TO, JSON, STORAGE
from prunesearch.cli.options.search import CONFIRM, TRIALS
from prunesearch.cli.output import progress, quiet_optuna
from prunesearch.cli.parameters import with_options
from prunesearch.cli.recipes import options_of
from prunesearch.errors import InputError
from prunesearch.report.emit import emit
from prunesearch.units import noun_for


@click.group(cls=Group)
def study() -> None:
    """Show, resume, copy and delete studies."""


@study.command("list")
@STORAGE
@JSON
def study_list(storage: str, as_json: bool) -> None:
    """List the studies of a database."""
    from prunesearch.report import study as rendered
    from prunesearch.studies import persistence, summary

    quiet_optuna()
    found = summary.summaries(persistence.open_storage(storage, create=False))
    emit(as_json, found, rendered.study_list)


@study.command("show")
@click.argument("name")
@click.option(
    "--best",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="How many of the best trials to show; all of a front.",
)
@STORAGE
@JSON
def study_show(name: str, best: int, storage: str, as_json: bool) -> None:
    """Show a study: its recipe, its counts and its best trials."""
    from prunesearch.report import study as rendered
    from prunesearch.studies import persistence, summary

    quiet_optuna()
    found = persistence.load(persistence.open_storage(storage, create=False), name)
    emit(as_json, summary.details(found, best), rendered.study_show)


@study.command("best")
@click.argument("name")
@with_options(*SELECTION_OPTIONS)
@STORAGE
@JSON
def study_best(
    name: str, max_loss: str | None, max_size: str | None, storage: str, as_json: bool
) -> None:
    """Print the layers that a study's best trial drops, as --layers of export takes them."""
    from prunesearch.report import study as rendered
    from prunesearch.studies import persistence, selection, summary

    quiet_optuna()
    wanted = selection.SelectionCriteria.parse(max_loss, max_size)
    found = persistence.load(persistence.open_storage(storage, create=False), name)
    chosen = summary.chosen_trial(found, wanted)
    emit(as_json, chosen, rendered.study_best)
    if not as_json:
        # Scripts read the layers, so the rest goes to stderr.
        for line in rendered.how_certain(chosen):
            click.echo(line, err=True)


@study.command("layers")
@click.argument("name")
@STORAGE
@JSON
def study_layers(name: str, storage: str, as_json: bool) -> None:
    """Show which layers matter: what dropping each costs, and how often the best trials drop it."""
    from prunesearch.report import study as rendered
    from prunesearch.studies import persistence, summary

    quiet_optuna()
    found = persistence.load(persistence.open_storage(storage, create=False), name)
    emit(as_json, summary.layers_of(found), rendered.study_layers)


@study.command("resume")
@click.argument("name")
@MODEL_OF_STUDY
@CALIBRATION.variant(show_default="where it was")
@with_options(TASK_DATA, INCLUDE_PATH)
@TRIALS.variant(show_default="as many as were asked for last")
@CONFIRM
@TRUST
@STORAGE
@with_options(*RUN_OPTIONS)
@JSON
def study_resume(
    name: str,
    trust_remote_code: bool,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Go on with the study NAME, from any folder or machine.

    The options say where model and data are now. Their content must be what was searched.
    """
    options = options_of(settings)
    with progress(loads_torch=True):
        from prunesearch.config.recipe import PATHS
        from prunesearch.pipeline.run import report_of
        from prunesearch.pipeline.stages.search import resume_request
        from prunesearch.report.render import render

        location = {place: settings[place] for place in PATHS}
        request = resume_request(name, options, trust_remote_code=trust_remote_code, **location)
        report = report_of("search", request)
    emit(as_json, report, render)


@study.command("copy")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@COPY_FROM
@COPY_TO
@click.option("--name", "new_name", help="Name of the copy; default the name of the study.")
@click.option("--all", "every", is_flag=True, help="Copy all studies of the database.")
@JSON
def study_copy(
    names: tuple[str, ...],
    source: str,
    target: str,
    new_name: str | None,
    every: bool,
    as_json: bool,
) -> None:
    """Copy the studies NAME to another database, where each goes on with the same next trials.

    Evaluations travel with cache export and cache import.
    """
    from prunesearch.report import study as rendered
    from prunesearch.report.progress import ProgressView
    from prunesearch.studies.copying import copy_studies

    if bool(names) == every:
        raise InputError("give the NAME of one or more studies, or --all")
    quiet_optuna()
    with ProgressView():
        copied = copy_studies(source, target, None if every else names, new_name)
    emit(as_json, copied, rendered.study_copy)


@study.command("rm")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@STORAGE
@JSON
def study_rm(name: str, yes: bool, storage: str, as_json: bool) -> None:
    """Delete a study and its trials. Evaluations stay in the cache."""
    from prunesearch.report import study as rendered
    from prunesearch.studies import persistence
    from prunesearch.studies.summary import DeletedStudy, summarise

    quiet_optuna()
    database = persistence.open_storage(storage, create=False)
    summary = summarise(persistence.load(database, name))  # refuses studies that are not ours
    trials = f"{summary.trials} {noun_for(summary.trials, 'trial')}"
    if not yes and not _confirmed(f"Delete study {name} with {trials}?"):
        click.echo("nothing was deleted", err=True)
        return
    persistence.delete(database, name)
    emit(as_json, DeletedStudy(name, summary.trials), rendered.study_rm)


def _confirmed(question: str) -> bool:
    """Ask a question on the terminal, and return whether the answer is yes.

    Raises:
        InputError: there is no terminal to ask on.
    """
    if not _has_terminal():
        raise InputError("there is no terminal to ask on, so nothing was deleted: add --yes")
    return click.confirm(question, err=True)


def _has_terminal() -> bool:
    return sys.stdin.isatty()
