"""The command line: commands parse, call and print.

Results go to stdout, progress and errors to stderr. Exit status 0; 2 for bad input, with one line that names the fix; 1
for a failure or Ctrl-C, with nothing finished lost.
"""

import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

import prunesearch
from prunesearch.cli_store import cache, doctor
from prunesearch.errors import InputError, PruneSearchError, UnknownNameError, one_line
from prunesearch.quantity import parse_size
from prunesearch.recipe import (
    FORMS,
    OBJECTIVES,
    RANKINGS,
    SAMPLERS,
    WEIGHT_PLACES,
    Recipe,
    RunOptions,
    Weights,
    validated,
)
from prunesearch.report.emit import emit
from prunesearch.space import UNITS

if TYPE_CHECKING:
    from prunesearch.report.progress import ProgressView

Command = TypeVar("Command", bound=Callable[..., Any])
_RECIPE_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--drop", required=True, help="How much to drop: 8, 25%, ..8 (up to), pareto[:25%]; or several: 4,8."),
    click.option("--protect", default="", help="Blocks that stay: first:1,last:1 or 0,5-8."),
    click.option("--units", default="blocks", show_default=True, help=f"What is dropped: {' or '.join(UNITS)}."),
    click.option("--against", help="Weigh quality against size or latency in --drop pareto; default size."),
    click.option("--sampler", default="pso", show_default=True, help=f"{', '.join(SAMPLERS)}; or several: pso,woa."),
    click.option("--form", help=f"PSO and WOA as: {', '.join(FORMS)}; default set."),
    click.option("--preselect/--no-preselect", default=True, help="A surrogate chooses among the swarm's moves."),
    click.option("--ranking", help=f"What to start from: {', '.join(RANKINGS)}; default by sampler."),
    click.option("--asynchronous", is_flag=True, help="PSO and WOA: never wait for a generation."),
    click.option("--population", type=int, help="Trials per generation; default 6 for PSO and WOA, else 16."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers."),
    click.option("--race", is_flag=True, help="Stop scoring a candidate once it is surely worse than the best."),
)
_DATA_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--objective", help=f"{', '.join(OBJECTIVES)}, or a mix: kl=1,hellaswag=2; default kl, or the task."),
    click.option("--kl-top", type=int, help="KL over the K likeliest tokens and the rest as one; default over all."),
    click.option("--calibration", help="Text file, JSONL, or dataset id[:config[:split]]; default: builtin prose."),
    click.option("--tokens", type=int, default=1024, show_default=True, help="Calibration tokens scored."),
    click.option("--window", type=int, default=256, show_default=True, help="Tokens per calibration sequence."),
    click.option("--task", help="lm-eval task or group of multiple-choice or log-likelihood type."),
    click.option("--task-data", help="Local .jsonl[.gz|.bz2] instead of the task's own data."),
    click.option("--include-path", help="Folder with task YAML files of your own."),
    click.option("--metric", help="Metric of the task; default acc_norm where it has it, else its first."),
    click.option("--limit", type=int, help="Documents of the task; default all."),
    click.option("--num-fewshot", type=int, help="Few-shot examples; default the task's."),
    click.option("--batch-tokens", type=int, help="Tokens per pass of a task; default 2048, on a GPU 16384."),
)
_REVISION = click.option("--revision", help="Branch, tag or commit of a Hugging Face id.")
_TRUST = click.option("--trust-remote-code", is_flag=True, help="Run modelling code that ships with the model.")
_DTYPE = click.option("--dtype", default="auto", show_default=True, help="auto, bfloat16, float16 or float32.")
_MODEL_OPTIONS: tuple[Callable[[Any], Any], ...] = (_REVISION, _DTYPE, _TRUST)
_RUN_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--device", help="Torch device; default cuda where there is one, else cpu."),
    click.option("--device-map", help="Given to accelerate, e.g. auto."),
    click.option("--threads", type=int, help="Torch CPU threads."),
    click.option(
        "--weights",
        multiple=True,
        callback=lambda _, __, given: _split_weights(given),
        help="memory, stream (from disk, layer by layer) or host; also quality=1,size=0,latency=0, the optimised sum.",
    ),
    click.option("--state-memory", default=RunOptions().state_memory, show_default=True, help="For hidden states."),
    click.option("--workers", type=int, default=1, show_default=True, help="Processes that score, each with a model."),
    click.option("--cache", default=RunOptions().cache, show_default=True, help="The cache: DIR, URL or DIR,URL."),
)
_STORAGE = click.option(
    "--storage", default=RunOptions().storage, show_default=True, help="Optuna RDB URL of the studies."
)
_WANTED: tuple[Callable[[Any], Any], ...] = (
    click.option("--max-loss", help="The smallest that loses no more: 2% of the dense quality, or 0.05 of the metric."),
    click.option("--max-size", help="The best that is no larger: 100MiB."),
)
_DELIVERY = ("out", "form", "gguf", "max_shard", "push_to_hub", "program")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def _with(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(prunesearch.__version__, prog_name="prunesearch")
def cli() -> None:
    """Find the layers a large language model does not need, drop them, get a checkpoint that just loads."""


@cli.command()
@click.option("--model", help="A model of your own instead of SmolLM2-135M-Instruct.")
@click.option("--trials", type=int, help="Trials per sampler.  [default: 160]")
@click.option("--home", default="storage", show_default=True, help="Folder for models, study, cache and export.")
@click.option("--threads", type=int, help="Torch CPU threads.")
@_JSON
def demo(model: str | None, trials: int | None, home: str, threads: int | None, as_json: bool) -> None:
    """Search, export and verify a small real model, from nothing, in minutes."""
    _quiet()
    from prunesearch.demo import TRIALS, run_demo
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
@_with(*_RECIPE_OPTIONS, *_DATA_OPTIONS, *_MODEL_OPTIONS)
@click.option("--trials", type=int, default=RunOptions().trials, show_default=True, help="Trials in all.")
@click.option("--study", help="Name of the study; default: made from the settings.")
@_STORAGE
@_with(*_RUN_OPTIONS)
@_JSON
def search(as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Search MODEL (Hugging Face id, folder or .gguf file) for the blocks to drop. Run again to resume.

    Several samplers and numbers, as in --sampler pso,woa --drop 4,8,12, are searched at once, each as its own study.
    """
    recipes, options = _grid(settings), _options(settings)
    _quiet()
    from prunesearch.pipeline import check_grid, open_bench, run_searches
    from prunesearch.report import render

    check_grid(recipes, options)
    with open_bench(recipes[0], options) as bench, _progress() as view:
        documents = [outcome.document(options) for outcome in run_searches(bench, recipes, options, view)]
    if len(documents) == 1:
        emit(as_json, documents[0], render.search)
    else:
        emit(as_json, {"searches": documents}, render.grid)


@cli.command()
@click.argument("recipe_file", metavar="RECIPE")
@click.option("--out", help="Folder for the pruned checkpoint; default storage/exports/STUDY.")
@click.option("--trials", type=int, default=RunOptions().trials, show_default=True, help="Trials in all.")
@click.option("--study", help="Name of the study; default: made from the recipe.")
@_STORAGE
@_with(*_RUN_OPTIONS)
@_JSON
def run(recipe_file: str, out: str | None, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Do what the YAML file RECIPE says: search, export the best, verify it."""
    recipe, options = _read_recipe(Path(recipe_file)), _options(settings)
    _quiet()
    from prunesearch import pipeline
    from prunesearch.report import render

    with _progress() as view:
        outcome, exported = pipeline.run(recipe, options, Path(out) if out else None, view)
    document = {**outcome.document(options), "export": exported.document()}
    emit(as_json, document, render.searched_and_exported)


@cli.command()
@click.argument("model")
@click.option("--drop", "dropped", default="none", help="Evaluate without these blocks: 3,7,12.")
@_with(*_DATA_OPTIONS, *_MODEL_OPTIONS, *_RUN_OPTIONS)
@_JSON
def evaluate(model: str, dropped: str, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Evaluate MODEL, or an export, on --task or --calibration text, with standard errors."""
    recipe = _recipe({**settings, "model": model, "drop": "1"})  # nothing is searched: the budget is not read
    options = _options(settings)
    _quiet()
    from prunesearch.pipeline import evaluate_model
    from prunesearch.report import render

    emit(as_json, evaluate_model(recipe, options, dropped), render.evaluation)


@cli.command()
@click.argument("target", metavar="STUDY|MODEL")
@click.option("--drop", "dropped", help="Layers to drop from MODEL: 3,7,12a. Without it, STUDY's best is exported.")
@_with(*_WANTED)
@click.option("--out", help="New or empty folder for the checkpoint; with --gguf a new file.")
@click.option("--as", "form", default="plain", show_default=True, help="For sublayers: zeroed, deci or remote-code.")
@click.option("--gguf", is_flag=True, help="Write a GGUF for llama.cpp instead.")
@click.option("--max-shard", default="5GB", show_default=True, help="Size of the largest weight file.")
@click.option("--push-to-hub", metavar="OWNER/NAME", help="Upload the verified checkpoint, to a private repository.")
@click.option("--print", "program", help="Write nothing; say it to mergekit or llama-quantize.")
@_STORAGE
@_with(*_MODEL_OPTIONS, *_RUN_OPTIONS)
@_JSON
def export(
    target: str,
    dropped: str | None,
    max_loss: str | None,
    max_size: str | None,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Write a pruned checkpoint that plain transformers loads, reload it, and compare it with what was scored."""
    options, made = _options(settings), {name: settings.pop(name) for name in _DELIVERY}
    if dropped is None and (settings["revision"] is not None or settings["dtype"] != "auto"):
        raise InputError("--revision and --dtype go with MODEL --drop; a study's model is the one it searched")
    _quiet()
    from prunesearch import delivery
    from prunesearch.report import render
    from prunesearch.store.selection import Wanted

    wish = delivery.Wish.parse(**made)
    if dropped is None:
        wanted = Wanted.parse(max_loss, max_size)
        chosen = delivery.from_study(target, options, wanted, settings["trust_remote_code"])
    else:
        recipe = _recipe({**settings, "model": target, "drop": "1"})  # nothing is searched
        chosen = delivery.from_layers(recipe, options, dropped)
    emit(as_json, delivery.deliver(chosen, wish), render.delivered)


@cli.command()
@click.argument("folder")
@click.option("--base", help="The dense model, for a full comparison with it.")
@_with(_REVISION, _TRUST)
@_with(*_RUN_OPTIONS)
@_JSON
def verify(folder: str, base: str | None, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Verify the export in FOLDER again: files, weights, and what it computes."""
    options = _options(settings)
    recipe = None if base is None else _recipe({**settings, "model": base, "drop": "1"})
    _quiet()
    from prunesearch.delivery import verify_again
    from prunesearch.report import render

    emit(as_json, verify_again(Path(folder), recipe, options, settings["trust_remote_code"]), render.verified)


@cli.command()
@click.argument("model")
@_with(_REVISION, _TRUST)
@_JSON
def analyze(model: str, revision: str | None, trust_remote_code: bool, as_json: bool) -> None:
    """Count parameters and bytes per layer of MODEL; a bare config.json will do."""
    _quiet()
    from prunesearch.model.inventory import take_inventory
    from prunesearch.report import render

    inventory = take_inventory(model, revision=revision, trust_remote_code=trust_remote_code)
    emit(as_json, {"model": model, **asdict(inventory)}, render.inventory)


@cli.command()
@click.argument("model")
@click.option("--memory", help="What scoring may take: 24GiB; default all of the GPU, or of the machine.")
@click.option("--candidates", type=int, default=20, show_default=True, help="Of a generation.")
@click.option("--drop", default="25%", show_default=True, help="Of each candidate: 8 or 25%.")
@click.option("--tokens", type=int, default=1024, show_default=True, help="Calibration tokens scored.")
@click.option("--kl-top", type=int, help="KL over the K likeliest tokens and the rest as one; default over all.")
@click.option("--requests", type=int, help="Plan for so many requests of a task instead of --tokens.")
@click.option("--length", type=int, default=64, show_default=True, help="Tokens of a request.")
@click.option("--device", help="Torch device; default cuda where there is one, else cpu.")
@_with(*_MODEL_OPTIONS)
@_JSON
def plan(
    model: str,
    memory: str | None,
    revision: str | None,
    trust_remote_code: bool,
    as_json: bool,
    **asked: Any,  # noqa: ANN401
) -> None:
    """Predict memory, reading and time of a generation of MODEL, a bare config.json too, and say how to run it."""
    size = None if memory is None else parse_size(memory, "--memory")
    _quiet()
    from prunesearch.report import render
    from prunesearch.scoring.plan import Asked, plan

    emit(
        as_json,
        plan(model, Asked.of(size, **asked), revision=revision, trust_remote_code=trust_remote_code),
        render.plan,
    )


@cli.group()
def study() -> None:
    """Look at studies and delete them."""


@study.command("list")
@_STORAGE
@_JSON
def study_list(storage: str, as_json: bool) -> None:
    """List the studies of a database."""
    from prunesearch.report import render
    from prunesearch.store import studies

    _quiet_optuna()
    found = studies.summaries(studies.open_storage(storage, create=False))
    emit(as_json, [asdict(summary) for summary in found], render.study_list)


@study.command("show")
@click.argument("name")
@click.option("--best", default=5, show_default=True, help="How many of the best trials to show; all of a front.")
@_STORAGE
@_JSON
def study_show(name: str, best: int, storage: str, as_json: bool) -> None:
    """Show a study: its recipe, its counts and its best trials."""
    from prunesearch.report import render
    from prunesearch.store import selection, studies

    _quiet_optuna()
    found = studies.load(studies.open_storage(storage, create=False), name)
    document = {
        **asdict(studies.summarise(found)),
        "recipe": studies.recipe_of(found).model_dump(mode="json"),
        "best": [
            studies.trial_document(trial)
            for trial in selection.best_trials(found, best if len(found.directions) == 1 else None)
        ],
    }
    emit(as_json, document, render.study_show)


@study.command("best")
@click.argument("name")
@_with(*_WANTED)
@_STORAGE
@_JSON
def study_best(name: str, max_loss: str | None, max_size: str | None, storage: str, as_json: bool) -> None:
    """Print the layers that a study's best trial drops, as --drop of export takes them."""
    from prunesearch.report import render
    from prunesearch.store import selection, studies

    _quiet_optuna()
    wanted = selection.Wanted.parse(max_loss, max_size)
    trial = selection.choose(studies.load(studies.open_storage(storage, create=False), name), wanted)
    emit(as_json, studies.trial_document(trial), render.study_best)


@study.command("rm")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_STORAGE
@_JSON
def study_rm(name: str, yes: bool, storage: str, as_json: bool) -> None:
    """Delete a study and its trials. Evaluations stay in the cache."""
    from prunesearch.report import render
    from prunesearch.store import studies

    _quiet_optuna()
    database = studies.open_storage(storage, create=False)
    summary = studies.summarise(studies.load(database, name))  # refuses studies that are not ours
    if not yes and not click.confirm(f"Delete study {name} with {summary.trials} trials?", err=True):
        click.echo("nothing was deleted", err=True)
        return
    studies.delete(database, name)
    emit(as_json, {"deleted": name, "trials": summary.trials}, render.study_rm)


cli.add_command(cache)
cli.add_command(doctor)


def _recipe(settings: dict[str, Any]) -> Recipe:
    """The recipe in a command's settings; what was not given keeps the recipe's default."""
    values = {name: settings[name] for name in Recipe.model_fields if settings.get(name) is not None}
    if "objective" not in values:
        values["objective"] = "task" if values.get("task") else "kl"
    values["weights"] = Weights.parse((settings.get("weights") or ("", ""))[0])
    return validated(Recipe, values)


def _grid(settings: dict[str, Any]) -> list[Recipe]:
    """The recipes of ``--sampler pso,woa --drop 4,8``: every sampler with every number."""
    samplers, drops = ([word.strip() for word in settings[name].split(",")] for name in ("sampler", "drop"))
    return [_recipe({**settings, "sampler": sampler, "drop": drop}) for sampler in samplers for drop in drops]


def _split_weights(given: Sequence[str]) -> tuple[str, str | None]:
    """``--weights`` says two things by one name: what is optimised, and where the model's weights are."""
    places = [word for word in given if word in WEIGHT_PLACES]
    sums = [word for word in given if word not in WEIGHT_PLACES]
    if any("=" not in word for word in sums):
        raise UnknownNameError("place of weights", next(w for w in sums if "=" not in w), WEIGHT_PLACES)
    return ",".join(sums), "memory" if "resident" in places else places[-1] if places else None


def _options(settings: dict[str, Any]) -> RunOptions:
    values = {name: settings[name] for name in RunOptions.model_fields if settings.get(name) is not None}
    place = (settings.get("weights") or ("", None))[1]
    return validated(RunOptions, values if place is None else {**values, "weights_in": place})


def _read_recipe(path: Path) -> Recipe:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read recipe {str(path)!r}: {one_line(error)}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"recipe {str(path)!r} is not a mapping: write lines such as 'model: NAME' and 'drop: 8'")
    if "drop" in values:
        values["drop"] = str(values["drop"])
    return validated(Recipe, values)


def _progress() -> "ProgressView":
    _quiet()
    from prunesearch.report.progress import ProgressView

    return ProgressView()


def _quiet_optuna() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _quiet() -> None:
    """Leave the terminal to our own progress; what libraries have to say is in the errors we raise."""
    import transformers

    _quiet_optuna()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for name in ("huggingface_hub", "datasets", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(status)


def main() -> None:
    """Run the command line and turn what goes wrong into one line and an exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of transformers and datasets, in a log
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        _fail(f"error: {' '.join(error.format_message().split())}", 2)
    except InputError as error:
        _fail(f"error: {error}", 2)
    except PruneSearchError as error:
        _fail(f"failed: {error}", 1)
    except (KeyboardInterrupt, click.Abort):
        _fail(
            f"stopped; every finished evaluation is kept. Resume with:\n  {shlex.join(['prunesearch', *sys.argv[1:]])}",
            1,
        )


if __name__ == "__main__":
    main()
