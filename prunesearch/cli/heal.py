"""The command `heal`. It starts without torch."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from prunesearch.algorithms.registry import names_with
from prunesearch.cli.help import Command, Words
from prunesearch.cli.options import (
    CACHE,
    DEVICE,
    DEVICE_MAP,
    DTYPE,
    EXPORT_FORMAT,
    HELD_OUT,
    HELD_OUT_TOKENS,
    JSON,
    KL_TOP,
    LAYERS,
    MODEL_OF_STUDY,
    OUT,
    REVISION,
    SEED,
    SELECTION_OPTIONS,
    STORAGE,
    THREADS,
    TRUST,
    WINDOW,
)
from prunesearch.cli.output import quiet
from prunesearch.cli.parameters import renamed, with_options
from prunesearch.cli.recipes import options_of, selected_by
from prunesearch.errors import InputError
from prunesearch.report.emit import emit
from prunesearch.runtime import stopping

# The defaults of these options are those of `HealRecipe`. Click gets none, so that each default is
# defined in one place.
TRAINING = (
    click.option(
        "--data",
        help="Text, JSONL, JSON, CSV or Parquet file, or dataset id[:config[:split]]; default: "
        "builtin prose.",
    ),
    HELD_OUT,
    HELD_OUT_TOKENS.variant(show_default="8192"),
    WINDOW.variant(default=None, show_default="256"),
    click.option(
        "--loss",
        type=Words(("lm", "distill", "mix")),
        help="lm: next token; distill: KL to the dense model; default lm.",
    ),
    click.option("--distill-weight", type=float, help="Share of the KL in mix; default 0.5."),
    KL_TOP.variant(show_default="64"),
    click.option("--steps", type=int, help="Optimiser steps; default 4000."),
    click.option("--batch-size", type=int, help="Sequences in a pass; default 8."),
    click.option("--accumulation", type=int, help="Passes in a step; default 1."),
    click.option("--lr", "learning_rate", type=float, help="Peak learning rate; default 2e-4."),
    click.option(
        "--warmup", type=float, help="Share of the steps in which it rises; default 0.03."
    ),
    click.option("--weight-decay", type=float, help="Weight decay of AdamW; default 0."),
    click.option("--rank", type=int, help="Rank of the adapter; default 8."),
    click.option("--alpha", type=float, help="The adapter is scaled by alpha / rank; default 16."),
    click.option("--dropout", type=float, help="Dropout before the adapter; default 0."),
    click.option(
        "--target-modules", help="Linear layers: q_proj,v_proj; default all of the blocks."
    ),
    click.option(
        "--precision",
        type=Words(("float32", "bfloat16")),
        help="Default: bfloat16 where the device computes in it.",
    ),
    click.option(
        "--eval-every",
        type=int,
        help="Steps between evaluations on held-out text, and between checkpoints; default 100.",
    ),
    click.option(
        "--patience",
        type=int,
        help="Evaluations without a new best before training stops; default 5.",
    ),
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
@click.option("--finalist-steps", type=int, help="Steps for each of the --finalists; default 50.")
@with_options(*TRAINING)
@click.option(
    "--tune",
    type=int,
    help="Number of short trials that search learning rate, batch, rank and steps first.",
)
@click.option("--tune-steps", type=int, help="Steps of a tuning trial; default 200.")
@click.option(
    "--tune-sampler",
    type=Words(partial(names_with, "ordinary_parameters")),
    help="Sampler of the tuning; default pso.",
)
@click.option(
    "--tune-pruner", type=Words(("median", "halving")), help="Pruner of the tuning; default median."
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
@CACHE
@JSON
def heal(
    target: str,
    layers: str | None,
    max_loss: str | None,
    max_size: str | None,
    out: str,
    export_format: str,
    compensate: bool,
    checkpointing: bool,
    run_folder: str | None,
    as_json: bool,
    **settings: Any,  # noqa: ANN401
) -> None:
    """Train a pruned model with LoRA, merge it, and write a verified checkpoint.

    Without --layers, STUDY's best trial is healed. Run again to resume.
    """
    run_settings = {
        name: settings[name] for name in ("storage", "device", "device_map", "threads", "cache")
    }
    run_options = options_of(run_settings)
    quiet()
    # Import torch only when the command runs, so that --help stays fast.
    from prunesearch.cache.location import CacheLocation
    from prunesearch.config.recovery import HealRecipe, Recovery, Tuning
    from prunesearch.recovery.recover import HealOptions, check_out, heal_and_export
    from prunesearch.report.healing import healed
    from prunesearch.report.progress import ProgressView

    # Options that were given, sorted into the recipe of healing, the tuning and the finalists.
    given = {name: value for name, value in settings.items() if value is not None}
    recipe = HealRecipe(**{name: given[name] for name in HealRecipe.model_fields if name in given})
    if "distill_weight" in given and recipe.loss != "mix":
        raise InputError(f"--distill-weight goes with --loss mix, not --loss {recipe.loss}")
    if "kl_top" in given and recipe.loss == "lm":
        raise InputError("--kl-top goes with --loss distill or mix, not --loss lm")
    tuning = None
    tuned = {}
    for name in ("steps", "sampler", "pruner"):
        if f"tune_{name}" in given:
            tuned[name] = given[f"tune_{name}"]
    if "tune" in given:
        tuning = Tuning(trials=given["tune"], **tuned)
    elif tuned:
        raise InputError(f"--tune-{next(iter(tuned))} goes with --tune N")
    final: dict[str, Any] = {
        name: given[name] for name in ("finalists", "finalist_steps") if name in given
    }
    if "finalist_steps" in final and "finalists" not in final:
        raise InputError("--finalist-steps goes with --finalists N")
    if "finalists" in final and (
        layers is not None or max_loss is not None or max_size is not None
    ):
        raise InputError(
            "--finalists are a study's best: give STUDY, and leave out --layers, --max-loss and "
            "--max-size"
        )
    recovery = Recovery(**final, compensate=compensate, tune=tuning, heal=recipe)
    # Refuse a bad destination before the model is loaded.
    check_out(Path(out))
    model_settings = {
        name: settings[name] for name in ("revision", "dtype", "trust_remote_code", "model")
    }
    options = HealOptions(
        Path(out),
        CacheLocation.parse(run_options.cache).folder,
        run_options.storage,
        Path(run_folder) if run_folder else None,
        checkpointing,
        export_format,
    )
    with ProgressView():
        chosen = selected_by(target, layers, max_loss, max_size, {**model_settings, **run_settings})
        with stopping.deferred():
            document = heal_and_export(
                chosen.loaded, chosen.ranked, recovery, chosen.facts, options
            )
    emit(as_json, document, healed)
