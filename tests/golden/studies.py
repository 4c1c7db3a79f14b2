"""Seeded studies over a formula instead of a model, and their trials as plain JSON values."""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.config.objective import ScoreWeights
from prunesearch.evaluation.scalarization import TrialScalarizer, objectives
from prunesearch.execution.latency import LatencyModel
from prunesearch.models.sizes import Sizes
from prunesearch.objectives.race import Race
from prunesearch.pipeline.search_loop import search
from prunesearch.samplers import build
from prunesearch.space import SearchSpace
from prunesearch.studies.persistence import open_storage

BLOCKS = 16
TRIALS = 30
SIZES = Sizes((10,) * BLOCKS, (4,) * BLOCKS, 100, 2)
LATENCY = LatencyModel((1.0,) * BLOCKS, (0.4,) * BLOCKS, 2.0)


@dataclass(frozen=True)
class Case:
    """One seeded study.

    Attributes:
        sampler: name of the sampler, as ``--sampler`` takes it.
        drop: the budget, as ``--drop`` takes it.
        options: further arguments of `prunesearch.samplers.build`.
    """

    sampler: str
    drop: str = "4"
    units: str = "blocks"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def space(self) -> SearchSpace:
        """The search space of the study."""
        return SearchSpace.parse(
            BLOCKS, self.drop, units="sublayers" if self.units == "sublayers" else "blocks"
        )

    @property
    def scalarizer(self) -> TrialScalarizer:
        """What the study minimises."""
        against = "size" if self.drop.startswith("pareto") else None
        return TrialScalarizer("kl", False, ScoreWeights(), SIZES, LATENCY, against)


_RANKING = tuple(float((7 * block) % BLOCKS) for block in range(BLOCKS))
CASES: Mapping[str, Case] = {
    "pso": Case("pso", options={"seed": 1}),
    "pso, ranked": Case("pso", options={"seed": 2, "ranking": _RANKING}),
    "pso, slots": Case("pso", options={"seed": 3, "encoding": "slots"}),
    "pso, asynchronous": Case("pso", options={"seed": 4, "asynchronous": True}),
    "pso, Pareto": Case("pso", "pareto:50%", options={"seed": 5}),
    "pso, up to": Case("pso", "..5", options={"seed": 6}),
    "woa": Case("woa", options={"seed": 7}),
    "woa, sublayers": Case("woa", "6", "sublayers", {"seed": 8}),
    "woa, keys without surrogate": Case(
        "woa", options={"seed": 9, "encoding": "keys", "preselect": False}
    ),
    "evolution": Case("evolution", options={"seed": 10}),
    "ga": Case("ga", options={"seed": 11}),
    "annealing": Case("annealing", options={"seed": 12}),
    "greedy": Case("greedy", "2", options={"seed": 13}),
    "one-shot": Case("one-shot", options={"seed": 14, "ranking": _RANKING}),
    "random": Case("random", options={"seed": 15}),
}


def loss(candidate: LayerSubset) -> float:
    """Each dropped unit costs what a hash of its name says; two neighbours cost less together."""
    names = candidate.text.split(",")
    cost = 0.0
    for name in names:
        cost += hashlib.sha256(name.encode()).digest()[0] / 255
    for first, second in itertools.pairwise(candidate.dropped):
        if second - first == 1:
            cost -= 0.2
    return cost


class FormulaEngine:
    """An engine whose model is a formula."""

    workers = 1

    async def evaluate(
        self, candidates: Sequence[LayerSubset], race: Race | None = None
    ) -> AsyncIterator[Evaluation]:
        """Evaluate candidates at once, in their order."""
        for candidate in candidates:
            yield Evaluation(candidate, {"kl": loss(candidate)}, seconds=1.0)


def run_case(case: Case, url: str | None, trials: int = TRIALS) -> optuna.Study:
    """Bring the study of a case to its end, in a database or in memory;
    a study that is there is resumed.
    """
    _, maximise = objectives("kl", False, ScoreWeights(), case.scalarizer.against)
    study = optuna.create_study(
        storage=None if url is None else open_storage(url, create=True),
        study_name="golden",
        directions=["maximize" if more else "minimize" for more in maximise],
        load_if_exists=True,
    )
    asyncio.run(
        search(
            study,
            build(case.sampler, case.space, **case.options),
            FormulaEngine(),
            case.scalarizer,
            trials,
        )
    )
    return study


def dump(study: optuna.Study) -> list[list[Any]]:
    """Number, state, dropped units and values of every trial."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        values = None if trial.values is None else [round(value, 9) for value in trial.values]
        rows.append([trial.number, trial.state.name, trial.user_attrs.get("dropped"), values])
    return rows


def database(folder: Path, name: str) -> str:
    """URL of the database of a case in a folder."""
    return f"sqlite:///{folder}/{name.replace(' ', '_').replace(',', '')}.db"
