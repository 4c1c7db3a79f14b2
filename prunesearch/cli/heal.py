"""The command `heal`. It starts without torch."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from prunesearch.algorithms.registry import names_with
from prunesearch.cli.help import Command, Words
from prunesearch.cli.options.data import HELD_OUT, HELD_OUT_TOKENS, KL_TOP, WINDOW
from prunesearch.cli.options.execution import (
    DEVICE,
    DEVICE_MAP,
    DTYPE,
    MODEL_OF_STUDY,
    REVISION,
    THREADS,
    TRUST,
    WORKERS,
)
from prunesearch.cli.options.groups import RAY_OPTIONS, SELECTION_OPTIONS, TRACKING
from prunesearch.cli.options.places import CACHE, EXPORT_FORMAT, JSON, OUT, STORAGE
from prunesearch.cli.options.search import LAYERS, SEED
from prunesearch.cli.output import progress, quiet
from prunesearch.cli.parameters import SharedOption, renamed, with_options
from prunesearch.cli.recipes import options_of, source_of
from prunesearch.config.recovery import HealRecipe, Recovery, Tuning
from prunesearch.config.run_options import RunOptions
from prunesearch.config.settings import Settings
from prunesearch.errors import InputError
from prunesearch.report.emit import emit
from prunesearch.runtime.json_values import JsonObject

_RUN_SETTINGS = (
    *("storage", "device", "device_map", "threads", "cache"),
    *("workers", "engine", "ray_address", "gpus_per_worker"),
    *("track", "track_to"),
)
"""Run options of the command."""


def _setting(flag: str, field: str, text: str, **settings: Any) -> SharedOption:  # noqa: ANN401
    """Return an option with the type of a field of `HealRecipe`.

    Help shows the default of the field. Click gets none, so each default is defined in one place.

    Args:
        flag: flag of the option.
        field: name of the field, and of the parameter.
        text: text of the help.
        settings: other arguments of `click.Option`.
    """
    default = HealRecipe.model_fields[field].default
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return SharedOption(
        flag, field, **{"type": type(default), "show_default": shown, "help": text, **settings}
    )


def _default_of(field: str, settings: type[Settings] = HealRecipe) -> str:
    """Return the default of a field, for help."""
    return str(settings.model_fields[field].default)


TRAINING = (
    _setting(
        "--data",
        "data",
        "Training text: text, JSONL, JSON, CSV or Parquet file, or dataset id[:config[:split]].",
        show_default="builtin prose",
    ),
    HELD_OUT,
    HELD_OUT_TOKENS.variant(show_default=_default_of("held_out_tokens")),
    WINDOW.variant(default=None, show_default=_default_of("window")),
    _setting(
        "--loss",
        "loss",
        "lm: next token; distill: KL to the dense model; mix: both.",
        type=Words(("lm", "distill", "mix")),
    ),
    _setting("--distill-weight", "distill_weight", "Share of the KL in mix."),
    KL_TOP.variant(show_default=_default_of("kl_top")),
    _setting("--steps", "steps", "Optimiser steps."),
    _setting("--batch-size", "batch_size", "Sequences in a pass."),
    _setting("--accumulation", "accumulation", "Passes in a step."),
    _setting("--lr", "learning_rate", "Peak learning rate."),
    _setting("--warmup", "warmup", "Share of the steps in which it rises."),
    _setting("--weight-decay", "weight_decay", "Weight decay of AdamW."),
    _setting("--rank", "rank", "Rank of the adapter."),
    _setting("--alpha", "alpha", "The adapter is scaled by alpha / rank."),
    _setting("--dropout", "dropout", "Dropout before the adapter."),
    _setting(
        "--target-modules",
        "target_modules",
        "Linear layers: q_proj,v_proj.",
        show_default="all of the blocks",
    ),
    _setting(
        "--precision",
        "precision",
        "Number type of the training.",
        type=Words(("float32", "bfloat16")),
        show_default="bfloat16 where the device computes in it",
    ),
    _setting(
        "--eval-every",
        "eval_every",
        "Steps between evaluations on held-out text, and between checkpoints.",
    ),
    _setting("--patience", "patience", "Evaluations without a new best before training stops."),
    SEED,
)


@click.command(cls=Command)
@click.argument("target", metavar="STUDY|MODEL")
@LAYERS
@MODEL_OF_STUDY
@with_options(*SELECTION_OPTIONS)
@OUT.variant(required=True)
@EXPORT_FORMAT
@click.option("--compensate", is_flag=True, help="Compensate the dropped layers first.")
@click.option(
    "--finalists",
    type=int,
    help="Number of diverse candidates of STUDY with a short healing; the best is then healed.",
)
@click.option(
    "--finalist-steps",
    type=int,
    help=f"Steps for each of the --finalists; default {_default_of('finalist_steps', Recovery)}.",
)
@with_options(*TRAINING)
@click.option(
    "--tune",
    type=int,
    help="Number of short trials that search learning rate, batch, rank and steps first.",
)
@click.option(
    "--tune-steps",
    type=int,
    help=f"Steps of a tuning trial; default {_default_of('steps', Tuning)}.",
)
@click.option(
    "--tune-sampler",
    type=Words(partial(names_with, "ordinary_parameters")),
    help=f"Sampler of the tuning; default {_default_of('sampler', Tuning)}.",
)
@click.option(
    "--tune-pruner",
    type=Words(("median", "halving")),
    help=f"Pruner of the tuning; default {_default_of('pruner', Tuning)}.",
)
@click.option(
    "--checkpointing",
    is_flag=True,
    help="Compute activations twice: less memory, a third more time.",
)
@renamed("--work", "--run-folder", "run_folder")
@click.option("--run-folder", help="Folder of this run's checkpoints; default storage/heal/DIGEST.")
@STORAGE
@with_options(REVISION, DTYPE, TRUST)
@with_options(DEVICE, DEVICE_MAP, THREADS)
@WORKERS
@with_options(*RAY_OPTIONS)
@with_options(*TRACKING)
@CACHE
@JSON
def heal(
    target: str,
    layers: str | None,
    max_loss: str | None,
    max_size: str | None,
    out: str,
    export_format: str | None,
    compensate: bool,
    checkpointing: bool,
    run_folder: str | None,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Train a pruned model with LoRA, merge it, and write a verified checkpoint.

    Without --layers, STUDY's best trial is healed. Run again to resume.
    """
    run_settings = {name: settings[name] for name in _RUN_SETTINGS}
    run_options = options_of(run_settings)
    _check_engine(run_options, settings["tune"])
    quiet()
    # Import torch only when the command runs, so that --help stays fast.
    from prunesearch.pipeline.export_request import ExportRequest
    from prunesearch.pipeline.run import report_of
    from prunesearch.pipeline.state import Request, TrainingOptions
    from prunesearch.report.render import render

    given = {name: value for name, value in settings.items() if value is not None}
    recovery = _recovery_of(given, compensate)
    chosen = [layers, max_loss, max_size]
    if "finalists" in given and chosen != [None, None, None]:
        raise InputError(
            "--finalists are a study's best: give STUDY, and leave out --layers, --max-loss and "
            "--max-size"
        )
    model_settings = {
        name: settings[name] for name in ("revision", "dtype", "trust_remote_code", "model")
    }
    request = Request(
        run_options,
        source=source_of(target, layers, max_loss, max_size, {**model_settings, **run_settings}),
        export=ExportRequest(Path(out), export_format),
        recovery=recovery,
        training=TrainingOptions(Path(run_folder) if run_folder else None, checkpointing),
    )
    with progress():
        report = report_of("heal", request)
    emit(as_json, report, render)


