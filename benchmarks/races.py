"""Do races find the same winner for a fraction of the work?

Live PSO searches on SmolLM2 (8 of 30 blocks), each once on all data and once with `--race`: the
fully scored KL of both winners, and the tokens that candidates were scored on. Replayed on the full
searches' stored results: how often the race, run against the best before each generation, would
have dropped the search's winner, or any trial that was a new best.

    python -m benchmarks.races --json benchmarks/results/races.json
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from optuna.trial import FrozenTrial

from benchmarks.support.inputs import model_folder
from benchmarks.support.record import Record, arguments, precision
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.config.identity import study_name
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.race import is_worse, rungs
from prunesearch.pipeline.searches import run_search
from prunesearch.pipeline.session import Session, load_for
from prunesearch.studies import persistence

CHUNK_TOKENS, WINDOW = 128, 32


@dataclass(frozen=True)
class Run:
    """One search."""

    engine: LocalEngine
    trials: list[FrozenTrial]
    winner: LayerSubset
    kl: float


def searched(loaded: LoadedModel, recipe: Recipe, trials: int, folder: Path) -> Run:
    """Search with a cache of its own."""
    options = RunOptions(
        storage=f"sqlite:///{folder}/study.db", cache=str(folder / "cache"), trials=trials
    )
    windows = token_windows(BUILTIN_TEXT, loaded.tokenizer, recipe.data.tokens, recipe.data.window)
    objective = CalibrationObjective(loaded, windows, KL(), chunk_tokens=CHUNK_TOKENS)
    cache = EvaluationCache(options.cache)
    engine = LocalEngine(loaded, objective, cache)
    outcome = run_search(Session(loaded, objective, engine, cache), recipe, options)
    study = persistence.load(
        persistence.open_storage(options.storage, create=False), study_name(recipe)
    )
    return Run(
        engine, study.get_trials(deepcopy=False), outcome.best.candidate, outcome.best.metrics["kl"]
    )


def replay(run: Run, population: int, n_layers: int) -> tuple[int, int, bool]:
    """New bests, how many of them the race would have dropped, and whether the winner was among
    these.
    """
    chunks = len(run.engine.objective.chunks)
    done = [t for t in sorted(run.trials, key=lambda t: t.number) if t.values]
    bests, dropped, lost = 0, 0, False
    for start in range(0, len(done), population):
        baseline = min(done[:start] or done[:1], key=lambda t: t.values[0])
        leader = min(done[start : start + population], key=lambda t: t.values[0])
        if leader.values[0] >= baseline.values[0]:
            continue
        bests += 1
        candidate, other = (
            LayerSubset.parse(t.user_attrs["dropped"], n_layers) for t in (leader, baseline)
        )
        losses, against = _losses(run, candidate), _losses(run, other)
        raced_out = any(
            is_worse(losses[: len(losses) * rung // chunks], against) for rung in rungs(chunks)[:-1]
        )
        dropped += raced_out
        lost |= raced_out and candidate == run.winner
    return bests, dropped, lost


def _losses(run: Run, candidate: LayerSubset) -> list[float]:
    objective = run.engine.objective
    stored = {}
    for result in run.engine.results.get((c, candidate) for c in objective.chunks):
        stored[result.chunk.index] = result.rows
    return list(objective.losses([stored[chunk.index] for chunk in objective.chunks]))


def main() -> None:
    """Run the benchmark."""
    options = arguments(
        "Races against full searches",
        {"--trials": {"type": int, "default": 36}, "--tokens": {"type": int, "default": 1024}},
    )
    transformers.logging.disable_progress_bar()
    record = Record("races", options.size)
    torch.set_num_threads(record.threads)
    seeds = range(record.by_size(5, 1, 1))
    trials = record.by_size(options.trials, 12, 12)
    tokens = record.by_size(options.tokens, 512, 256)
    with tempfile.TemporaryDirectory() as scratch:
        model = str(model_folder(record, Path(scratch)))
        recipes = [
            Recipe(
                model={"path": model, "dtype": precision()},
                data={"tokens": tokens, "window": WINDOW},
                search={"drop": "8", "seed": seed},
            )
            for seed in seeds
        ]
        loaded = load_for(recipes[0].model, RunOptions())
        _compare(record, loaded, recipes, trials)
    record.finish(options.json)


def _compare(record: Record, loaded: LoadedModel, recipes: list[Recipe], trials: int) -> None:
    """Search each recipe with and without races."""
    record.notes["searches"] = []
    worst = 0.0
    full_tokens = race_tokens = bests = dropped = lost = 0
    for recipe in recipes:
        with tempfile.TemporaryDirectory() as scratch:
            for name in ("full", "race"):
                (Path(scratch) / name).mkdir()
            full = searched(loaded, recipe, trials, Path(scratch) / "full")
            race = searched(loaded, recipe.with_changes(race=True), trials, Path(scratch) / "race")
            better, gone, winner_lost = replay(full, 6, loaded.n_layers)
        full_tokens, race_tokens = (
            full_tokens + full.engine.results.tokens,
            race_tokens + race.engine.results.tokens,
        )
        bests, dropped, lost = bests + better, dropped + gone, lost + winner_lost
        worst = max(worst, race.kl - full.kl)
        record.notes["searches"].append(
            {
                "seed": recipe.search.seed,
                "kl_full": full.kl,
                "kl_race": race.kl,
                "winner_full": full.winner.text,
                "winner_race": race.winner.text,
                "tokens_full": full.engine.results.tokens,
                "tokens_race": race.engine.results.tokens,
                "raced_out": sum(t.state.name == "PRUNED" for t in race.trials),
            }
        )
        print(record.notes["searches"][-1])
    record.add("largest_kl_lost_by_racing", worst, "<= 0.005")
    record.add("share_of_token_forwards", race_tokens / full_tokens, "<= 0.4")
    record.add("searches", len(recipes))
    record.add("replayed_winners_dropped", lost)
    record.add("replayed_new_bests", bests)
    record.add("replayed_new_bests_dropped", dropped)


if __name__ == "__main__":
    main()
