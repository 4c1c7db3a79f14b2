"""The ask, evaluate and tell loop of one study, which can be resumed at any moment.

The loop asks for as many trials as the sampler proposes at once. Each is written as running, in one
transaction. The trials are evaluated together and told one by one, each in one transaction. If an
earlier run was killed, its running trials are evaluated first, under their own numbers, so that the
sequence of trials equals that of an unbroken run.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from prunesearch import events
from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.errors import InputError
from prunesearch.evaluation import Engine
from prunesearch.evaluation.scalarization import TrialScalarizer
from prunesearch.objectives.race import CONTROLS, Race
from prunesearch.runtime import early_end, failpoints, stopping
from prunesearch.runtime.json_values import JsonObject
from prunesearch.samplers import (
    GenerationPendingError,
    SubsetSampler,
    annotate,
    report,
)
from prunesearch.space import Space
from prunesearch.studies import selection
from prunesearch.studies.recommendation import STANDARD_ERROR_ATTR
from prunesearch.studies.selection import best_trials


@dataclass(frozen=True)
class SearchResult:
    """Counts of one run of `search`.

    Attributes:
        hits, computed, failed: evaluations of this run that were found in the cache, were scored,
            and failed.
        adopted: trials that an interrupted run had begun and this run finished.
        missing: trials that the sampler's plan still needs (greedy's rounds). Until then, the
            result is not the sampler's final one.
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
    scalarizer: TrialScalarizer,
    total: int,
    race: bool = False,
    after_generation: Callable[[], None] = lambda: None,
) -> SearchResult:
    """Bring `study` to `total` finished trials, or fewer if the space has fewer candidates.

    The search ends earlier if somebody asks for it (see `early_end`).

    Args:
        study: study to extend.
        sampler: sampler that proposes the candidates.
        engine: engine that evaluates them.
        scalarizer: objective values of an evaluation.
        total: number of trials that the study shall have.
        race: stop scoring a candidate once part of the data shows that it is worse than the best
            before its generation. Its trial is pruned.
        after_generation: function that is called after each batch of trials.

    Raises:
        InputError: the study's trials do not belong to this search space.
    """
    run = _Run(study, sampler, scalarizer, total, race, after_generation)
    # Finish the trials of a killed run first.
    orphans = run.adopt()
    run.announce()
    await run.evaluate(engine, orphans)
    # Then ask for new ones: each worker on its own, or one batch after the other.
    if sampler.asynchronous:
        await asyncio.gather(*(run.keep_busy(engine) for _ in range(engine.workers)))
    else:
        while not run.ends_early() and (batch := run.enqueued() or run.ask(sampler.batch)):
            await run.evaluate(engine, batch)
    return SearchResult(run.hits, run.computed, run.failed, len(orphans), sampler.missing(study))


