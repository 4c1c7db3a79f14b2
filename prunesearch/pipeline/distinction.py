"""Whether the documents of a search can tell its candidates apart."""

from collections.abc import Sequence

import numpy as np
from optuna.trial import TrialState

from prunesearch import events
from prunesearch.algorithms.operators import Real
from prunesearch.analysis.paired import equal_candidates
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.objectives.base import HasDocuments
from prunesearch.pipeline.prepared_study import PreparedStudy
from prunesearch.pipeline.session import Session
from prunesearch.report.recommendation import indistinct
from prunesearch.studies.recommendation import INDISTINCT

COMPARED = 24
"""Number of first trials that must differ by more than noise, and of best ones that show it."""


def losses_of_search(
    ready: PreparedStudy, session: Session, candidates: Sequence[LayerSubset]
) -> Real:
    """Return what the documents of the search add to the values of candidates, from the cache.

    Raises:
        InputError: the metric has no value for each document.
    """
    return np.array(session.engine.losses(candidates)) * ready.scalarizer.weights.quality


class DistinctionCheck:
    """Warns once during a search if the documents cannot tell its first trials apart.

    Args:
        ready: the study that is searched.
        session: model, objective and engine of the search.
    """

    def __init__(self, ready: PreparedStudy, session: Session) -> None:
        self._ready, self._session = ready, session
        self._open = is_noisy(ready, session)

    def after_generation(self) -> None:
        """Compare the first trials as soon as there are enough of them."""
        if not self._open:
            return
        trials = self._ready.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        first: dict[LayerSubset, None] = {}
        for trial in trials:
            first[self._ready.space.from_params(trial.params)] = None
        if len(first) < COMPARED:
            return
        self._open = False
        try:
            loss_KD = losses_of_search(self._ready, self._session, list(first)[:COMPARED])
        except InputError:
            return
        equal = equal_candidates(loss_KD)
        if equal >= INDISTINCT:
            metric = self._session.objective.metric
            text = indistinct(metric, loss_KD.shape[1], COMPARED, equal)
            events.tell(events.Message(text))


def is_noisy(ready: PreparedStudy, session: Session) -> bool:
    """Return whether the best trial of a study is one by chance, and can be found out: the study
    has one value, which comes from the documents of one objective on tasks.
    """
    repeatable = all(chunk.cacheable for chunk in session.objective.chunks)
    documents = isinstance(session.objective, HasDocuments)
    return documents and repeatable and not ready.recipe.search.is_pareto
