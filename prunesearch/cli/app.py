"""Command line. Each command parses its options, calls the library and prints the result.

Results go to stdout, progress and errors to stderr. The exit status is 0 for success, 2 for bad
input (with one line that names the fix), 1 for a failure, 130 for Ctrl-C and 143 for SIGTERM.
Finished work is kept in each case. With ``--json``, a failure is also printed as one JSON document
on stdout.
"""

import errno
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

import prunesearch
from prunesearch.cli.cache import cache, doctor
from prunesearch.cli.compensate import compensate
from prunesearch.cli.heal import heal
from prunesearch.cli.help import Group
from prunesearch.cli.options import (
    AT,
    DATA_OPTIONS,
    EXPORT_FIELDS,
    FORM,
    JSON,
    MODEL_OPTIONS,
    RECIPE_OPTIONS,
    REVISION,
    RUN_OPTIONS,
    SEARCH_RUN_OPTIONS,
    SELECTION_OPTIONS,
    STORAGE,
    TRIALS,
    TRUST,
    grid_of,
    options_of,
    quiet,
    quiet_optuna,
    read_recipe,
    recipe_of,
    selected_by,
    with_options,
)
from prunesearch.config.recipe import RunOptions, validated
from prunesearch.errors import InputError, PruneSearchError, one_line
from prunesearch.report.emit import emit
from prunesearch.runtime import stopping
from prunesearch.runtime.masking import command, masked_text, printable
from prunesearch.units import parse_size

if TYPE_CHECKING:
    from prunesearch.report.progress import ProgressView


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(prunesearch.__version__, prog_name="prunesearch")
def cli() -> None:
    """Find the layers a large language model does not need, drop them, get a checkpoint that just
    loads.
    """


@cli.command()
@click.option("--model", help="A model of your own instead of SmolLM2-135M-Instruct.")
@click.option("--trials", type=int, help="Trials per sampler.  [default: 160]")
@click.option(
    "--home",
    default="storage",
    show_default=True,
    help="Folder for models, study, cache and export.",
)
@click.option("--threads", type=int, help="Torch CPU threads.")
@JSON
def demo(
    model: str | None, trials: int | None, home: str, threads: int | None, as_json: bool
) -> None:
    """Search, export and verify a small real model in minutes."""
    quiet()
    from prunesearch.pipeline.demo import TRIALS, run_demo
    from prunesearch.report import render

    options = validated(
        RunOptions,
        {
            "storage": f"sqlite:///{home}/study.db",
            "cache": f"{home}/cache",
            "trials": TRIALS if trials is None else trials,
            "threads": threads,
        },
    )
    with _progress() as view:
        result = run_demo(model, options, Path(home), view, view.say)
    emit(as_json, result.document(options), render.demo)


