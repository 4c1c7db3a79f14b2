"""The ask, evaluate, tell loop: one study over one engine, resumable at any moment.

A generation is asked for at once (each trial is written, running, in one transaction), evaluated, and told trial by
trial. What a killed run left running is evaluated first, under its own number, so that the sequence of trials is the
one an unbroken run would have had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.engine import Engine
from prunesearch.errors import InputError
from prunesearch.report.progress import Progress
from prunesearch.samplers import SwarmSampler, annotate
from prunesearch.scoring.fitness import Fitness
from prunesearch.store.studies import best_trials


class Listener(Protocol):
    """Hears how a search goes on."""

    def progress(self, progress: Progress) -> None:
        """A study was opened or a trial was told."""
        ...


@dataclass(frozen=True)
class SearchResult:
    """What one run of `search` did.

    Attributes:
        hits, computed, failed: this run's evaluations: found in the store, scored, failed.
        adopted: trials of a killed run that were finished.
    """

    hits: int
    computed: int
    failed: int
    adopted: int


async def search(
    study: Study, sampler: SwarmSampler, engine: Engine, fitness: Fitness, total: int, listener: Listener | None = None
) -> SearchResult:
    """Bring `study` to `total` finished trials (fewer where the space has fewer candidates).

    Raises:
        InputError: the study's trials are not of this search space.
    """
    run = _Run(study, sampler, fitness, min(total, sampler.space.size), listener)
    orphans = [(t.number, _candidate(sampler, t)) for t in _trials(study, TrialState.RUNNING)]
    run.announce()
    await run.evaluate(engine, orphans)
    while batch := run.ask_generation():
        await run.evaluate(engine, batch)
    return SearchResult(run.hits, run.computed, run.failed, len(orphans))


class _Run:
    """The state of one call of `search`."""

    def __init__(
        self, study: Study, sampler: SwarmSampler, fitness: Fitness, total: int, listener: Listener | None
    ) -> None:
        self.hits = self.computed = self.failed = 0
        self._study, self._sampler, self._fitness = study, sampler, fitness
        self._total, self._listener = total, listener
        self._done = len(study.get_trials(deepcopy=False)) - len(_trials(study, TrialState.RUNNING))
        best = best_trials(study, 1)
        self._best = (best[0].value, best[0].user_attrs.get("dropped")) if best else (None, None)

    def ask_generation(self) -> list[tuple[int, LayerSubset]]:
        """Create the trials that are left of the current generation."""
        size = self._sampler.population
        count = min(self._total - self._done, size - self._done % size)
        proposals = [self._sampler.ask(self._study, self._fitness.costs) for _ in range(max(0, count))]
        return [(p.number, p.candidate) for p in proposals]

    async def evaluate(self, engine: Engine, batch: Sequence[tuple[int, LayerSubset]]) -> None:
        """Evaluate the batch's candidates and tell each of its trials."""
        numbers: dict[LayerSubset, list[int]] = {}
        for number, candidate in batch:
            numbers.setdefault(candidate, []).append(number)
        async for evaluation in engine.evaluate(list(numbers)):
            for number in numbers[evaluation.candidate]:
                self._tell(number, evaluation)

    def _tell(self, number: int, evaluation: Evaluation) -> None:
        annotate(self._study, number, _attributes(evaluation))
        if evaluation.failure is not None:
            self.failed += 1
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self.hits += evaluation.cached
            self.computed += not evaluation.cached
            value = self._fitness.value(evaluation)
            self._study.tell(number, value)
            if self._best[0] is None or self._fitness.better(value, self._best[0]):
                self._best = (value, evaluation.candidate.text)
        self._done += 1
        self.announce(evaluation)

    def announce(self, evaluation: Evaluation | None = None) -> None:
        """Tell the listener where the study stands."""
        if self._listener is None:
            return
        self._listener.progress(
            Progress(
                study=self._study.study_name,
                done=self._done,
                total=max(self._total, self._done),
                hits=self.hits,
                computed=self.computed,
                best_value=self._best[0],
                best_dropped=self._best[1],
                evaluation=evaluation,
            )
        )


def _attributes(evaluation: Evaluation) -> Mapping[str, Any]:
    """What a dashboard shows of a trial beside its parameters and value."""
    if evaluation.failure is not None:
        return {"failure": evaluation.failure}
    metrics = {name: round(value, 6) for name, value in evaluation.metrics.items()}
    return {
        "cache": "hit" if evaluation.cached else "computed",
        "seconds": round(evaluation.seconds, 3),
        **metrics,
    }


def _trials(study: Study, state: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(state,))


def _candidate(sampler: SwarmSampler, trial: FrozenTrial) -> LayerSubset:
    try:
        return sampler.space.from_params(trial.params)
    except InputError as error:
        raise InputError(f"running trial {trial.number} cannot be adopted: {error}") from None
