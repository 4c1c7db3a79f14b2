"""The options of the commands."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prunesearch.algorithms.registry import ENCODINGS, REGISTRY
from prunesearch.cli.help import Words
from prunesearch.config.recipe import (
    OBJECTIVES,
    RANKINGS,
    WEIGHT_PLACES,
    RunOptions,
)
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE
from prunesearch.space import UNITS

if TYPE_CHECKING:
    pass

Command = TypeVar("Command", bound=Callable[..., Any])
RECIPE_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--drop",
        required=True,
        help="How much to drop: 8, 25%, ..8 (up to), pareto[:25%]; or several: 4,8.",
    ),
    click.option("--protect", default="", help="Blocks that stay: first:1,last:1 or 0,5-8."),
    click.option(
        "--units", type=Words(UNITS), default="blocks", show_default=True, help="What is dropped."
    ),
    click.option(
        "--keep-pattern",
        is_flag=True,
        help="Drop whole periods of unlike blocks, as llama.cpp needs it.",
    ),
    click.option(
        "--against",
        type=Words(("size", "latency")),
        help="What --drop pareto weighs quality against; default size.",
    ),
    click.option(
        "--sampler",
        type=Words(REGISTRY.names),
        default="pso",
        show_default=True,
        help="One, or several: pso,woa.",
    ),
    click.option("--form", type=Words(ENCODINGS), help="Encoding that a swarm moves; default set."),
    click.option(
        "--preselect/--no-preselect",
        default=True,
        help="A surrogate chooses among the swarm's moves.",
    ),
    click.option("--ranking", type=Words(RANKINGS), help="What to start from; default by sampler."),
    click.option("--asynchronous", is_flag=True, help="Swarms: never wait for a generation."),
    click.option("--population", type=int, help="Trials per generation; default by sampler."),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of the random numbers."
    ),
    click.option(
        "--race",
        is_flag=True,
        help="Stop scoring a candidate once it is surely worse than the best.",
    ),
)
DATA_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--objective",
        help=f"{', '.join(OBJECTIVES)}, or a mix: kl=1,hellaswag=2; default kl, or the task.",
    ),
    click.option(
        "--kl-top",
        type=int,
        help="KL over the K likeliest tokens and one tail bucket; default: all tokens.",
    ),
    click.option(
        "--calibration",
        help="Text, JSONL, JSON, CSV or Parquet file, or dataset id[:config[:split]]; default: "
        "builtin prose.",
    ),
    click.option(
        "--tokens", type=int, default=1024, show_default=True, help="Calibration tokens scored."
    ),
    click.option(
        "--window",
        type=int,
        default=256,
        show_default=True,
        help="Tokens per calibration sequence, BOS included.",
    ),
    click.option("--task", help="lm-eval task or group of multiple-choice or log-likelihood type."),
    click.option("--task-data", help="Local .jsonl[.gz|.bz2] instead of the task's own data."),
    click.option("--include-path", help="Folder with task YAML files of your own."),
    click.option(
        "--metric", help="Metric of the task; default acc_norm where it has it, else its first."
    ),
    click.option("--limit", type=int, help="Documents of the task; default all."),
    click.option("--num-fewshot", type=int, help="Few-shot examples; default the task's."),
    click.option(
        "--batch-tokens", type=int, help="Tokens per pass of a task; default 2048, on a GPU 16384."
    ),
)
# A password belongs into ~/.pgpass or into the variable: other users of the machine can read
# command lines.
STORAGE = click.option(
    "--storage",
    default=RunOptions().storage,
    show_default=True,
    envvar=STORAGE_VARIABLE,
    show_envvar=True,
    help="Optuna RDB URL of the studies. Keep its password in ~/.pgpass.",
)
CACHE = click.option(
    "--cache",
    default=RunOptions().cache,
    show_default=True,
    envvar=CACHE_VARIABLE,
    show_envvar=True,
    help="The cache: DIR, URL or DIR,URL. Keep a password in ~/.pgpass.",
)
REVISION = click.option("--revision", help="Branch, tag or commit of a Hugging Face id.")
TRUST = click.option(
    "--trust-remote-code", is_flag=True, help="Run modelling code that ships with the model."
)
DTYPE = click.option(
    "--dtype",
    type=Words(("auto", "bfloat16", "float16", "float32")),
    default="auto",
    show_default=True,
    help="Number type of weights and arithmetic.",
)
MODEL_OPTIONS: tuple[Callable[[Any], Any], ...] = (REVISION, DTYPE, TRUST)
_ON_A_MACHINE: tuple[Callable[[Any], Any], ...] = (
    click.option("--device", help="Torch device; default cuda where there is one, else cpu."),
    click.option("--device-map", help="Passed to accelerate, e.g. auto."),
    click.option("--threads", type=int, help="Torch CPU threads."),
    click.option(
        "--state-memory",
        default=RunOptions().state_memory,
        show_default=True,
        help="Memory for hidden states.",
    ),
    click.option(
        "--workers",
        type=int,
        default=1,
        show_default=True,
        help="Processes that score, each with a model.",
    ),
    CACHE,
)
RUN_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    *_ON_A_MACHINE,
    click.option(
        "--weights",
        multiple=True,
        callback=lambda _, __, given: _place_of_weights(given),
        help="Where the model's weights are: memory, stream (from disk, layer by layer) or host.",
    ),
)
SEARCH_RUN_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    *_ON_A_MACHINE,
    click.option(
        "--weights",
        multiple=True,
        callback=lambda _, __, given: _split_weights(given),
        help="memory, stream (from disk, layer by layer) or host; also quality=1,size=0,latency=0, "
        "the optimised sum.",
    ),
)
AT = click.option(
    "--model", help="Where STUDY's model is now; its content must be what was searched."
)
TRIALS = click.option(
    "--trials",
    type=int,
    help=f"Trials in all.  [default: {RunOptions().trials}, or what the sampler needs]",
)
SELECTION_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--max-loss",
        help="The smallest that loses no more: 2% of the dense quality, or 0.05 of the metric.",
    ),
    click.option("--max-size", help="The best that is not larger: 100MiB."),
)
FORM = click.option(
    "--as",
    "form",
    type=Words(("plain", "zeroed", "deci", "remote-code")),
    default="plain",
    show_default=True,
    help="Format of the checkpoint. Dropped sublayers need another format than plain.",
)
EXPORT_FIELDS = ("out", "form", "gguf", "max_shard", "push_to_hub", "public", "program")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def with_options(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Decorate a command with options, in the order of its help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _split_weights(given: Sequence[str]) -> tuple[str, str | None]:
    """Split the values of ``--weights`` into the weights of the optimised sum and the location of
    the model's weights.

    Raises:
        UnknownNameError: a value is neither a location nor of the form ``name=weight``.
    """
    sums: list[str] = []
    place = None
    for word in given:
        if word not in WEIGHT_PLACES:
            sums.append(word)
        elif place != "resident":
            place = word
    for word in sums:
        if "=" not in word:
            raise UnknownNameError("place of weights", word, WEIGHT_PLACES)
    # "resident" is another word for "memory", and it wins.
    if place == "resident":
        place = "memory"
    return ",".join(sums), place


def _place_of_weights(given: Sequence[str]) -> tuple[str, str | None]:
    """``--weights`` of a command that optimises nothing.

    Raises:
        InputError: it names the weights of the sum.
    """
    sums, place = _split_weights(given)
    if sums:
        raise InputError(
            f"--weights {sums} goes with search, or into a recipe file; here it says where the "
            f"model's weights are: "
            "memory, stream or host"
        )
    return sums, place