@cli.command()
@click.argument("model")
@with_options(*RECIPE_OPTIONS, *DATA_OPTIONS, *MODEL_OPTIONS)
@TRIALS
@click.option("--study", help="Name of the study; default: made from the settings.")
@STORAGE
@with_options(*SEARCH_RUN_OPTIONS)
@JSON
def search(as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Search MODEL (Hugging Face id, folder or .gguf file) for the blocks to drop. Run again to
    resume.

    Several samplers and numbers, as in --sampler pso,woa --drop 4,8,12, are searched at once, each
    as its own study.
    """
    recipes, options = grid_of(settings), options_of(settings)
    quiet()
    from prunesearch.pipeline.run import check_grid, run_searches
    from prunesearch.pipeline.session import open_session
    from prunesearch.report import render

    check_grid(recipes, options)
    with _progress() as view, open_session(recipes[0], options) as session:
        documents = [
            outcome.document(options) for outcome in run_searches(session, recipes, options, view)
        ]
    if len(documents) == 1:
        emit(as_json, documents[0], render.search)
    else:
        emit(as_json, {"searches": documents}, render.grid)


@cli.command()
@click.argument("recipe_file", metavar="RECIPE")
@click.option("--out", help="Folder for the pruned checkpoint; default storage/exports/STUDY.")
@TRIALS
@click.option("--study", help="Name of the study; default: made from the recipe.")
@STORAGE
@TRUST
@with_options(*RUN_OPTIONS)
@JSON
def run(recipe_file: str, out: str | None, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Do what the YAML file RECIPE says: search, choose and recover the best, export, verify,
    evaluate.

    The file may hold what `search` takes, by the same names; options typed here override the file.
    """
    context = click.get_current_context()
    typed = {
        name
        for name in context.params
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE
    }
    file = read_recipe(Path(recipe_file), {**settings, "out": out}, typed)
    recipe, options = file.recipes[0], file.options
    folder = None if file.out is None else Path(file.out)
    quiet()
    from prunesearch.pipeline import run
    from prunesearch.report import render

    if file.recover is not None:
        from prunesearch.pipeline.search_and_recover import RecoverySection, search_and_recover
        from prunesearch.report.healing import HealingView, recovered

        section = validated(RecoverySection, file.recover)
        with _progress() as view:
            healing = HealingView(view)
            document = search_and_recover(recipe, section, options, healing, folder, view)
        emit(as_json, document, recovered)
        return
    with _progress() as view:
        outcomes, exports = run.search_and_export(file.recipes, options, folder, view)
    if len(outcomes) == 1:
        emit(
            as_json,
            {**outcomes[0].document(options), "export": exports[0].document()},
            render.searched_and_exported,
        )
        return
    searches = [outcome.document(options) for outcome in outcomes]
    emit(
        as_json,
        {"searches": searches, "exports": [made.document() for made in exports]},
        render.grid_and_exports,
    )


@cli.command()
@click.argument("model")
@click.option("--drop", "dropped", default="none", help="Evaluate without these blocks: 3,7,12.")
@with_options(*DATA_OPTIONS, *MODEL_OPTIONS, *RUN_OPTIONS)
@JSON
def evaluate(model: str, dropped: str, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Evaluate MODEL, or an export, on --task or --calibration text, with standard errors."""
    recipe = recipe_of(
        {**settings, "model": model, "drop": "1"}
    )  # nothing is searched: the budget is not read
    options = options_of(settings)
    quiet()
    from prunesearch.pipeline.run import evaluate_model
    from prunesearch.report import render

    with _progress():
        document = evaluate_model(recipe, options, dropped)
    emit(as_json, document, render.evaluation)


@cli.command()
@click.argument("target", metavar="STUDY|MODEL")
@click.option(
    "--drop",
    "dropped",
    help="Layers to drop from MODEL: 3,7,12a. Without it, STUDY's best is exported.",
)
@AT
@with_options(*SELECTION_OPTIONS)
@click.option("--out", help="New or empty folder for the checkpoint; with --gguf a new file.")
@FORM
@click.option("--gguf", is_flag=True, help="Write a GGUF for llama.cpp instead.")
@click.option(
    "--max-shard", default="5GB", show_default=True, help="Size of the largest weight file."
)
@click.option(
    "--push-to-hub",
    metavar="OWNER/NAME",
    help="Upload the verified checkpoint, to a private repository.",
)
@click.option(
    "--public", is_flag=True, help="Let --push-to-hub upload to a repository that is public."
)
@click.option(
    "--print", "program", help="Write nothing; print a recipe for mergekit or llama-quantize."
)
@STORAGE
@with_options(*MODEL_OPTIONS, *RUN_OPTIONS)
@JSON
def export(
    target: str,
    dropped: str | None,
    max_loss: str | None,
    max_size: str | None,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Write a pruned checkpoint that plain transformers loads, reload it, and compare it with what
    was scored.
    """
    made = {name: settings.pop(name) for name in EXPORT_FIELDS}
    quiet()
    from prunesearch.pipeline import delivery
    from prunesearch.report import render

    request = delivery.ExportRequest.parse(**made)
    with _progress():
        document = delivery.run_export(
            selected_by(target, dropped, max_loss, max_size, settings), request
        )
    emit(as_json, document, render.delivered)


@cli.command()
@click.argument("folder")
@click.option("--base", help="The dense model, for a full comparison with it.")
@with_options(REVISION, TRUST)
@with_options(*RUN_OPTIONS)
@JSON
def verify(folder: str, base: str | None, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Verify the export in FOLDER, or a GGUF export, again: files, weights, and what it
    computes.
    """
    options = options_of(settings)
    recipe = None if base is None else recipe_of({**settings, "model": base, "drop": "1"})
    quiet()
    from prunesearch.pipeline.delivery import verify_again
    from prunesearch.report import render

    with _progress():
        document = verify_again(Path(folder), recipe, options, settings["trust_remote_code"])
    emit(as_json, document, render.verified)


@cli.command()
@click.argument("model")
@with_options(REVISION, TRUST)
@JSON
def analyze(model: str, revision: str | None, trust_remote_code: bool, as_json: bool) -> None:
    """Count parameters and bytes per layer of MODEL; a config.json is enough."""
    quiet()
    from prunesearch.models.analyze import take_inventory
    from prunesearch.report import render

    with _progress():
        inventory = take_inventory(model, revision=revision, trust_remote_code=trust_remote_code)
    emit(as_json, {"model": model, **asdict(inventory)}, render.inventory)


@cli.command()
@click.argument("model")
@click.option(
    "--memory",
    help="Memory that scoring may use: 24GiB; default: all of the GPU, or of the machine.",
)
@click.option(
    "--candidates", type=int, default=20, show_default=True, help="Candidates in a generation."
)
@click.option(
    "--drop", default="25%", show_default=True, help="How much each candidate drops: 8 or 25%."
)
@click.option(
    "--tokens", type=int, default=1024, show_default=True, help="Calibration tokens scored."
)
@click.option(
    "--kl-top",
    type=int,
    help="KL over the K likeliest tokens and the rest as one; default over all.",
)
@click.option(
    "--requests", type=int, help="Plan for this number of requests of a task instead of --tokens."
)
@click.option("--length", type=int, default=64, show_default=True, help="Tokens in a request.")
@click.option("--device", help="Torch device; default cuda where there is one, else cpu.")
@with_options(*MODEL_OPTIONS)
@JSON
def plan(
    model: str,
    memory: str | None,
    revision: str | None,
    trust_remote_code: bool,
    as_json: bool,
    **asked: Any,  # noqa: ANN401
) -> None:
    """Predict memory, bytes read and time of a search of MODEL, and print the command to run.

    A config.json is enough.
    """
    size = None if memory is None else parse_size(memory, "--memory")
    quiet()
    from prunesearch.execution.memory_plan import Asked, plan
    from prunesearch.report import render

    emit(
        as_json,
        plan(
            model, Asked.of(size, **asked), revision=revision, trust_remote_code=trust_remote_code
        ),
        render.plan,
    )


@cli.group()
def study() -> None:
    """Show, resume and delete studies."""


@study.command("list")
@STORAGE
@JSON
def study_list(storage: str, as_json: bool) -> None:
    """List the studies of a database."""
    from prunesearch.report import study as rendered
    from prunesearch.studies import persistence

    quiet_optuna()
    found = persistence.summaries(persistence.open_storage(storage, create=False))
    emit(as_json, [asdict(summary) for summary in found], rendered.study_list)


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
    from prunesearch.studies import persistence, selection

    quiet_optuna()
    found = persistence.load(persistence.open_storage(storage, create=False), name)
    # All trials of a front are shown.
    count = best if len(found.directions) == 1 else None
    document = {
        **asdict(persistence.summarise(found)),
        "recipe": persistence.recipe_of(found).model_dump(mode="json"),
        "best": [
            persistence.trial_document(trial) for trial in selection.best_trials(found, count)
        ],
    }
    emit(as_json, document, rendered.study_show)


@study.command("best")
@click.argument("name")
@with_options(*SELECTION_OPTIONS)
@STORAGE
@JSON
def study_best(
    name: str, max_loss: str | None, max_size: str | None, storage: str, as_json: bool
) -> None:
    """Print the layers that a study's best trial drops, as --drop of export takes them."""
    from prunesearch.report import study as rendered
    from prunesearch.studies import persistence, selection

    quiet_optuna()
    wanted = selection.SelectionCriteria.parse(max_loss, max_size)
    trial = selection.choose(
        persistence.load(persistence.open_storage(storage, create=False), name), wanted
    )
    emit(as_json, persistence.trial_document(trial), rendered.study_best)


@study.command("layers")
@click.argument("name")
@STORAGE
@JSON
def study_layers(name: str, storage: str, as_json: bool) -> None:
    """Show which layers matter: what dropping each costs, and how often the best trials drop it."""
    from prunesearch.report import study as rendered
    from prunesearch.studies import persistence
    from prunesearch.studies.importance import layer_importances

    quiet_optuna()
    found = persistence.load(persistence.open_storage(storage, create=False), name)
    summary = persistence.summarise(found)  # refuses studies that are not ours
    document = {
        "study": name,
        "metric": found.metric_names[0] if found.metric_names else "value",
        "trials": summary.trials,
        "layers": [asdict(layer) for layer in layer_importances(found)],
    }
    emit(as_json, document, rendered.study_layers)


@study.command("resume")
@click.argument("name")
@AT
@click.option(
    "--calibration", help="Where the study's calibration text is now; its content must be the same."
)
@click.option(
    "--task-data", help="Where the data of the study's task is now; its content must be the same."
)
@click.option(
    "--include-path",
    help="Where the study's task YAML files are now; their content must be the same.",
)
@click.option("--trials", type=int, help="Trials in all; default: as many as were asked for last.")
@TRUST
@STORAGE
@with_options(*RUN_OPTIONS)
@JSON
def study_resume(name: str, trust_remote_code: bool, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Go on with the study NAME, from any folder or machine."""
    options = options_of(settings)
    quiet()
    from prunesearch.config.recipe import PATHS
    from prunesearch.pipeline import run
    from prunesearch.report import render

    location = {place: settings[place] for place in PATHS}
    with _progress() as view:
        outcome = run.resume(
            name, options, trust_remote_code=trust_remote_code, listener=view, **location
        )
    emit(as_json, outcome.document(options), render.search)


@study.command("rm")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@STORAGE
@JSON
def study_rm(name: str, yes: bool, storage: str, as_json: bool) -> None:
    """Delete a study and its trials. Evaluations stay in the cache."""
    from prunesearch.report import study as rendered
    from prunesearch.studies import persistence

    quiet_optuna()
    database = persistence.open_storage(storage, create=False)
    summary = persistence.summarise(
        persistence.load(database, name)
    )  # refuses studies that are not ours
    if not yes and not click.confirm(
        f"Delete study {name} with {summary.trials} trials?", err=True
    ):
        click.echo("nothing was deleted", err=True)
        return
    persistence.delete(database, name)
    emit(as_json, {"deleted": name, "trials": summary.trials}, rendered.study_rm)


cli.add_command(cache)
cli.add_command(compensate)
cli.add_command(doctor)
cli.add_command(heal)


def _progress() -> "ProgressView":
    quiet()
    from prunesearch.report.progress import ProgressView

    return ProgressView()


def main() -> None:
    """Run the command line and turn what goes wrong into one line and an exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault(
            "TQDM_DISABLE", "1"
        )  # the bars of transformers and datasets, in a log
    try:
        with stopping.handled():
            cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        # A group without a command prints its help.
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail("error", " ".join(error.format_message().split()), error, 2)
    except InputError as error:
        _fail("error", str(error), error, 2)
    except PruneSearchError as error:
        _fail("failed", str(error), error, 1)
    except (KeyboardInterrupt, click.Abort) as stop:
        # Click replaces a KeyboardInterrupt by an Abort.
        why = stop.__cause__ or stop
        number: int = signal.SIGINT
        if isinstance(why, stopping.StopRequested):
            number = why.number
        _stopped(128 + number)
    except BrokenPipeError:
        # The reader of our output has closed it, as in `prunesearch study list | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        # A bug, of ours or of a library. The user gets one line in this case too.
        if os.environ.get("PRUNESEARCH_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            _fail(
                "error",
                f"no file can have the name {str(error.filename)!r}: {error.strerror}",
                error,
                2,
            )
        _fail(
            "failed",
            f"{type(error).__name__}: {one_line(error)} (PRUNESEARCH_TRACEBACK=1 shows where)",
            error,
            1,
        )


def _fail(kind: str, message: str, error: Exception, status: int) -> NoReturn:
    """Print an error as one line, and with ``--json`` as a document too, both without secrets."""
    message = printable(masked_text(message))
    click.echo(f"{kind}: {message}", err=True)
    _document_of_failure(message, type(error).__name__, status)
    sys.exit(status)


_RESUMED = ("search", "run", "demo", "evaluate", "export", "heal", "compensate")
"""Commands that resume their work when they are run again, in addition to ``study resume``."""


def _stopped(status: int) -> NoReturn:
    """Print the command that resumes the work. It can be pasted, and contains no secret."""
    if not sys.argv[1:] or (sys.argv[1] not in _RESUMED and sys.argv[1:3] != ["study", "resume"]):
        click.echo("stopped", err=True)
        _document_of_failure("stopped", "StopRequested", status)
        sys.exit(status)
    line, variables = command(["prunesearch", *sys.argv[1:]])
    click.echo("stopped; what is finished is kept. Resume with:", err=True)
    if variables:
        click.echo(f"  # first: export {' '.join(f'{name}=URL' for name in variables)}", err=True)
    click.echo(f"  {line}", err=True)
    _document_of_failure("stopped", "StopRequested", status, resume=line)
    sys.exit(status)


def _document_of_failure(message: str, kind: str, status: int, **more: str) -> None:
    if "--json" in sys.argv[1:]:
        click.echo(json.dumps({"error": message, "kind": kind, "exit": status, **more}, indent=2))


if __name__ == "__main__":
    main()
