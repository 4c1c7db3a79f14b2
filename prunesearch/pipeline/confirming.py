"""Decides which trial of a noisy search is best: by a posterior, and on further documents.

It follows a search on the documents of tasks. Its own results are evaluations in the cache and a
recommendation in the study, so it goes on where it was killed, and is not repeated.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial

from prunesearch import events
from prunesearch.algorithms.confirmation import Confirmation, noise_of_document
from prunesearch.algorithms.gaussian_process import GaussianProcess
from prunesearch.algorithms.operators import Mask, Real
from prunesearch.algorithms.surrogate import Surrogate
from prunesearch.algorithms.width_surrogate import WidthSurrogate
from prunesearch.analysis.intervals import standard_error
from prunesearch.analysis.paired import equal_candidates
from prunesearch.candidate import LayerSubset
from prunesearch.config.run_options import CONFIRM, RunOptions
from prunesearch.errors import InputError, RunError, ScoringError
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.execution.block_code import BlockCode
from prunesearch.objectives.base import HasDocuments
from prunesearch.pipeline.distinction import COMPARED, is_noisy, losses_of_search
from prunesearch.pipeline.prepared_study import PreparedStudy
from prunesearch.pipeline.session import Session, objective_for
from prunesearch.runtime import early_end
from prunesearch.studies import persistence, selection
from prunesearch.studies.recommendation import (
    Recommendation,
    ScoredFinalist,
    store_recommendation,
)
from prunesearch.units import plural
from prunesearch.widths.space import WidthSpace

_log = logging.getLogger(__name__)


def decide(ready: PreparedStudy, session: Session, options: RunOptions) -> Recommendation | None:
    """Decide which trial of a study is best, and store that in the study.

    Args:
        ready: a study that was searched.
        session: model, objective and engine of the search.
        options: how the search is run; `confirm` says how much is spent.

    Returns:
        The decision. None if scores are not noisy, if the study has a front, or if the metric has
        no value for each document.
    """
    decision = _Decision.of(ready, session)
    if decision is None:
        if options.confirm and not is_noisy(ready, session):
            events.tell(
                events.Message(
                    "`confirm` changes nothing here: only scores of one task are confirmed on "
                    "further documents"
                )
            )
        return None
    share = CONFIRM if options.confirm is None else options.confirm
    budget = round(share / (1.0 - share) * decision.scored)
    stored = selection.recommendation_of(ready.study)
    # A decision that has cost as much or more stays. A search that is ended early is not prolonged.
    if stored is not None and (stored.budget >= budget or early_end.requested()):
        return stored
    made = decision.made(session, options, 0 if early_end.requested() else budget)
    try:
        with persistence.database_failures(ready.study.study_name):
            store_recommendation(ready.study, made)
    except RunError as error:
        _log.warning("what was decided is not stored: %s", error)
    return made


@dataclass(frozen=True)
class _Decision:
    """The trials of a study that is decided.

    Attributes:
        ready: the study.
        trials: one complete trial of each candidate, the best measured one first.
        candidates: their candidates.
        loss_N: their values, with the sign that makes less better.
        first_KD, best_KD: losses of the first and of the best trials on each document.
        scored: number of scored documents that all trials took.
    """

    ready: PreparedStudy
    trials: tuple[FrozenTrial, ...]
    candidates: tuple[LayerSubset, ...]
    loss_N: Real
    first_KD: Real
    best_KD: Real
    scored: int

    @classmethod
    def of(cls, ready: PreparedStudy, session: Session) -> "_Decision | None":
        """Read the trials of a study; None if there is nothing to decide."""
        if not is_noisy(ready, session):
            return None
        # 1. Several trials may have the same candidate.
        distinct: dict[LayerSubset, FrozenTrial] = {}
        for trial in selection.best_trials(ready.study, None):
            distinct.setdefault(ready.space.from_params(trial.params), trial)
        if len(distinct) < 2:
            return None
        candidates, trials = tuple(distinct), tuple(distinct.values())
        # 2. Losses on each document, from the cache.
        order = sorted(range(len(trials)), key=lambda place: trials[place].number)
        first = [candidates[place] for place in order[:COMPARED]]
        try:
            best_KD = losses_of_search(ready, session, candidates[:COMPARED])
            first_KD = losses_of_search(ready, session, first)
        except InputError:
            return None
        sign = -1.0 if ready.scalarizer.maximize else 1.0
        loss_N = np.array([sign * trial.values[0] for trial in trials])
        # 3. What the search cost. Trials that lost a race were scored on a part of the documents.
        documents = best_KD.shape[1]
        finished = [trial for trial in ready.study.get_trials(deepcopy=False) if trial.values]
        return cls(
            ready, trials, candidates, loss_N, first_KD, best_KD, len(finished) * documents
        )  # fmt: skip

    @property
    def documents(self) -> int:
        """Number of documents of the search."""
        return int(self.best_KD.shape[1])

    def made(self, session: Session, options: RunOptions, budget: int) -> Recommendation:
        """Recommend a trial, and confirm it on further documents within a budget."""
        objective = session.objective
        assert isinstance(objective, HasDocuments)
        documents = self.documents
        variance = max(noise_of_document(self.best_KD), 1e-12) if documents > 1 else 1e-12
        available = objective.further_documents * objective.task_count
        confirmation = Confirmation(
            self._fit,
            np.array([self.ready.sampler.mask_of_candidate(one) for one in self.candidates]),
            self.loss_N,
            np.full(len(self.trials), variance / documents),
            budget,
            available,
        )
        # 1. Score the finalists on further documents, round by round.
        scores, remark = _Rounds(self, session, options).run(confirmation, objective.task_count)
        if budget and not remark:
            remark = _why_ended(confirmation)
        # 2. Collect the finalists, and the naive best, which is the first of the trials.
        finalists = []
        for place in dict.fromkeys([*confirmation.ranking, 0]):
            finalists.append(self._finalist(place, confirmation, scores.get(place, [])))
        equal = None
        if len(self.first_KD) >= COMPARED:
            equal = equal_candidates(self.first_KD)
        return Recommendation(
            trials=len(selection.best_trials(self.ready.study, None)),
            documents=documents,
            chosen=self.trials[confirmation.winner].number,
            naive=self.trials[0].number,
            finalists=tuple(finalists),
            budget=budget,
            spent=confirmation.spent,
            further=confirmation.used,
            separated=confirmation.separated and len(confirmation.left) == 1,
            remark=remark,
            equal_probability=None if equal is None else float(f"{equal:.4g}"),
            compared=len(self.first_KD),
            tasks=objective.task_count,
        )

    def _fit(self, X_ND: Mask, score_N: Real, noise_N: Real) -> GaussianProcess:
        space = self.ready.space
        if isinstance(space, WidthSpace):
            return WidthSurrogate(X_ND, score_N, None, space, noise_N)
        return Surrogate(X_ND, score_N, None, noise_N)

    def offset(self, place: int) -> float:
        """Return what the size and the latency add to a candidate's loss on each document."""
        if place < len(self.best_KD):
            return float(self.loss_N[place] - self.best_KD[place].mean())
        scalarizer, trial = self.ready.scalarizer, self.trials[place]
        sign = -1.0 if scalarizer.maximize else 1.0
        metric = float(trial.user_attrs[scalarizer.metric])
        return float(self.loss_N[place]) - sign * scalarizer.weights.quality * metric

    def _finalist(
        self, place: int, confirmation: Confirmation, losses: Sequence[float]
    ) -> ScoredFinalist:
        """Return what is known of a candidate."""
        sign = -1.0 if self.ready.scalarizer.maximize else 1.0
        trial, fresh, error = self.trials[place], None, None
        if losses:
            # The sum with 0 makes no negative zero of a share of 0.
            fresh, error = round(sign * float(np.mean(losses)), 6) + 0.0, standard_error(losses)
        # All documents of the search may be harder than others: that error is common to all.
        shared = 0.0
        if place < len(self.best_KD):
            whole = standard_error(self.best_KD[place]) ** 2
            shared = max(0.0, whole - float(confirmation.first_noise))
        deviation = float(confirmation.posterior.sd_N[place])
        return ScoredFinalist(
            trial=trial.number,
            dropped=self.candidates[place].text,
            value=float(trial.values[0]),
            estimate=round(sign * float(confirmation.posterior.mean_N[place]), 6),
            stderr=float(f"{np.hypot(deviation, np.sqrt(shared)):.4g}"),
            documents=len(losses),
            fresh=fresh,
            fresh_stderr=None if error is None else float(f"{error:.4g}"),
        )