class _Run:
    """The state of one call of `search`."""

    def __init__(
        self,
        study: Study,
        sampler: SubsetSampler,
        scalarizer: TrialScalarizer,
        total: int,
        race: bool,
        after_generation: Callable[[], None],
    ) -> None:
        self.hits = self.computed = self.failed = 0
        self._study, self._sampler, self._scalarizer = study, sampler, scalarizer
        self._total = total
        self._race, self._after_generation = race, after_generation
        trials = study.get_trials(deepcopy=False)
        self._asked = len(trials)
        self._done = sum(t.state.is_finished() for t in trials)
        # Each candidate is proposed once. Partial subsets are not results, so they do not count.
        self._left = max(0, sampler.space.size - sum(sampler.holds(t) for t in trials))
        # The best value so far, and the layers that its trial drops.
        self._best: tuple[float | None, str | None] = (None, None)
        best = best_trials(study, 1)
        if best:
            self._best = (best[0].values[0], best[0].user_attrs.get("dropped"))
        self._front = len(study.directions) > 1
        self._under_way = 0

    def adopt(self) -> list[tuple[int, LayerSubset]]:
        """Return the numbers and candidates of the running trials that a killed run left."""
        left = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if set(trial.params) < set(self._sampler.space.param_names):
                # Optuna's samplers write a trial before its parameters. The run was killed in
                # between.
                self._study.tell(trial.number, state=TrialState.FAIL)
                self._done += 1
            else:
                left.append((trial.number, candidate_of(trial, self._sampler.space)))
        return left

    def enqueued(self) -> list[tuple[int, LayerSubset]]:
        """Start the enqueued trials and return their numbers and candidates."""
        started = self._sampler.enqueued(self._study, self._scalarizer.costs)
        for number, _ in started:
            self._asked = max(self._asked, number + 1)
        return started

    def ask(self, most: int) -> list[tuple[int, LayerSubset]]:
        """Create up to `most` new trials that can be evaluated now."""
        batch: list[tuple[int, LayerSubset]] = []
        while len(batch) < min(most, self._total - self._asked) and self._left > 0:
            try:
                proposal = self._sampler.ask(self._study, self._scalarizer.costs)
            except GenerationPendingError:
                break
            except stopping.StopRequested:
                # A sampler may wait for a reply. Raised in a task, the stop would leave the event
                # loop at once.
                raise asyncio.CancelledError from None
            self._asked += 1
            if not proposal.partial_subset:
                self._left -= 1
            batch.append((proposal.number, proposal.candidate))
        return batch

    async def keep_busy(self, engine: Engine) -> None:
        """Ask for and evaluate one trial after the other."""
        while not self.ends_early() and (batch := self.enqueued() or self.ask(1)):
            await self.evaluate(engine, batch)

    def ends_early(self) -> bool:
        """Return whether the search shall end before it has all its trials.

        It goes on until it has a result.
        """
        return early_end.requested() and self._best[0] is not None

    async def evaluate(self, engine: Engine, batch: Sequence[tuple[int, LayerSubset]]) -> None:
        """Evaluate the candidates of a batch and tell each of its trials."""
        # Several trials may have the same candidate.
        numbers: dict[LayerSubset, list[int]] = {}
        for number, candidate in batch:
            numbers.setdefault(candidate, []).append(number)
        race = None
        if self._race and batch:
            first = min(number for number, _ in batch)
            race = race_of(self._study, self._sampler, first)
        self._under_way += len(batch)
        self.announce()
        async for evaluation in engine.evaluate(list(numbers), race):
            for number in numbers[evaluation.candidate]:
                self._tell(number, evaluation)
        self._after_generation()

    def _tell(self, number: int, evaluation: Evaluation) -> None:
        """Finish a trial with its evaluation."""
        failpoints.hit("before_tell", str(number))
        value = None
        attributes = _attributes(evaluation)
        error = self._scalarizer.standard_error(evaluation)
        if error is not None:
            attributes[STANDARD_ERROR_ATTR] = float(f"{error:.4g}")
        annotate(self._study, number, attributes)
        if evaluation.failure is not None:
            self.failed += 1
            self._study.tell(number, state=TrialState.FAIL)
        else:
            if evaluation.cached:
                self.hits += 1
            else:
                self.computed += 1
            value = self._tell_values(number, evaluation)
        failpoints.hit("after_tell", str(number))
        self._done += 1
        self._under_way -= 1
        self.announce(evaluation, value, number)

    def _tell_values(self, number: int, evaluation: Evaluation) -> float:
        """Finish a trial whose evaluation succeeded, as complete or as pruned.

        Returns:
            The first value of the trial.
        """
        values = self._scalarizer.values(evaluation)
        # Intermediate values, for dashboards and for the estimate of pruned trials.
        for step, metric in evaluation.steps.items():
            at_step = replace(
                evaluation, metrics={**evaluation.metrics, self._scalarizer.metric: metric}
            )
            report(self._study, number, step, self._scalarizer.values(at_step)[0])
        if evaluation.raced_out:
            self._study.tell(number, state=TrialState.PRUNED)
            return values[0]
        if self._sampler.is_partial_subset(evaluation.candidate):
            # A partial subset cannot be a result. As a pruned trial it informs the sampler and is
            # never the best.
            step = len(self._sampler.space.units_of(evaluation.candidate))
            report(self._study, number, step, values[0])
            self._study.tell(number, state=TrialState.PRUNED)
            return values[0]
        self._study.tell(number, values)
        if self._best[0] is None or self._scalarizer.better(values[0], self._best[0]):
            self._best = (values[0], evaluation.candidate.text)
        return values[0]

    def announce(
        self,
        evaluation: Evaluation | None = None,
        value: float | None = None,
        trial: int | None = None,
    ) -> None:
        """Publish the study's progress, and the trial that was told last."""
        # A front has no best trial; its size is shown instead.
        best_value, best_dropped = self._best
        front = 0
        if self._front:
            best_value, best_dropped = None, None
            front = len(best_trials(self._study, None))
        costs: dict[str, float] = {}
        if evaluation is not None:
            costs = self._scalarizer.costs(evaluation.candidate)
        events.tell(
            events.SearchProgress(
                study=self._study.study_name,
                done=self._done,
                total=max(min(self._total, self._asked + self._left), self._done),
                hits=self.hits,
                computed=self.computed,
                best_value=best_value,
                best_dropped=best_dropped,
                evaluation=evaluation,
                under_way=self._under_way,
                front=front,
                value=value,
                trial=trial,
                costs=costs,
            )
        )


def race_of(study: Study, sampler: SubsetSampler, number: int) -> Race | None:
    """Return the race of the generation of trial `number`.

    The baseline is the best candidate before the generation, and the next best ones are the
    controls. They do not depend on interruptions. The first generation races against its first
    trial, which comes from the ranking if there is one.
    """
    first = number if sampler.asynchronous else number - number % sampler.batch
    # Several trials may have the same candidate.
    known: dict[LayerSubset, None] = {}
    for trial in best_trials(study, None):
        if trial.number < first:
            known[candidate_of(trial, sampler.space)] = None
        if len(known) == 1 + CONTROLS:
            break
    if known:
        baseline, *controls = known
        return Race(baseline, tuple(controls))
    for trial in study.get_trials(deepcopy=False):
        if trial.number == first:
            return Race(candidate_of(trial, sampler.space))
    return None


def candidate_of(trial: FrozenTrial, space: Space) -> LayerSubset:
    """Return a trial's candidate, which its parameters describe.

    Raises:
        InputError: the parameters do not belong to the space.
    """
    try:
        return space.any_subset(trial.params)
    except InputError as error:
        raise InputError(f"running trial {trial.number} cannot be adopted: {error}") from None


def _attributes(evaluation: Evaluation) -> JsonObject:
    """Return the user attributes of a trial, which dashboards show."""
    if evaluation.failure is not None:
        return {"failure": evaluation.failure}
    attributes: JsonObject = {
        "cache": "hit" if evaluation.cached else "computed",
        "seconds": round(evaluation.seconds, 3),
    }
    if evaluation.cached:
        attributes["saved_seconds"] = round(evaluation.saved, 3)
    for name, value in evaluation.metrics.items():
        attributes[name] = round(value, 6)
    for name, value in evaluation.stderr.items():
        attributes[f"{name}{selection.STDERR}"] = float(f"{value:.4g}")
    return attributes
