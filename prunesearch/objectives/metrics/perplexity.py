"""The objective ``perplexity``: how well a candidate predicts the calibration text.

Perplexity is the exponential of the cross-entropy per token. KL is reported beside it, from the
same forward pass.
"""

from collections.abc import Sequence

from prunesearch.objectives.logit_sums import LogitSums, cross_entropy_of
from prunesearch.objectives.registry import ObjectiveEntry, on_calibration_text, register


class Perplexity(LogitSums):
    """Perplexity of the calibration text."""

    metric = "perplexity"
    loss_metric = "cross_entropy"

    def losses(self, per_sequence: Sequence[Sequence[float]]) -> list[float]:
        """Return the cross-entropy of each sequence in nats per token."""
        return [cross_entropy_of(row) for row in per_sequence]


register(
    ObjectiveEntry(
        "perplexity",
        "perplexity of the calibration text",
        build=on_calibration_text(lambda inputs: Perplexity(inputs.kl_top)),
        metric="perplexity",
        metric_labels={"cross_entropy": "cross-entropy (nats/token)"},
        order=11,
        part="calibration",
        relative_metric="perplexity",
        stored=Perplexity,
    )
)
