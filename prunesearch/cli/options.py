"""Options that commands share, and their conversion to a `Recipe` and `RunOptions`."""

import itertools
import logging
import os
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prunesearch.cli.help import Words
from prunesearch.config.recipe import (
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
from prunesearch.errors import InputError, UnknownNameError, one_line
from prunesearch.runtime.masking import CACHE_VARIABLE, STORAGE_VARIABLE
from prunesearch.space import UNITS

if TYPE_CHECKING:
    from prunesearch.pipeline.delivery import SelectedCandidate

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
        type=Words(SAMPLERS),
        default="pso",
        show_default=True,
        help="One, or several: pso,woa.",
    ),
    click.option("--form", type=Words(FORMS), help="What PSO and WOA move; default set."),
    click.option(
        "--preselect/--no-preselect",
        default=True,
        help="A surrogate chooses among the swarm's moves.",
    ),
    click.option("--ranking", type=Words(RANKINGS), help="What to start from; default by sampler."),
    click.option("--asynchronous", is_flag=True, help="PSO and WOA: never wait for a generation."),
    click.option(
        "--population", type=int, help="Trials per generation; default 6 for PSO and WOA, else 16."
    ),
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


def recipe_of(settings: dict[str, Any]) -> Recipe:
    """Build the recipe of a command. Options that were not given keep the recipe's defaults."""
    values = {
        name: settings[name] for name in Recipe.model_fields if settings.get(name) is not None
    }
    # `--weights` holds the weights of the sum and the location of the model's weights.
    values["weights"] = Weights.parse((settings.get("weights") or ("", ""))[0])
    return validated(Recipe, values)


def grid_of(settings: dict[str, Any]) -> list[Recipe]:
    """Build the recipes of ``--sampler pso,woa --drop 4,8``: every sampler with every number."""
    recipes = []
    for sampler in settings["sampler"].split(","):
        for drop in settings["drop"].split(","):
            recipes.append(
                recipe_of({**settings, "sampler": sampler.strip(), "drop": drop.strip()})
            )
    return recipes


def selected_by(
    target: str,
    dropped: str | None,
    max_loss: str | None,
    max_size: str | None,
    settings: dict[str, Any],
) -> "SelectedCandidate":
    """Return the candidate that an export or recovery command names.

    Args:
        target: name of a study, or a model.
        dropped: layers to drop from the model; None if `target` is a study.
        max_loss, max_size: criteria for the study's trial.
        settings: the other options of the command.

    Raises:
        InputError: the options do not go together; see also `delivery`.
    """
    from prunesearch.pipeline import delivery
    from prunesearch.studies.selection import SelectionCriteria

    options, model = options_of(settings), settings.get("model")
    if dropped is not None:
        if model is not None:
            raise InputError(f"--model goes with STUDY; with --drop the model is {target!r}")
        if _is_study(target, options.storage):
            raise InputError(f"{target!r} is a study, and --drop goes with MODEL: leave --drop out")
        recipe = recipe_of({**settings, "model": target, "drop": "1"})  # nothing is searched
        return delivery.from_layers(recipe, options, dropped)
    if target and os.path.exists(target):  # noqa: PTH110 (a study's name may be longer than a file's)
        raise InputError(
            f"{target!r} is a model: say which of its layers to leave out with --drop, or give a "
            f"STUDY"
        )
    if settings["revision"] is not None or settings["dtype"] != "auto":
        raise InputError(
            "--revision and --dtype go with MODEL --drop; a study's model is the one it searched"
        )
    wanted = SelectionCriteria.parse(max_loss, max_size)
    return delivery.from_study(target, options, wanted, settings["trust_remote_code"], model)


def _is_study(target: str, storage: str) -> bool:
    """Return whether a name that is not a path names a study.

    A database that cannot be read has no studies.
    """
    from prunesearch.studies import persistence

    if Path(target).exists():
        return False
    quiet_optuna()
    try:
        persistence.load(persistence.open_storage(storage, create=False), target)
    except InputError:
        return False
    return True


