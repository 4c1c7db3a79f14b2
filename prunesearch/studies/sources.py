"""Where the candidates of a study came from, and what a language model has cost for them.

The sampler `llm` stores both with its trials. Totals are sums over the trials, so that there is no
counter that two processes could change at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeAlias

from optuna.trial import FrozenTrial

from prunesearch.llm.limits import Spent
from prunesearch.runtime.json_values import Json, JsonObject

ATTRIBUTE = "llm"
"""User attribute of a trial with these facts."""
Source: TypeAlias = Literal["first", "model", "repaired", "fallback"]
SOURCES: tuple[Source, ...] = ("first", "model", "repaired", "fallback")
"""Sources of a candidate.

They are: a first candidate, which every sampler starts from; the model, unchanged; the model,
changed to meet the budget; and the evolutionary operator that takes over if the model fails.
"""


@dataclass(frozen=True)
class Replies:
    """Counts of a language model's replies, and what they cost.

    Attributes:
        calls: number of replies.
        replayed: number of them that were recorded before, so that they cost nothing.
        failed: number of requests without a reply.
        invalid: candidates in replies that could not be read.
        rejected: candidates that would have had to be changed too much.
        duplicates: candidates that were proposed before.
        prompt_tokens, completion_tokens, cached_tokens: tokens of all replies.
        seconds: time that the replies took when they were made.
        cost: price of the replies that were paid; None if it is not known.
        paid_tokens, paid_seconds: tokens and time of the replies that were paid.
    """

    calls: int = 0
    replayed: int = 0
    failed: int = 0
    invalid: int = 0
    rejected: int = 0
    duplicates: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    cost: float | None = None
    paid_tokens: int = 0
    paid_seconds: float = 0.0

    def plus(self, other: "Replies") -> "Replies":
        """Return the sum of two counts."""
        cost = self.cost
        if other.cost is not None:
            cost = (cost or 0.0) + other.cost
        return Replies(
            self.calls + other.calls,
            self.replayed + other.replayed,
            self.failed + other.failed,
            self.invalid + other.invalid,
            self.rejected + other.rejected,
            self.duplicates + other.duplicates,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            round(self.seconds + other.seconds, 3),
            cost,
            self.paid_tokens + other.paid_tokens,
            round(self.paid_seconds + other.paid_seconds, 3),
        )

    @property
    def spent(self) -> Spent:
        """What was paid, for budgets."""
        return Spent(self.calls - self.replayed, self.paid_tokens, self.cost, self.paid_seconds)

    def stored(self) -> JsonObject:
        """Return the counts as JSON values, without those that are 0."""
        return {name: value for name, value in vars(self).items() if value not in (0, None)}

    @classmethod
    def from_stored(cls, stored: JsonObject) -> Self:
        """Read stored counts. Values that are not numbers count as 0."""

        def count(name: str) -> int:
            return round(seconds(name))

        def seconds(name: str) -> float:
            value = stored.get(name)
            return value if isinstance(value, int | float) else 0.0

        cost = stored.get("cost")
        return cls(
            calls=count("calls"),
            replayed=count("replayed"),
            failed=count("failed"),
            invalid=count("invalid"),
            rejected=count("rejected"),
            duplicates=count("duplicates"),
            prompt_tokens=count("prompt_tokens"),
            completion_tokens=count("completion_tokens"),
            cached_tokens=count("cached_tokens"),
            seconds=seconds("seconds"),
            cost=cost if isinstance(cost, int | float) else None,
            paid_tokens=count("paid_tokens"),
            paid_seconds=seconds("paid_seconds"),
        )


@dataclass(frozen=True)
class ProposalFacts:
    """Facts about a proposal, as a trial stores them.

    Attributes:
        source: source of the candidate.
        repair: share of it that was changed.
        replies: replies that were needed for it and for the next ones, which came with it.
    """

    source: Source
    repair: float = 0.0
    replies: Replies | None = None

    def stored(self) -> JsonObject:
        """Return the facts as JSON values."""
        made: JsonObject = {"source": self.source}
        if self.repair:
            made["repair"] = self.repair
        if self.replies is not None:
            made["replies"] = self.replies.stored()
        return made


@dataclass(frozen=True)
class SourceShares:
    """Totals of a study that a language model searched.

    Attributes:
        trials: number of trials with a source.
        first, model, repaired, fallback: number of trials by source.
        mean_repair: mean share of a repaired candidate that was changed; 0 without any.
        replies: counts of the replies.
    """

    trials: int
    first: int
    model: int
    repaired: int
    fallback: int
    mean_repair: float
    replies: Replies

    json_properties: ClassVar[tuple[str, ...]] = ("shares",)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each source among the trials."""
        found: dict[str, float] = {}
        for source in SOURCES:
            found[source] = round(getattr(self, source) / max(self.trials, 1), 4)
        return found


def facts_of(trial: FrozenTrial) -> JsonObject | None:
    """Return the stored facts of a trial; None if it has none."""
    stored: Json = trial.user_attrs.get(ATTRIBUTE)
    return stored if isinstance(stored, dict) else None


def replies_of(trial: FrozenTrial) -> Replies:
    """Return the replies that are stored with a trial."""
    stored = (facts_of(trial) or {}).get("replies")
    if not isinstance(stored, dict):
        return Replies()
    return Replies.from_stored(stored)


def repairs_of(trial: FrozenTrial) -> list[float]:
    """Return the share of a trial's candidate that was changed; empty if it was not."""
    repair = (facts_of(trial) or {}).get("repair")
    return [float(repair)] if isinstance(repair, int | float) else []


def source_shares(trials: Iterable[FrozenTrial]) -> SourceShares | None:
    """Sum up the facts of a study's trials; None if no trial has any."""
    counts = dict.fromkeys(SOURCES, 0)
    repairs: list[float] = []
    replies = Replies()
    for trial in trials:
        # Trials of other samplers, and enqueued ones, have no facts.
        facts = facts_of(trial)
        if facts is None:
            continue
        replies = replies.plus(replies_of(trial))
        for source in SOURCES:
            counts[source] += facts.get("source") == source
        repairs += repairs_of(trial)
    total = sum(counts.values())
    if not total:
        return None
    return SourceShares(
        trials=total,
        first=counts["first"],
        model=counts["model"],
        repaired=counts["repaired"],
        fallback=counts["fallback"],
        mean_repair=round(sum(repairs) / max(len(repairs), 1), 4),
        replies=replies,
    )
