"""Which trial of a noisy study is the best, and how well that is known.

The pipeline decides it after a search (`algorithms.confirmation`) and stores it in the study, so
that commands which load no model read it. It holds for the trials that it was made from: after
further trials the best measured trial counts until the next decision.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from optuna.study import Study
from pydantic import TypeAdapter, ValidationError

from prunesearch.analysis.intervals import NORMAL_REACH, half_width
from prunesearch.runtime.json_values import Json, json_as, to_json

RECOMMENDATION_ATTR = "recommendation"
"""User attribute of a study that holds the recommendation."""
INDISTINCT = 0.05
"""Probability of the scatter of equal candidates from which on trials cannot be told apart."""
STANDARD_ERROR_ATTR = "standard_error"
"""User attribute of a trial: the standard error of its value."""


@dataclass(frozen=True)
class ScoredFinalist:
    """One of the best candidates. Values are those of the study's trials, with their direction.

    Attributes:
        trial: number of its trial.
        dropped: what it drops.
        value: value of the trial, on the documents of the search.
        estimate: posterior mean of the value.
        stderr: posterior standard deviation of the value.
        documents: number of further documents that it was scored on.
        fresh: its value on these; None without.
        fresh_stderr: standard error of `fresh`.
    """

    json_properties: ClassVar[tuple[str, ...]] = ("low", "high")

    trial: int
    dropped: str
    value: float
    estimate: float
    stderr: float
    documents: int = 0
    fresh: float | None = None
    fresh_stderr: float | None = None

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval of the value."""
        return self._centre - self._reach

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval of the value."""
        return self._centre + self._reach

    @property
    def _centre(self) -> float:
        return self.estimate if self.fresh is None else self.fresh

    @property
    def _reach(self) -> float:
        if self.fresh_stderr is None:
            return NORMAL_REACH * self.stderr
        return half_width(self.documents) * self.fresh_stderr


@dataclass(frozen=True)
class Recommendation:
    """The best trial of a noisy study.

    Attributes:
        trials: number of complete trials that it was made from.
        documents: number of documents that each of them was scored on.
        chosen: the trial that is recommended, after confirmation if there was one.
        naive: the trial with the best measured value.
        finalists: the best candidates and the naive best, the best first.
        budget: number of scored documents that confirmation might take. A document that three
            candidates are scored on counts three times.
        spent: number of scored documents that it took.
        further: number of different documents that it took.
        separated: whether all other finalists were significantly worse than the chosen one.
        remark: why confirmation ended early, or was not made; empty otherwise.
        equal_probability: probability of such a scatter of the first trials if all candidates were
            equal; None if it is not known.
        compared: number of trials that this probability was computed from.
        tasks: number of tasks that give equal shares of the further documents.
    """

    json_properties: ClassVar[tuple[str, ...]] = ("confirmed",)

    trials: int
    documents: int
    chosen: int
    naive: int
    finalists: tuple[ScoredFinalist, ...]
    budget: int = 0
    spent: int = 0
    further: int = 0
    separated: bool = False
    remark: str = ""
    equal_probability: float | None = field(default=None, metadata=json_as(omit_none=True))
    compared: int = 0
    tasks: int = 1

    @property
    def confirmed(self) -> bool:
        """True if the chosen trial was scored on further documents."""
        return self.best.documents > 0

    @property
    def best(self) -> ScoredFinalist:
        """The finalist that is recommended."""
        return self._finalist(self.chosen)

    @property
    def naive_best(self) -> ScoredFinalist:
        """The finalist with the best measured value."""
        return self._finalist(self.naive)

    @property
    def indistinct(self) -> bool:
        """True if the documents of the search cannot tell the first trials apart."""
        return self.equal_probability is not None and self.equal_probability >= INDISTINCT

    def _finalist(self, number: int) -> ScoredFinalist:
        return next(one for one in self.finalists if one.trial == number)


_ADAPTER = TypeAdapter(Recommendation)


def store_recommendation(study: Study, made: Recommendation) -> None:
    """Store the recommendation of a study."""
    study.set_user_attr(RECOMMENDATION_ATTR, json.dumps(to_json(made)))


def read_recommendation(attributes: Mapping[str, Json], trials: int) -> Recommendation | None:
    """Return the stored recommendation of a study.

    Args:
        attributes: user attributes of the study.
        trials: number of its complete trials.

    Returns:
        The recommendation. None if there is none, if it is damaged, or if the study has other
        trials by now.
    """
    made = _stored(attributes)
    if made is None or made.trials != trials:
        return None
    known = {one.trial for one in made.finalists}
    return made if {made.chosen, made.naive} <= known else None


def confirming_documents(attributes: Mapping[str, Json]) -> int:
    """Return how many documents of each task, after those of the search, confirmed its best trials.

    They were seen, also if the study has further trials by now.

    Args:
        attributes: user attributes of the study.
    """
    made = _stored(attributes)
    return 0 if made is None else math.ceil(made.further / max(1, made.tasks))


def _stored(attributes: Mapping[str, Json]) -> Recommendation | None:
    """Return the recommendation that is stored; None if there is none, or if it is damaged."""
    text = attributes.get(RECOMMENDATION_ATTR)
    if not isinstance(text, str):
        return None
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError:
        return None
