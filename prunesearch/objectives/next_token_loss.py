"""Next-token loss of windows, without the dense model: what published perplexities are made of.

Objectives on calibration text compare with the dense model, whose logits they keep. The texts of
protocols have hundreds of thousands of tokens, so only two numbers per window are kept here.

Shapes: B windows of L tokens, R = B * L token positions, E hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch

from prunesearch.candidate import LayerSubset
from prunesearch.execution.head import Head
from prunesearch.execution.head_choice import choice_for
from prunesearch.execution.head_reading import PickedTokens, read_head
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import Identity, Metrics
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.identity import SCORING_VERSION
from prunesearch.objectives.logit_sums import perplexity_metrics
from prunesearch.objectives.reference_cache import ReferenceCache


class NextTokenLoss:
    """Measures the sum of the negative log-likelihood of each window's L - 1 predicted tokens.

    It is computed in float32 from logits in the model's own number type.
    """

    metric = "perplexity"
    kind = "next-token loss"

    def version(self, head: Head) -> int:
        """Return the version of the numbers."""
        return SCORING_VERSION

    def fits(self, reference: Mapping[str, torch.Tensor], head: Head) -> bool:
        """Return True: the dense model is not asked."""
        return True

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
        if not normed_states:
            return {}
        # The token that each position predicts. The last position of a window predicts nothing,
        # and its value is left out of the sum.
        next_R = torch.cat([windows_BL[:, 1:], windows_BL[:, :1]], dim=1).flatten()
        next_R = next_R.to(next(iter(normed_states.values())).device)
        picked = PickedTokens(next_R[:, None])
        losses = []
        for normed_RE in normed_states.values():
            reading = read_head(head, normed_RE, picked, choice_for(head, normed_RE))
            losses.append((reading.logsumexp_R - reading.picked_RP[:, 0]).double())
        # Sum over the positions of each window. All sums leave a GPU together.
        nll_CBL = torch.stack(losses).view(-1, *windows_BL.shape)
        sums: dict[LayerSubset, list[list[float]]] = {}
        for candidate, nll_B in zip(normed_states, nll_CBL[:, :, :-1].sum(2).tolist(), strict=True):
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
