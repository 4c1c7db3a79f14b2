"""The ask, evaluate, tell loop: one study over one engine, resumable at any moment.

As many trials are asked for as the sampler gives at once (each is written, running, in one transaction); they are
evaluated together and told one by one, each in one transaction. What a killed run left running is evaluated first,
under its own number, so that the sequence of trials is the one an unbroken run would have had.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.engine import Engine
from prunesearch.errors import InputError
from prunesearch.report.progress import Progress
from prunesearch.samplers import GenerationPendingError, SubsetSampler, annotate, report
from prunesearch.scoring.fitness import Fitness
from prunesearch.store import faults, selection
from prunesearch.store.selection import best_trials


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
        adopted: trials that an interrupted run had begun, and this one finished.
        missing: trials that the sampler's plan still needs (greedy's rounds): until then the result is not its result.
    """

    hits: int
    computed: int
    failed: int
    adopted: int
    missing: int = 0


async def search(
    study: Study,
    sampler: SubsetSampler,
    engine: Engine,
    fitness: Fitness,
    total: int,
    listener: Listener | None = None,
    race: bool = False,
    after_generation: Callable[[], None] = lambda: None,
) -> SearchResult:
    """Bring `study` to `total` finished trials (fewer where the space has fewer candidates).

    Args:
        race: drop a candidate, as a pruned trial, once part of the data shows it worse than the best before its
            generation.
        after_generation: called whenever the trials that were asked for together are told.

    Raises:
        InputError: the study's trials are not of this search space.
    """
    run = _Run(study, sampler, fitness, total, listener, race, after_generation)
    orphans = run.adopt()
    run.announce()
    await run.evaluate(engine, orphans)
    if sampler.asynchronous:
        await asyncio.gather(*(run.keep_busy(engine) for _ in range(engine.workers)))
    else:
        while batch := run.enqueued() or run.ask(sampler.batch):
            await run.evaluate(engine, batch)
    return SearchResult(run.hits, run.computed, run.failed, len(orphans), sampler.missing(study))


