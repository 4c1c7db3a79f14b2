"""Scores candidates on data that no search has seen: perplexity and HellaSwag."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.rates_parts.campaign import Campaign
from prunesearch.candidate import LayerSubset
from prunesearch.config.data import DataSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.pipeline.session import Session, objective_for, require


@dataclass(frozen=True)
class HeldOut:
    """Quality of a candidate on held-out data.

    Attributes:
        candidate: the candidate.
        perplexity: perplexity on the test text.
        acc_norm, stderr: HellaSwag's normalised accuracy and its standard error; NaN if it was not
            measured.
        right: for each document 1 if it was answered rightly, else 0.
    """

    candidate: LayerSubset
    perplexity: float
    acc_norm: float
    stderr: float
    right: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Log-perplexity in nats per token."""
        return math.log(self.perplexity)


class HeldOutScorer:
    """Scores candidates with a session's model, through the cache of the campaign.

    Args:
        session: session of the searches, whose model has the channel order of the candidates.
        campaign: settings.
    """

    def __init__(self, session: Session, campaign: Campaign) -> None:
        self._perplexity = self._engine(session, campaign, *campaign.perplexity)
        self._hellaswag = None
        if campaign.limit:
            self._hellaswag = self._engine(session, campaign, *campaign.hellaswag)

    @staticmethod
    def _engine(
        session: Session, campaign: Campaign, section: ObjectiveSection, data: DataSection
    ) -> LocalEngine:
        objective = objective_for(section, data, session.loaded, campaign.options())
        return LocalEngine(session.loaded, objective, session.cache)

    def score(self, candidates: Sequence[LayerSubset]) -> list[HeldOut]:
        """Return the quality of each candidate."""
        distinct = list(dict.fromkeys(candidates))
        found: dict[LayerSubset, HeldOut] = {}
        # A few at a time, so that an interrupted run keeps what it has.
        for start in range(0, len(distinct), 4):
            for made in self._score(distinct[start : start + 4]):
                found[made.candidate] = made
        return [found[candidate] for candidate in candidates]

    def _score(self, candidates: list[LayerSubset]) -> list[HeldOut]:
        """Score distinct candidates together."""
        nothing = (math.nan, math.nan, ())
        on_documents: list[tuple[float, float, tuple[float, ...]]] = [nothing] * len(candidates)
        if self._hellaswag is not None:
            on_documents = []
            evaluations = self._hellaswag.evaluate_now(candidates)
            losses = self._hellaswag.losses(candidates)
            for evaluation, lost in zip(evaluations, losses, strict=True):
                require(evaluation)
                right = tuple(-float(loss) for loss in lost)
                numbers = evaluation.metrics["acc_norm"], evaluation.stderr["acc_norm"]
                on_documents.append((*numbers, right))
        made = []
        for evaluation, of_documents in zip(
            self._perplexity.evaluate_now(candidates), on_documents, strict=True
        ):
            perplexity = require(evaluation).metrics["perplexity"]
            made.append(HeldOut(evaluation.candidate, perplexity, *of_documents))
        return made


def won_back(found: HeldOut, fixed: HeldOut, dense: HeldOut) -> float:
    """Return the share of the log-perplexity lost by a fixed allocation that a search wins back."""
    return (fixed.loss - found.loss) / (fixed.loss - dense.loss)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation, which is 0 for a single value."""
    if len(values) < 2:
        return statistics.fmean(values), 0.0
    return statistics.fmean(values), statistics.stdev(values)


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, which is 0 for a single value."""
    mean, sd = mean_and_sd(values)
    return mean, sd / math.sqrt(len(values))
