"""Do races find the same winner for a fraction of the work?

Live PSO searches on SmolLM2 (8 of 30 blocks), each once on all data and once with `--race`: the
fully scored KL of both winners, and the share of the tokens that the race scores. The dense model's
tokens count too. Both forms share a cache; the tokens are counted from the trials, as if each had
scored its own.

The full searches' stored losses are then raced again, in other random orders of the items. This
gives the share and the loss of the winner with a standard error, and how often a candidate drops
out that is better than its baseline. With `--data`, the same for HellaSwag (6 of 30 blocks).

    python -m benchmarks.races --trials 30 --data hellaswag.jsonl.bz2 \\
        --json benchmarks/results/races.json
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from optuna.trial import FrozenTrial

from benchmarks.races_parts.replay import Known, drop_rates, replayed
from benchmarks.support.inputs import hellaswag, model_folder
from benchmarks.support.record import Record, arguments, precision
from prunesearch.analysis.intervals import standard_error
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.config.identity import study_name
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import BUILTIN_TEXT, Objective
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.pipeline.searches import run_search
from prunesearch.pipeline.session import Session, load_for
from prunesearch.studies import persistence

CHUNKS, WINDOW = 8, 32


@dataclass(frozen=True)
class Run:
    """One search.

    Attributes:
        engine: engine that scored its candidates.
        trials: its trials, by number.
        value: metric of the winner, on all data.
        tokens: tokens that candidates were scored on, the dense model included.
    """

    engine: LocalEngine
    trials: list[FrozenTrial]
    value: float
    tokens: int


def searched(
    loaded: LoadedModel, objective: Objective, recipe: Recipe, trials: int, folder: Path
) -> Run:
    """Run a search in a study of its own, with the cache of the folder."""
    race = recipe.objective.race
    storage = f"sqlite:///{folder}/study-{recipe.search.seed}-{'race' if race else 'full'}.db"
    options = RunOptions(storage=storage, cache=str(folder / "cache"), trials=trials)
    cache = EvaluationCache(options.cache)
    engine = LocalEngine(loaded, objective, cache)
    outcome = run_search(Session(loaded, objective, engine, cache), recipe, options)
    study = persistence.load(persistence.open_storage(storage, create=False), study_name(recipe))
    found = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    # Count the tokens of the dense model, and of each trial up to its last rung.
    sizes = [chunk.tokens for chunk in objective.chunks]
    tokens = sum(sizes)
    for trial in found:
        tokens += sum(sizes[: max(trial.intermediate_values, default=len(sizes))])
    return Run(engine, found, outcome.value, tokens)


def known_of(run: Run, n_layers: int) -> list[Known]:
    """Return the losses of each trial's candidate, from the cache."""
    objective = run.engine.objective
    found = []
    for trial in run.trials:
        candidate = LayerSubset.parse(trial.user_attrs["dropped"], n_layers)
        rows = {}
        for result in run.engine.results.get((chunk, candidate) for chunk in objective.chunks):
            rows[result.chunk.index] = result.rows
        leading = [rows[chunk.index] for chunk in objective.chunks]
        found.append(Known.of(objective, leading))
    return found


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        "Races against full searches",
        {
            "--trials": {"type": int, "default": 36},
            "--seeds": {"type": int, "default": 15},
            "--tokens": {"type": int, "default": 1024},
            "--data": {"type": Path, "help": "HellaSwag .jsonl[.gz|.bz2]; default: KL only"},
            "--limit": {"type": int, "default": 128},
        },
    )
    transformers.logging.disable_progress_bar()
    record = Record("races", options.size)
    torch.set_num_threads(record.threads)
    trials = record.by_size(options.trials, 12, 12)
    tokens = record.by_size(options.tokens, 512, 256)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = {"path": str(model_folder(record, folder)), "dtype": precision()}
        first = Recipe(
            model=model,
            data={"tokens": tokens, "window": record.by_size(WINDOW, 16, 16)},
            search={"drop": "8"},
        )
        loaded = load_for(first.model, RunOptions())
        windows = token_windows(BUILTIN_TEXT, loaded.tokenizer, tokens, first.data.window)
        objective = CalibrationObjective(loaded, windows, KL(), chunk_tokens=tokens // CHUNKS)
        seeds = range(record.by_size(options.seeds, 2, 2))
        _compare(record, "kl", loaded, objective, first, trials, seeds, folder)
        if options.data or record.size == "smoke":
            # lm-eval takes seconds to import.
            from prunesearch.objectives.task import TaskObjective

            limit = record.by_size(options.limit, 32, 8)
            data = str(hellaswag(record, options.data, folder))
            task = TaskObjective(loaded, "hellaswag", data=data, limit=limit)
            recipe = Recipe(
                model=model,
                objective={"task": "hellaswag"},
                data={"task_data": data, "limit": limit},
                search={"drop": "6"},
            )
            _replay_task(record, loaded, task, recipe, trials, folder)
    record.finish(options.json)


def _compare(
    record: Record,
    name: str,
    loaded: LoadedModel,
    objective: Objective,
    first: Recipe,
    trials: int,
    seeds: range,
    folder: Path,
) -> None:
    """Search with each seed, with and without races, and race the full searches again."""
    record.notes["searches"] = []
    studies: list[list[Known]] = []
    lost: list[float] = []
    full_tokens, race_tokens = 0, 0
    for seed in seeds:
        recipe = first.with_changes(seed=seed)
        full = searched(loaded, objective, recipe, trials, folder)
        race = searched(loaded, objective, recipe.with_changes(race=True), trials, folder)
        studies.append(known_of(full, loaded.n_layers))
        full_tokens, race_tokens = full_tokens + full.tokens, race_tokens + race.tokens
        lost.append(race.value - full.value)
        record.notes["searches"].append(
            {
                "seed": seed,
                f"{name}_full": full.value,
                f"{name}_race": race.value,
                "tokens_full": full.tokens,
                "tokens_race": race.tokens,
                "raced_out": sum(trial.state.name == "PRUNED" for trial in race.trials),
            }
        )
        print(record.notes["searches"][-1])
    # A race changes what the swarm does next, so a single search may win or lose by chance.
    record.add(f"mean_{name}_lost_by_racing", statistics.fmean(lost), "<= 0.005")
    record.add(f"mean_{name}_lost_by_racing_stderr", standard_error(lost))
    record.add(f"largest_{name}_lost_by_racing", max(lost))
    record.add("share_of_token_forwards", race_tokens / full_tokens, "<= 0.35")
    record.add("searches", len(seeds))
    _add_replays(record, name, studies)


def _replay_task(
    record: Record,
    loaded: LoadedModel,
    objective: Objective,
    recipe: Recipe,
    trials: int,
    folder: Path,
) -> None:
    """Search on all documents, and race the searches again in chunks of few documents."""
    studies = []
    for seed in range(record.by_size(2, 1, 1)):
        run = searched(loaded, objective, recipe.with_changes(seed=seed), trials, folder)
        studies.append(known_of(run, loaded.n_layers))
    _add_replays(record, objective.metric, studies)


def _add_replays(record: Record, name: str, studies: list[list[Known]]) -> None:
    """Record what races save and lose on stored losses, in random orders of the items."""
    orders = record.by_size(60, 10, 2)
    found = replayed(studies, CHUNKS, orders)
    record.add(f"{name}_replayed_share", found.share)
    record.add(f"{name}_replayed_loss_of_winner", found.loss)
    record.add(f"{name}_replayed_loss_of_winner_stderr", found.loss_stderr)
    record.add(f"{name}_replayed_winners_lost", found.lost)
    for gain, rate in drop_rates(studies, CHUNKS, orders * 20).items():
        record.add(f"{name}_dropped_if_better_by_{gain}_stderr", rate)


if __name__ == "__main__":
    main()