def _why_ended(confirmation: Confirmation) -> str:
    """Return why a confirmation ended before all its rounds; empty if it did not."""
    if len(confirmation.left) < 2 or confirmation.is_complete:
        return ""
    if confirmation.needed <= confirmation.budget:
        further = confirmation.available - confirmation.used
        return f"the task has only {plural(further, 'further document')}"
    return (
        f"{plural(confirmation.needed, 'scored document is', 'scored documents are')} needed and "
        f"{plural(confirmation.budget, 'was', 'were')} allowed; give a larger "
        f"`confirm`, more `trials` or a larger `limit`"
    )


class _Rounds:
    """Scores the finalists of a confirmation on further documents."""

    def __init__(self, decision: _Decision, session: Session, options: RunOptions) -> None:
        self._decision, self._session, self._options = decision, session, options

    def run(self, confirmation: Confirmation, tasks: int) -> tuple[dict[int, list[float]], str]:
        """Run all rounds.

        Args:
            confirmation: the state of the confirmation.
            tasks: number of tasks that each give an equal share of the documents.

        Returns:
            The losses of each finalist on further documents, and why the rounds ended early.
        """
        scores: dict[int, list[float]] = {}
        while (planned := confirmation.next_round(tasks)) is not None:
            events.tell(
                events.StageProgress(
                    f"confirming {plural(len(planned.candidates), 'candidate')} on "
                    f"{plural(planned.documents, 'further document')}"
                )
            )
            candidates = [self._decision.candidates[place] for place in planned.candidates]
            losses = self._scored(candidates, planned.first // tasks, planned.documents // tasks)
            if losses is None:
                return scores, "a finalist could not be scored"
            offset_K = np.array([self._decision.offset(place) for place in planned.candidates])
            loss_KD = losses + offset_K[:, None]
            for place, own in zip(planned.candidates, loss_KD, strict=True):
                scores.setdefault(place, []).extend(own.tolist())
            confirmation.add(loss_KD)
        return scores, ""

    def _scored(self, candidates: Sequence[LayerSubset], first: int, documents: int) -> Real | None:
        """Return the losses of candidates on documents after those of the search; None if a
        candidate cannot be scored.

        Args:
            candidates: candidates to score.
            first: number of documents of each task, after those of the search, that are left out.
            documents: number of documents of each task that follow.
        """
        session, recipe = self._session, self._decision.ready.recipe
        assert recipe.data.limit is not None, "a task without a limit has no further documents"
        first += recipe.data.limit
        data = recipe.data.model_copy(update={"limit": documents})
        objective = objective_for(
            recipe.objective, data, session.loaded, self._options, first=first
        )
        engine = LocalEngine(
            session.loaded,
            objective,
            session.cache,
            None,
            self._options.state_bytes,
            session.loaded.layers.streamed_once,
            BlockCode(self._options.compile),
        )
        try:
            losses = engine.losses(candidates)
        except ScoringError:
            return None
        return np.array(losses) * self._decision.ready.scalarizer.weights.quality
