"""The demo: a search and an export of a real model, without any input of the user.

SmolLM2-135M-Instruct is searched with PSO and then with WOA over the same cache. The better subset
is exported and verified. The dense and the pruned model are compared on text that no search used.
"""

import time
from pathlib import Path

from prunesearch import events
from prunesearch.cache.location import CacheLocation, shown
from prunesearch.candidate import Evaluation
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.config.search import SearchSection
from prunesearch.export.results import Exported
from prunesearch.models.demo_weights import obtain
from prunesearch.objectives.registry import REGISTRY, ObjectiveEntry
from prunesearch.pipeline.export_request import ExportRequest
from prunesearch.pipeline.outcome import search_report
from prunesearch.pipeline.run import run_stages
from prunesearch.pipeline.state import Request
from prunesearch.report.results import DemoReport, ScoredModel

# 6 of the 30 blocks of SmolLM2.
DROP = "20%"
TRIALS = 160


def run_demo(model: str | None, options: RunOptions, home: Path) -> DemoReport:
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
    # Search with both samplers, export the better subset, and compare it on held-out text.
    recipes = tuple(
        Recipe(model=name, search=SearchSection(drop=DROP, sampler=sampler))
        for sampler in ("pso", "woa")
    )
    request = Request(
        options,
        recipes,
        export=ExportRequest(root=home / "exports", replace=True),
        in_sequence=True,
        held_out=True,
    )
    state = run_stages("demo", request)
    # Put the results together.
    searches = [search_report(outcome, options.storage) for outcome in state.outcomes]
    chosen = state.choice.candidate.text
    best = next(search.best for search in searches if search.best.dropped == chosen)
    dense, pruned = state.held_out
    objective = REGISTRY.get(recipes[0].objective.name)
    (exported,) = state.exported
    assert isinstance(exported, Exported)
    return DemoReport(
        model=name,
        storage=shown(options.storage),
        cache=str(CacheLocation.parse(options.cache)),
        searches=searches,
        best=best,
        dense=_figures(searches[0].dense, dense, objective),
        pruned=_figures(best, pruned, objective),
        export=exported,
        seconds=round(time.perf_counter() - start, 3),
    )


def _figures(
    searched: ScoredModel, held_out: Evaluation, objective: ObjectiveEntry
) -> dict[str, float]:
    """Return the rows of the final table for one model.

    Args:
        searched: the model on the text of the search.
        held_out: the model on held-out text.
        objective: the objective of the search. Its metrics are shown.
    """
    metric, quality = objective.metric, objective.relative_metric
    assert metric is not None
    assert quality is not None
    return {
        **vars(searched.cost),
        metric: searched.metrics[metric],
        f"held_out_{metric}": held_out.metrics[metric],
        f"held_out_{quality}": held_out.metrics[quality],
    }
