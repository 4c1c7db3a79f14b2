"""The same comparison on a model of 1.5 billion parameters, with fewer seeds and evaluations."""

from benchmarks.rates_parts.campaign import Campaign
from benchmarks.rates_parts.search import measure_campaign
from benchmarks.support.record import Record


def measure(record: Record, campaign: Campaign) -> None:
    """Add the figures of all searches of the large model; none without one."""
    if campaign.large is not None:
        measure_campaign(record, campaign.large, "large")