def quiet_optuna() -> None:
    """Let Optuna log warnings and errors only."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def quiet() -> None:
    """Silence libraries, so that the terminal shows our own progress only.

    Our errors contain their messages.
    """
    import transformers

    quiet_optuna()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for name in ("huggingface_hub", "datasets", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)


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


def options_of(settings: Mapping[str, Any]) -> RunOptions:
    """Build the run options of a command."""
    values = {
        name: settings[name] for name in RunOptions.model_fields if settings.get(name) is not None
    }
    place = (settings.get("weights") or ("", None))[1]
    if place is not None:
        values["weights_in"] = place
    return validated(RunOptions, values)


@dataclass(frozen=True)
class RecipeFile:
    """Contents of a YAML recipe file. Its names are those of the options of `search` and `run`.

    Attributes:
        recipes: one recipe, or several if the file lists samplers or numbers.
        options: how the recipes are run.
        out: folder for the export, or None.
        recover: section ``recover``, or None.
    """

    recipes: list[Recipe]
    options: RunOptions
    out: str | None
    recover: dict[str, Any] | None


def read_recipe(path: Path, settings: Mapping[str, Any], given: Container[str]) -> RecipeFile:
    """Read a recipe file.

    Args:
        path: path of the file.
        settings: options of the command.
        given: names of the options that the user typed. They override the file.

    Raises:
        InputError: the file cannot be read, or is not a recipe.
    """
    values = _mapping_in(path)
    # The section of `recover`; an empty one counts as given.
    recover = None
    if "recover" in values:
        recover = values.pop("recover") or {}
    if recover is not None and not isinstance(recover, dict):
        raise InputError(
            f"recover: {recover!r} is not a section: write lines such as 'finalists: 5' below it"
        )
    # Run options: the command line goes before the file.
    merged = dict(settings)
    for name in (*RunOptions.model_fields, "out"):
        if name in values:
            value = values.pop(name)
            if name not in given:
                merged[name] = value
    # One recipe for every sampler with every number.
    lists = {name: _several(values.pop(name)) for name in ("sampler", "drop") if name in values}
    recipes = []
    for chosen in itertools.product(*lists.values()):
        recipes.append(validated(Recipe, {**values, **dict(zip(lists, chosen, strict=True))}))
    # Only the command line can allow a model's own code.
    if settings.get("trust_remote_code"):
        recipes = [recipe.model_copy(update={"trust_remote_code": True}) for recipe in recipes]
    elif any(recipe.trust_remote_code for recipe in recipes):
        raise InputError(
            f"recipe {str(path)!r} says trust_remote_code: a file may come from somebody else, so "
            f"it cannot allow code "
            "to run; read the model's code, then add --trust-remote-code"
        )
    if recover is not None and len(recipes) > 1:
        raise InputError("recover: goes with one sampler and one number to drop: give one of each")
    out = merged.get("out")
    if out is not None and not isinstance(out, str):
        raise InputError(f"out = {out!r}: give the name of a folder, in quotes if it is a number")
    return RecipeFile(recipes, options_of(merged), out, recover)


def _several(value: object) -> list[object]:
    """Return the values of a YAML list ``[pso, woa]`` or of a text ``pso,woa``."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",")]
    if isinstance(value, list) and value:
        return list(value)
    return [value]


def _mapping_in(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file.

    Raises:
        InputError: the file cannot be read, or is not a mapping.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML loader that refuses a repeated key. The standard loader takes the last one."""

        def construct_mapping(
            self, node: yaml.MappingNode, deep: bool = False
        ) -> dict[Hashable, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is given twice", key.start_mark
                    )
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"cannot read recipe {str(path)!r}: {reason}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(
            f"recipe {str(path)!r} is not a mapping: write lines such as 'model: NAME' and 'drop: "
            f"8'"
        )
    return values
