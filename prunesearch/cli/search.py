"""The commands `search`, `run` and `demo`. They start without torch."""

from pathlib import Path
from typing import Any

import click

from prunesearch.cli.help import Command
from prunesearch.cli.options.execution import THREADS, TRUST
from prunesearch.cli.options.groups import (
    DATA_OPTIONS,
    MODEL_OPTIONS,
    RECIPE_OPTIONS,
    RUN_OPTIONS,
    TRACKING,
)
from prunesearch.cli.options.places import JSON, OUT, STORAGE, STUDY
from prunesearch.cli.options.search import CONFIRM, LLM_OPTIONS, TRIALS, WARM_START_STORAGE
from prunesearch.cli.output import progress
from prunesearch.cli.parameters import misplaced, renamed, typed_names, with_options
from prunesearch.cli.recipe_files import read_recipe
from prunesearch.cli.recipes import grid_of, options_of
from prunesearch.report.emit import emit


@click.command(cls=Command)
@click.argument("model")
@misplaced(
    "--layers",
    "search finds out which layers to drop: give their number, as in --drop 8; evaluate, export, "
    "compensate and heal take a list as --layers",
)
@with_options(*RECIPE_OPTIONS, *LLM_OPTIONS, *DATA_OPTIONS, *MODEL_OPTIONS)
@TRIALS
@CONFIRM
@STUDY
@STORAGE
@WARM_START_STORAGE
@with_options(*RUN_OPTIONS)
@with_options(*TRACKING)
@JSON
def search(as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Search MODEL (Hugging Face id, folder or .gguf file) for the blocks to drop. Run again to
    resume.

    Several samplers and numbers, as in --sampler pso,woa --drop 4,8,12, are searched at once, each
    as its own study.
    """
    recipes, options = grid_of(settings), options_of(settings)
    with progress(loads_torch=True):
        from prunesearch.pipeline.run import report_of
        from prunesearch.pipeline.state import Request
        from prunesearch.report.render import render

        report = report_of("search", Request(options, tuple(recipes)))
    emit(as_json, report, render)


@click.command(cls=Command)
@click.argument("recipe_file", metavar="RECIPE")
@OUT.variant(show_default="storage/exports/STUDY")
@TRIALS
@CONFIRM
@STUDY
@STORAGE
@TRUST
@with_options(*RUN_OPTIONS)
@with_options(*TRACKING)
@JSON
def run(recipe_file: str, out: str | None, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Do what the YAML file RECIPE says: search, choose and recover the best, export, verify,
    evaluate.

    The file has the sections model, data, objective, search, recover and run. Options typed here
    override its section run.
    """
    file = read_recipe(Path(recipe_file), {**settings, "out": out}, typed_names())
    folder = None if file.out is None else Path(file.out)
    with progress(loads_torch=True):
        from prunesearch.pipeline.run import report_of, request_of
        from prunesearch.report.render import render

        request = request_of(tuple(file.recipes), file.options, folder)
        report = report_of("run", request)
    emit(as_json, report, render)


@click.command(cls=Command)
@click.argument("model", required=False)
@renamed("--model", None, "model")
@TRIALS.variant(show_default="160")
@click.option(
    "--home",
    default="storage",
    show_default=True,
    help="Folder for models, study, cache and export.",
)
@THREADS
@with_options(*TRACKING)
@JSON
def demo(
    model: str | None,
    trials: int | None,
    home: str,
    threads: int | None,
    track: str | None,
    track_to: str | None,
    as_json: bool,
) -> None:
    """Search, export and verify a small real model in minutes.

    MODEL is a model of your own; default: SmolLM2-135M-Instruct.
    """
    with progress(loads_torch=True):
        from prunesearch.pipeline.demo import TRIALS, run_demo
        from prunesearch.report.render import render

        options = options_of(
            {
                "storage": f"sqlite:///{home}/study.db",
                "cache": f"{home}/cache",
                "trials": TRIALS if trials is None else trials,
                "threads": threads,
                "track": track,
                "track_to": track_to,
            }
        )
        result = run_demo(model, options, Path(home))
    emit(as_json, result, render)
