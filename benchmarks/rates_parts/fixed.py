"""Scores the fixed allocations: on the data of the searches, and on held-out data."""

from dataclasses import dataclass

from benchmarks.rates_parts.campaign import Campaign
from benchmarks.rates_parts.held_out import HeldOut, HeldOutScorer
from prunesearch.importance.allocations.registry import FixedAllocation, fixed_allocations
from prunesearch.pipeline.session import Session, require
from prunesearch.widths.space import WidthSpace


@dataclass(frozen=True)
class Fixed:
    """A fixed allocation with its scores.

    Attributes:
        name: name of the variant.
        entry: name of the allocation.
        kl: KL on the data of the searches.
        held_out: quality on held-out data.
    """

    name: str
    entry: str
    kl: float
    held_out: HeldOut


def allocations(session: Session, campaign: Campaign, ratio: str) -> list[FixedAllocation]:
    """Return the fixed allocations at a ratio."""
    space = session.space_of(campaign.recipe(target=ratio).search)
    assert isinstance(space, WidthSpace)
    return fixed_allocations(space, session.layers)


def score_fixed(
    session: Session, campaign: Campaign, scorer: HeldOutScorer, ratio: str
) -> list[Fixed]:
    """Score the fixed allocations at a ratio: of each the variant with the best KL on the data of
    the searches.
    """
    named = allocations(session, campaign, ratio)
    evaluations = session.engine.evaluate_now([each.candidate for each in named])
    best: dict[str, tuple[float, FixedAllocation]] = {}
    for each, evaluation in zip(named, evaluations, strict=True):
        kl = require(evaluation).metrics["kl"]
        if each.entry not in best or kl < best[each.entry][0]:
            best[each.entry] = kl, each
    found = []
    held_out = scorer.score([each.candidate for _, each in best.values()])
    for (kl, each), quality in zip(best.values(), held_out, strict=True):
        found.append(Fixed(each.name, each.entry, kl, quality))
    return found