class _Run:
    """The state of one call of `search`."""

    def __init__(
        self,
        study: Study,
        sampler: SubsetSampler,
        fitness: Fitness,
        total: int,
        listener: Listener | None,
        race: bool,
        after_generation: Callable[[], None],
    ) -> None:
        self.hits = self.computed = self.failed = 0
        self._study, self._sampler, self._fitness = study, sampler, fitness
        self._total, self._listener = total, listener
        self._race, self._after_generation = race, after_generation
        trials = study.get_trials(deepcopy=False)
        self._asked = len(trials)
        self._done = sum(t.state.is_finished() for t in trials)
        # Every candidate of the space once, beside what is no result of it.
        self._left = max(0, sampler.space.size - sum(sampler.holds(t) for t in trials))
        best = best_trials(study, 1)
        self._best = (best[0].values[0], best[0].user_attrs.get("dropped")) if best else (None, None)
        self._front = len(study.directions) > 1
        self._under_way = 0

    def adopt(self) -> list[tuple[int, LayerSubset]]:
        """The running trials that a killed run left."""
        left = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if set(trial.params) < set(self._sampler.space.param_names):
                # Optuna's samplers write a trial before its parameters: killed in between, it says nothing.
                self._study.tell(trial.number, state=TrialState.FAIL)
                self._done += 1
            else:
                left.append((trial.number, self._candidate(trial)))
        return left

    def enqueued(self) -> list[tuple[int, LayerSubset]]:
        """Start the trials that somebody enqueued."""
        started = self._sampler.enqueued(self._study)
        self._asked = max(self._asked, 1 + max((number for number, _ in started), default=-1))
        return started

    def ask(self, most: int) -> list[tuple[int, LayerSubset]]:
        """Create the trials that can be evaluated now."""
        batch: list[tuple[int, LayerSubset]] = []
        while len(batch) < min(most, self._total - self._asked) and self._left > 0:
            try:
                proposal = self._sampler.ask(self._study, self._fitness.costs)
            except GenerationPendingError:
                break
            self._asked += 1
            self._left -= not proposal.stone
            batch.append((proposal.number, proposal.candidate))
        return batch

    async def keep_busy(self, engine: Engine) -> None:
        """Ask for one trial after the other."""
        while batch := self.enqueued() or self.ask(1):
            await self.evaluate(engine, batch)

    async def evaluate(self, engine: Engine, batch: Sequence[tuple[int, LayerSubset]]) -> None:
        """Evaluate the batch's candidates and tell each of its trials."""
        numbers: dict[LayerSubset, list[int]] = {}
        for number, candidate in batch:
            numbers.setdefault(candidate, []).append(number)
        rival = self._rival(min(number for number, _ in batch)) if self._race and batch else None
        self._under_way += len(batch)
        self.announce()
        async for evaluation in engine.evaluate(list(numbers), rival):
            for number in numbers[evaluation.candidate]:
                self._tell(number, evaluation)
        self._after_generation()

    def _tell(self, number: int, evaluation: Evaluation) -> None:
        faults.reach("before_tell", str(number))
        annotate(self._study, number, _attributes(evaluation))
        if evaluation.failure is not None:
            self.failed += 1
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self.hits += evaluation.cached
            self.computed += not evaluation.cached
            self._tell_values(number, evaluation)
        faults.reach("after_tell", str(number))
        self._done += 1
        self._under_way -= 1
        self.announce(evaluation)

    def _rival(self, number: int) -> LayerSubset | None:
        """Whom the trials of a generation race against: the best before it, however often the run was killed since.

        The first generation races against its first trial, which starts from a ranking if there is one.
        """
        first = number if self._sampler.asynchronous else number - number % self._sampler.batch
        rival = next((t for t in best_trials(self._study, None) if t.number < first), None)
        if rival is None:
            rival = next((t for t in self._study.get_trials(deepcopy=False) if t.number == first), None)
        return None if rival is None else self._candidate(rival)

    def _tell_values(self, number: int, evaluation: Evaluation) -> None:
        values = self._fitness.values(evaluation)
        for step, metric in evaluation.steps.items():
            at_step = replace(evaluation, metrics={**evaluation.metrics, self._fitness.metric: metric})
            report(self._study, number, step, self._fitness.values(at_step)[0])
        if evaluation.raced_out:
            self._study.tell(number, state=TrialState.PRUNED)
            return
        if self._sampler.is_stone(evaluation.candidate):
            # No result: it drops fewer units than the space demands. Pruned trials inform and never lead.
            report(self._study, number, self._sampler.space.count(evaluation.candidate), values[0])
            self._study.tell(number, state=TrialState.PRUNED)
            return
        self._study.tell(number, values)
        if self._best[0] is None or self._fitness.better(values[0], self._best[0]):
            self._best = (values[0], evaluation.candidate.text)

    def announce(self, evaluation: Evaluation | None = None) -> None:
        """Tell the listener where the study stands."""
        if self._listener is None:
            return
        self._listener.progress(
            Progress(
                study=self._study.study_name,
                done=self._done,
                total=max(min(self._total, self._asked + self._left), self._done),
                hits=self.hits,
                computed=self.computed,
                best_value=None if self._front else self._best[0],
                best_dropped=None if self._front else self._best[1],
                evaluation=evaluation,
                under_way=self._under_way,
                front=len(best_trials(self._study, None)) if self._front else 0,
            )
        )

    def _candidate(self, trial: FrozenTrial) -> LayerSubset:
        try:
            return self._sampler.space.any_subset(trial.params)
        except InputError as error:
            raise InputError(f"running trial {trial.number} cannot be adopted: {error}") from None


def _attributes(evaluation: Evaluation) -> Mapping[str, Any]:
    """What a dashboard shows of a trial beside its parameters and value."""
    if evaluation.failure is not None:
        return {"failure": evaluation.failure}
    metrics = {name: round(value, 6) for name, value in evaluation.metrics.items()}
    errors = {f"{name}{selection.STDERR}": float(f"{value:.4g}") for name, value in evaluation.stderr.items()}
    return {
        "cache": "hit" if evaluation.cached else "computed",
        "seconds": round(evaluation.seconds, 3),
        **({"saved_seconds": round(evaluation.saved, 3)} if evaluation.cached else {}),
        **metrics,
        **errors,
    }
