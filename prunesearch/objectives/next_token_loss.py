"""Next-token loss of windows, without the dense model: what published perplexities are made of.

Objectives on calibration text compare with the dense model, whose logits they keep. The texts of
protocols have hundreds of thousands of tokens, so only two numbers per window are kept here.

Shapes: B windows of L tokens, R = B * L token positions, E hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch

from prunesearch.candidate import LayerSubset
from prunesearch.execution.head import HEAD_ROWS, Head
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import Identity, Metrics
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.logit_sums import perplexity_metrics
from prunesearch.objectives.reference_cache import ReferenceCache


class NextTokenLoss:
    """Measures the sum of the negative log-likelihood of each window's L - 1 predicted tokens.

    It is computed in float32 from logits in the model's own number type.
    """

    metric = "perplexity"
    kind = "next-token loss"

    def reference(self, dense_RE: torch.Tensor, head: Head) -> dict[str, torch.Tensor]:
        """Return nothing: the dense model is not asked."""
        return {}

    @torch.inference_mode()
    def compare(
        self,
        windows_BL: torch.Tensor,
        reference: Mapping[str, torch.Tensor],
        normed_states: Mapping[LayerSubset, torch.Tensor],
        head: Head,
    ) -> dict[LayerSubset, list[list[float]]]:
        """Return ``[nll_sum, tokens]`` per window for each candidate."""
        # The token that each position predicts. The last position of a window predicts nothing,
        # and its value is left out of the sum.
        next_R = torch.cat([windows_BL[:, 1:], windows_BL[:, :1]], dim=1).flatten()
        step = HEAD_ROWS.get(windows_BL.device.type, HEAD_ROWS["cpu"])
        sums: dict[LayerSubset, list[list[float]]] = {}
        for candidate, normed_RE in normed_states.items():
            # The head computes a few rows at a time, because logits of all rows would not fit.
            parts = []
            blocks = zip(torch.split(normed_RE, step), torch.split(next_R, step), strict=True)
            for rows_RE, target_R in blocks:
                log_q_RV = torch.log_softmax(head.logits(rows_RE), dim=-1, dtype=torch.float32)
                parts.append(-log_q_RV.gather(1, target_R[:, None])[:, 0])
            # Sum over the positions of each window.
            nll_BL = torch.cat(parts).view(windows_BL.shape)
            nll_B = nll_BL[:, :-1].double().sum(1).tolist()
            sums[candidate] = [[nll, windows_BL.shape[1]] for nll in nll_B]
        return sums

    def metrics(self, per_sequence: Sequence[Sequence[float]]) -> Metrics:
        """Return ``cross_entropy`` in nats per token, and ``perplexity``.

        The standard errors are those of the mean over windows.
        """
        sums = torch.tensor(per_sequence, dtype=torch.float64)
        values, errors = perplexity_metrics(sums[:, 0], sums[:, 1])
        return Metrics(values, errors)

    def losses(self, per_sequence: Sequence[Sequence[float]]) -> list[float]:
        """Return the loss of each window in nats per token."""
        return [nll / (length - 1) for nll, length in per_sequence]


class _NoReferences(ReferenceCache):
    """References of a measure that needs none, so that the dense model is never run for them."""

    def __init__(self) -> None:
        super().__init__(None)

    def get(self, fingerprint: str, chunk: Identity) -> Mapping[str, torch.Tensor]:
        """Return an empty reference."""
        return {}


def loss_objective(loaded: LoadedModel, windows_BL: torch.Tensor) -> CalibrationObjective:
    """Return the objective that measures the perplexity of windows.

    Args:
        loaded: the model.
        windows_BL: token ids, shape (B, L).

    Raises:
        DataError: the model has no embeddings for the windows' tokens or positions.
    """
    return CalibrationObjective(loaded, windows_BL, NextTokenLoss(), _NoReferences())
