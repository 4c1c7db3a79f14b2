"""Sums over the logits of calibration text, from which KL, cross-entropy and perplexity are made.

Shapes: B sequences of L tokens, R = B * L token positions, E hidden size, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunesearch.candidate import LayerSubset
from prunesearch.objectives.base import Metrics

if TYPE_CHECKING:
    import torch

    from prunesearch.execution.head import Head

# Token positions whose float32 logits are computed at a time. They fit the cache of the processor:
# twice as fast as 2,048 on 2 cores.
_ROWS = 64


def kl_of(row: Sequence[float]) -> float:
    """Return the KL of a sequence in nats per token, from its sums."""
    kl_sum, _, length = row
    return kl_sum / length


def cross_entropy_of(row: Sequence[float]) -> float:
    """Return the cross-entropy of a sequence in nats per token, from its sums."""
    _, nll_sum, length = row
    return nll_sum / (length - 1)


class LogitSums:
    """The measure that KL and perplexity share.

    Three numbers are stored per sequence: the sum of KL(dense || pruned) over all L positions in
    nats, the sum of the negative log-likelihood of the L - 1 tokens that have a predecessor, and L.
    Both metrics are computed from the same entries, so a search for one metric reuses the entries
    of a search for the other.

    Args:
        top_k: number of tokens that the KL distinguishes: the dense model's `top_k` likeliest
            tokens, and one tail bucket for the rest. The result is a lower bound of the full KL
            (data processing inequality), and its reference is thousands of times smaller. None: the
            full vocabulary.
    """

    def __init__(self, top_k: int | None = None) -> None:
        self._top_k = top_k
        self.kind = "calibration" if top_k is None else f"calibration top {top_k}"

    def reference(self, dense_RE: "torch.Tensor", head: "Head") -> "dict[str, torch.Tensor]":
        """Return the dense model's logits, or those of its likeliest tokens."""
        import torch

        from prunesearch.objectives.reference_logits import ReferenceLogits

        blocks = (head.logits(rows_RE) for rows_RE in torch.split(dense_RE, _ROWS))
        return ReferenceLogits.of(blocks, self._top_k).tensors()

    def compare(
        self,
        windows_BL: "torch.Tensor",
        reference: "Mapping[str, torch.Tensor]",
        normed_states: "Mapping[LayerSubset, torch.Tensor]",
        head: "Head",
    ) -> dict[LayerSubset, list[list[float]]]:
        """Return ``[kl_sum, nll_sum, tokens]`` per sequence for each candidate.

        The dense distribution of a block of positions is computed once and used for all candidates.
        """
        import torch

        from prunesearch.execution.head import HEAD_ROWS
        from prunesearch.objectives.reference_logits import ReferenceLogits

        logits_of_dense = ReferenceLogits(**reference)
        device = windows_BL.device
        # The token that each position predicts. The last position of a sequence predicts nothing,
        # and its value is left out of the sums below.
        next_R = torch.cat([windows_BL[:, 1:], windows_BL[:, :1]], dim=1).flatten()
        kl_R = {c: torch.empty(len(next_R), device=device) for c in normed_states}
        nll_R = {c: torch.empty(len(next_R), device=device) for c in normed_states}
        step = HEAD_ROWS.get(device.type, HEAD_ROWS["cpu"])
        # Per position: the divergence from the dense model, and the negative log-likelihood.
        for start in range(0, len(next_R), step):
            every = slice(start, min(start + step, len(next_R)))
            parts = _parts(every)
            dense = [logits_of_dense.rows(rows, device) for rows in parts]
            for candidate, normed_RE in normed_states.items():
                logits = torch.split(head.logits(normed_RE[every]), _ROWS)
                for rows, dense_rows, logits_RV in zip(parts, dense, logits, strict=True):
                    log_q_RV = torch.log_softmax(logits_RV, dim=-1, dtype=torch.float32)
                    kl_R[candidate][rows] = dense_rows.divergence(log_q_RV)
                    nll_R[candidate][rows] = -log_q_RV.gather(1, next_R[rows, None])[:, 0]
        # Per sequence: the sums over its positions.
        sums: dict[LayerSubset, list[list[float]]] = {}
        length = windows_BL.shape[1]
        for candidate in normed_states:
            kl_B = kl_R[candidate].view(windows_BL.shape).double().sum(1).tolist()
            nll_B = nll_R[candidate].view(windows_BL.shape)[:, :-1].double().sum(1).tolist()
            sums[candidate] = [[kl, nll, length] for kl, nll in zip(kl_B, nll_B, strict=True)]
        return sums

    def metrics(self, per_sequence: Sequence[Sequence[float]]) -> Metrics:
        """Return ``kl`` and ``cross_entropy`` in nats per token, and ``perplexity``.

        `per_sequence` holds what `compare` returns: three numbers for each sequence. The standard
        errors are those of the mean over sequences.
        """
        import torch

        sums = torch.tensor(per_sequence, dtype=torch.float64)
        values, errors = perplexity_metrics(sums[:, 1], sums[:, 2])
        kl = float(sums[:, 0].sum() / sums[:, 2].sum())
        if errors:
            kl_B = sums[:, 0] / sums[:, 2]
            errors = {"kl": float(kl_B.std() / math.sqrt(len(sums)))} | errors
        return Metrics({"kl": kl} | values, errors)


def perplexity_metrics(
    nll_B: "torch.Tensor", tokens_B: "torch.Tensor"
) -> tuple[dict[str, float], dict[str, float]]:
    """Return ``cross_entropy`` in nats per token and ``perplexity``, and their standard errors.

    Args:
        nll_B: sum of the negative log-likelihood of each sequence, in float64.
        tokens_B: number of tokens of each sequence. All but one of them are predicted.

    Returns:
        The values, and their standard errors as those of the mean over sequences. One sequence has
        no standard errors.
    """
    cross_entropy = float(nll_B.sum() / (tokens_B - 1).sum())
    perplexity = math.exp(min(cross_entropy, 700.0))
    values = {"cross_entropy": cross_entropy, "perplexity": perplexity}
    if len(nll_B) < 2:
        return values, {}
    error = float((nll_B / (tokens_B - 1)).std() / math.sqrt(len(nll_B)))
    # The error of perplexity = exp(cross_entropy) follows from d exp(x) = exp(x) dx.
    return values, {"cross_entropy": error, "perplexity": perplexity * error}


def _parts(rows: slice) -> list[slice]:
    """Split a range of positions into blocks of `_ROWS` positions."""
    blocks = []
    for first in range(rows.start, rows.stop, _ROWS):
        blocks.append(slice(first, min(first + _ROWS, rows.stop)))
    return blocks
