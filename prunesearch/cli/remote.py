"""The commands that talk to a server: submit, jobs, watch, pause, resume, stop, cancel, fetch.

They start without torch.
"""

import secrets
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from prunesearch.cli.help import Command, Words
from prunesearch.cli.options.data import INCLUDE_PATH
from prunesearch.cli.options.execution import DTYPE, REVISION
from prunesearch.cli.options.groups import DATA_OPTIONS, RECIPE_OPTIONS
from prunesearch.cli.options.places import INSECURE_HTTP, JSON, OUT, SERVER, STUDY, TOKEN_FILE
from prunesearch.cli.options.search import CONFIRM, DROP, TRIALS
from prunesearch.cli.parameters import typed_names, with_options
from prunesearch.cli.recipe_files import RecipeFile, read_recipe
from prunesearch.cli.recipes import grid_of, options_of
from prunesearch.config.flat import PLACES
from prunesearch.errors import InputError, ServerError
from prunesearch.report.emit import emit, emit_json
from prunesearch.runtime.masking import command as pasted_command
from prunesearch.runtime.masking import printable
from prunesearch.service.job import JobCommand, JobRequest

if TYPE_CHECKING:
    from prunesearch.service.client import Client, Verb

SERVER_OPTIONS = (SERVER, TOKEN_FILE, INSECURE_HTTP)
"""Which server, and how the client shows who it is."""
_LOG = click.option("--log", is_flag=True, help="Show the lines of the job's log too.")
_RECIPE = RECIPE_OPTIONS[1:]  # without --drop, which RECIPE replaces
_RECIPE_SUFFIXES = (".yaml", ".yml", ".json")
_SUBMITTED = ("trials", "study", "confirm")
"""Run options that are submitted. The server decides about the others."""
_DATA = tuple(option for option in DATA_OPTIONS if option is not INCLUDE_PATH)


