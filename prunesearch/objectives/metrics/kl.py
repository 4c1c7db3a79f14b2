"""The objective ``kl``: how far a candidate's next-token probabilities are from the dense model's.

KL(dense || pruned) is taken at each token of the calibration text, in nats. Cross-entropy and
perplexity are reported beside it, from the same forward pass.
"""

from collections.abc import Sequence

from prunesearch.objectives.logit_sums import LogitSums, kl_of
from prunesearch.objectives.registry import ObjectiveEntry, on_calibration_text, register


class KL(LogitSums):
    """Mean KL divergence to the dense model, in nats per token."""

    metric = "kl"
    loss_metric = "kl"

    def losses(self, per_sequence: Sequence[Sequence[float]]) -> list[float]:
        """Return the KL of each sequence in nats per token."""
        return [kl_of(row) for row in per_sequence]


register(
    ObjectiveEntry(
        "kl",
        "KL divergence to the dense model",
        build=on_calibration_text(lambda inputs: KL(inputs.kl_top)),
        metric="kl",
        metric_labels={"kl": "KL to dense (nats/token)"},
        order=10,
        part="calibration",
        relative_metric="perplexity",
        zero_if_dense=True,
        options=("kl_top",),
        stored=KL,
    )
)