def _check_engine(options: RunOptions, tune: int | None) -> None:
    """Refuse workers where nothing is run in them.

    Raises:
        InputError: they go with another option, which is missing.
    """
    if options.engine == "ray" and tune is None:
        raise InputError("--engine ray goes with --tune N: the trials of a tuning run in workers")
    if options.engine != "ray" and options.workers > 1:
        raise InputError(f"--workers {options.workers} goes with --engine ray and --tune N")


def _recovery_of(given: JsonObject, compensate: bool) -> Recovery:
    """Build the settings of the recovery from the options that were given.

    Raises:
        InputError: an option goes with another one, which is missing.
    """
    values = {name: given[name] for name in HealRecipe.model_fields if name in given}
    recipe = HealRecipe.of(values)
    if "distill_weight" in given and recipe.loss != "mix":
        raise InputError(f"--distill-weight goes with --loss mix, not --loss {recipe.loss}")
    if "kl_top" in given and recipe.loss == "lm":
        raise InputError("--kl-top goes with --loss distill or mix, not --loss lm")
    final: JsonObject = {}
    for name in ("finalists", "finalist_steps"):
        if name in given:
            final[name] = given[name]
    if "finalist_steps" in final and "finalists" not in final:
        raise InputError("--finalist-steps goes with --finalists N")
    tuning = _tuning_of(given)
    return Recovery.of({**final, "compensate": compensate, "tune": tuning, "heal": recipe})


def _tuning_of(given: JsonObject) -> Tuning | None:
    """Build the settings of the tuning; None without ``--tune``.

    Raises:
        InputError: there are options of the tuning, but not ``--tune``.
    """
    tuned: JsonObject = {}
    for name in ("steps", "sampler", "pruner"):
        if f"tune_{name}" in given:
            tuned[name] = given[f"tune_{name}"]
    if "tune" in given:
        return Tuning.of({"trials": given["tune"], **tuned})
    if tuned:
        raise InputError(f"--tune-{next(iter(tuned))} goes with --tune N")
    return None