@click.command(cls=Command)
@click.argument("source", metavar="MODEL|RECIPE", required=False)
@with_options(DROP, *_RECIPE, *_DATA, REVISION, DTYPE)
@click.option(
    "--command",
    "job_command",
    type=click.Choice(("run", "search")),
    default="run",
    show_default=True,
    help="What the job does: all of RECIPE, or its search only.",
)
@TRIALS
@CONFIRM
@STUDY
@click.option("--watch", "watched", is_flag=True, help="Watch the job until it ends.")
@_LOG
@click.option(
    "--idempotency-key",
    help="Key of the submission: the same key makes no second job.  [default: random]",
)
@with_options(*SERVER_OPTIONS)
@JSON
def submit(
    source: str | None,
    job_command: JobCommand,
    watched: bool,
    log: bool,
    idempotency_key: str | None,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Submit a job to a server: a YAML file RECIPE, or MODEL with --drop and the options of search.

    Models and data are named as the server has them: by a path inside its folders.
    """
    request = _request(source, job_command, settings)
    key = idempotency_key or secrets.token_hex(16)
    from prunesearch.service import job_tables

    with _client(settings) as client:
        try:
            job, _ = client.submit(request, key)
        except ServerError as error:
            raise type(error)(
                f"{error}; to submit again without making a second job, add --idempotency-key {key}"
            ) from None
        if not watched:
            emit(as_json, job, job_tables.submitted)
            return
        click.echo(f"submitted {job.id}", err=True)
        _watch(client, job.id, log, as_json)


@click.command(cls=Command)
@click.argument("job", required=False)
@click.option(
    "--state",
    type=Words(("queued", "running", "paused", "finished", "failed", "cancelled")),
    help="List only jobs in this state.",
)
@STUDY.variant(show_default="all")
@click.option("--by", "submitted_by", help="List only jobs that this token submitted.")
@click.option(
    "--last",
    type=click.IntRange(1, 1000),
    default=50,
    show_default=True,
    help="How many jobs to list, the newest first.",
)
@with_options(*SERVER_OPTIONS)
@JSON
def jobs(
    job: str | None,
    state: str | None,
    study: str | None,
    submitted_by: str | None,
    last: int,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """List the jobs of a server, or show JOB."""
    from prunesearch.service import job_tables

    with _client(settings) as client:
        if job is not None:
            emit(as_json, client.job(job), job_tables.job_details)
            return
        page = client.jobs(state=state, study=study, submitted_by=submitted_by, limit=last)
        emit(as_json, page, job_tables.jobs)


@click.command(cls=Command)
@click.argument("job")
@_LOG
@with_options(*SERVER_OPTIONS)
@JSON
def watch(job: str, log: bool, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Watch JOB until it ends, with the progress of a local run. Ctrl-C leaves the job running.

    The exit status is 0 if the job finished, 1 if it failed, and 3 if it was cancelled.
    """
    with _client(settings) as client:
        _watch(client, job, log, as_json)


def _changing(verb: "Verb", text: str) -> click.Command:
    """Return a command that changes the state of a job."""

    def change(job: str, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
        from prunesearch.service import job_tables

        with _client(settings) as client:
            changed = client.change(job, verb)
            emit(as_json, changed, lambda job: job_tables.changed(job, verb))

    change.__doc__ = text
    decorate = with_options(click.argument("job"), *SERVER_OPTIONS, JSON)
    return click.command(verb, cls=Command)(decorate(change))


pause = _changing("pause", "Pause JOB after the step that is under way.")
resume = _changing("resume", "Let a paused JOB go on where it was.")
stop = _changing("stop", "End the search of JOB early, and go on with its best result so far.")
cancel = _changing("cancel", "Cancel JOB. What is finished stays in its study and in the cache.")


@click.command(cls=Command)
@click.argument("job")
@OUT.variant(required=True)
@with_options(*SERVER_OPTIONS)
@JSON
def fetch(job: str, out: str, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Download the export of JOB, check every file, and put the folder in place.

    Run again to continue an interrupted download.
    """
    from prunesearch.report.progress import ProgressView
    from prunesearch.service import download, job_tables

    with _client(settings) as client, ProgressView():
        found = download.fetch(client, job, Path(out))
    emit(as_json, found, job_tables.fetched)


def _client(settings: dict[str, Any]) -> "Client":
    """Return a connection to the server that a command names."""
    from prunesearch.service.client import Client
    from prunesearch.service.credentials import ServerAddress, token_for

    server = ServerAddress.parse(settings["server"])
    file = settings["token_file"]
    token = token_for(
        server, None if file is None else Path(file), insecure_http=settings["insecure_http"]
    )
    return Client(server, token)


def _request(source: str | None, job_command: JobCommand, settings: dict[str, Any]) -> JobRequest:
    """Return what a command line submits.

    Args:
        source: recipe file, or the model if the number of layers to drop is given.
        job_command: command of the job.
        settings: options of the command line.

    Raises:
        InputError: the recipe is not accepted, or is of several searches.
    """
    typed = typed_names()
    is_file = source is not None and source.endswith(_RECIPE_SUFFIXES)
    is_model = settings["drop"] is not None or settings["target"] is not None
    if source is None or not (is_file or is_model or Path(source).is_file()):
        raise InputError("nothing to submit: give a RECIPE.yaml, or MODEL and --drop or --target")
    if is_file or not is_model:
        for name in sorted(typed & PLACES.keys()):
            raise InputError(f"`{name}` goes without RECIPE: write it into {source!r}")
        file = read_recipe(Path(source), _submitted(settings), typed)
    else:
        grid = grid_of(settings | {"model": source})
        file = RecipeFile(grid, options_of(_submitted(settings)), None)
    if len(file.recipes) > 1:
        raise InputError("a job has one sampler and one number to drop: submit each by itself")
    # How a job runs is decided by the server.
    given = file.options.model_fields_set
    for name in sorted(given - {*_SUBMITTED, "storage", "cache"}):
        click.echo(f"warning: the server decides about {name}: it is not submitted", err=True)
    return JobRequest(
        recipe=file.recipes[0].document(),
        command=job_command,
        trials=file.options.trials if "trials" in given else None,
        study=file.options.study,
        confirm=file.options.confirm,
    )


def _submitted(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the run options that are submitted."""
    return {name: settings[name] for name in _SUBMITTED}


def _watch(client: "Client", job_id: str, log: bool, as_json: bool) -> None:
    """Show the progress of a job until it ends, then the job. Set the exit status."""
    from prunesearch.report.progress import ProgressView
    from prunesearch.service import job_tables, watching
    from prunesearch.service.replay import EventClock

    clock = EventClock()
    try:
        with ProgressView(now=clock):
            found = watching.watch(client, job_id, clock.set, log=log)
    except (KeyboardInterrupt, click.Abort) as stop:
        _stopped_watching(job_id, stop, as_json)
    emit(as_json, found, job_tables.watched)
    if found.status:
        click.get_current_context().exit(found.status)


def _stopped_watching(job_id: str, stop: BaseException, as_json: bool) -> NoReturn:
    """Say that the job runs on, and how to watch it again. Set the exit status."""
    words = ["prunesearch", "watch", job_id]
    context = click.get_current_context()
    for name, flag in (("server", "--server"), ("token_file", "--token-file")):
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            words += [flag, str(context.params[name])]
    line, _ = pasted_command(words)
    click.echo("stopped watching, and the job was left as it is. Watch it again with:", err=True)
    click.echo(f"  {printable(line)}", err=True)
    status = 128 + getattr(stop, "number", signal.SIGINT)
    if as_json:
        emit_json({"error": "stopped", "kind": "StopRequested", "exit": status, "resume": line})
    raise click.exceptions.Exit(status)
