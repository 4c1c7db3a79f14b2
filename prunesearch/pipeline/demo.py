"""The demo: a search and an export of a real model, without any input of the user.

SmolLM2-135M-Instruct is searched with PSO and then with WOA over the same store. The better subset
is exported and verified. The dense and the pruned model are compared on text that no search used.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunesearch import events
from prunesearch.cache.location import CacheLocation
from prunesearch.candidate import Evaluation
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.config.search import SearchSection
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.export import Exported, export
from prunesearch.models.demo_weights import obtain
from prunesearch.objectives.calibration_sources.builtin import HELD_OUT
from prunesearch.pipeline.run import Outcome, facts_of, run_search
from prunesearch.pipeline.session import (
    Session,
    objective_for,
    open_session,
    require,
)
from prunesearch.studies import persistence

# 6 of the 30 blocks of SmolLM2.
DROP = "20%"
TRIALS = 160
HELD_OUT_TOKENS = 4096


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo.

    Attributes:
        outcomes: outcomes of the searches, one per sampler, in the order in which they ran.
        best: the better outcome.
        held_out_dense, held_out_best: evaluations of both models on held-out text.
        exported: the export of the best candidate.
        model: name of the model.
        seconds: total time.
    """

    outcomes: tuple[Outcome, ...]
    best: Outcome
    held_out_dense: Evaluation
    held_out_best: Evaluation
    exported: Exported
    model: str
    seconds: float

    def document(self, options: RunOptions) -> dict[str, Any]:
        """Return the result as JSON values."""
        searches = [outcome.document(options) for outcome in self.outcomes]
        best = self.best.document(options)
        return {
            "model": self.model,
            "storage": persistence.shown(options.storage),
            "cache": str(CacheLocation.parse(options.cache)),
            "searches": searches,
            "best": best["best"],
            "dense": _shown(best["dense"], self.held_out_dense),
            "pruned": _shown(best["best"], self.held_out_best),
            "export": self.exported,
            "seconds": round(self.seconds, 3),
        }


def _shown(searched: Mapping[str, Any], held_out: Evaluation) -> dict[str, float]:
    """Return the rows of the final table for one model."""
    return {
        **searched["cost"],
        "kl": searched["metrics"]["kl"],
        "held_out_kl": held_out.metrics["kl"],
        "held_out_perplexity": held_out.metrics["perplexity"],
    }


def run_demo(
    model: str | None,
    options: RunOptions,
    home: Path,
) -> DemoResult:
    """Run the demo.

    Args:
        model: model to use instead of SmolLM2.
        options: how to run.
        home: folder of the folders ``models`` and ``exports``.

    Raises:
        PruneSearchError: see `errors`.
    """
    # Get the model.
    start = time.perf_counter()
    name = model or str(obtain(home / "models"))
    events.tell(
        events.Message(
            "calibration text: English prose from Python's language reference and the installed "
            "packages' descriptions; a quarter of the documents is held out for the comparison"
        )
    )
    recipes = [
        Recipe(model=name, search=SearchSection(drop=DROP, sampler=sampler))
        for sampler in ("pso", "woa")
    ]
    # Search with both samplers. They share the model and the cache.
    with open_session(recipes[0], options) as session:
        outcomes = tuple(run_search(session, recipe, options) for recipe in recipes)
        # The value is the KL, so lower is better.
        best = min(outcomes, key=lambda outcome: outcome.value)
        # Compare the dense and the pruned model on held-out text, and export.
        events.tell(events.Message("comparing dense and pruned on held-out text"))
        dense, pruned = held_out(session, recipes[0], options, outcomes[0].dense, best.best)
        events.tell(events.Message("exporting the best and reloading it"))
        out = home / "exports" / best.study
        recipe = recipes[outcomes.index(best)]
        exported = export(
            session.loaded, best.best.candidate, out, facts_of(recipe, best), replace=True
        )
    return DemoResult(outcomes, best, dense, pruned, exported, name, time.perf_counter() - start)


def held_out(
    session: Session, recipe: Recipe, options: RunOptions, *evaluations: Evaluation
) -> list[Evaluation]:
    """Evaluate the candidates of evaluations on held-out text, through the cache."""
    unseen = recipe.data.model_copy(update={"calibration": HELD_OUT, "tokens": HELD_OUT_TOKENS})
    objective = objective_for(recipe.objective, unseen, session.loaded, options)
    engine = LocalEngine(session.loaded, objective, session.cache)
    candidates = [evaluation.candidate for evaluation in evaluations]
    return [require(done) for done in engine.evaluate_now(candidates)]
