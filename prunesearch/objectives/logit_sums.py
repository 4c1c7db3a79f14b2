"""Sums over the logits of calibration text, from which KL, cross-entropy and perplexity are made.

Shapes: B sequences of L tokens, R = B * L token positions, C candidates, E hidden size, V
vocabulary.
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
STATISTICS_VERSION = 3
"""Version of the numbers that are computed from sufficient statistics of the dense model."""


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
            (data processing inequality), and its reference is smaller. None: the full vocabulary,
            from sufficient statistics where the head is linear (`objectives.dense_statistics`).
    """

    def __init__(self, top_k: int | None = None) -> None:
        self._top_k = top_k
        self.kind = "calibration" if top_k is None else f"calibration top {top_k}"

    def version(self, head: "Head") -> int:
        """Return the version of the numbers: `STATISTICS_VERSION` if statistics are used."""
        from prunesearch.objectives.identity import SCORING_VERSION

        return STATISTICS_VERSION if self._uses_statistics(head) else SCORING_VERSION

    def _uses_statistics(self, head: "Head") -> bool:
        """Return whether the dense model is known by sufficient statistics."""
        return self._top_k is None and head.linear is not None

    def reference(self, dense_RE: "torch.Tensor", head: "Head") -> "dict[str, torch.Tensor]":
        """Return the dense model's statistics, or its logits, or those of its likeliest tokens."""
        import torch

        from prunesearch.objectives.dense_statistics import DenseStatistics
        from prunesearch.objectives.reference_logits import ReferenceLogits

        if self._uses_statistics(head):
            return DenseStatistics.of(dense_RE, head).tensors()
        blocks = (head.logits(rows_RE) for rows_RE in torch.split(dense_RE, _ROWS))
        return ReferenceLogits.of(blocks, self._top_k).tensors()

    def fits(self, reference: "Mapping[str, torch.Tensor]", head: "Head") -> bool:
        """Return whether candidates with this head can be compared with a reference."""
        from prunesearch.objectives.dense_statistics import DenseStatistics

        if not self._uses_statistics(head):
            return "rest_RE" not in reference
        return "rest_RE" in reference and DenseStatistics(**reference).is_of(head)

    def compare(
        self,
        windows_BL: "torch.Tensor",
        reference: "Mapping[str, torch.Tensor]",
        normed_states: "Mapping[LayerSubset, torch.Tensor]",
        head: "Head",
    ) -> dict[LayerSubset, list[list[float]]]:
        """Return ``[kl_sum, nll_sum, tokens]`` per sequence for each candidate."""
        import torch

        if not normed_states:
            return {}
        # The token that each position predicts. The last position of a sequence predicts nothing,
        # and its value is left out of the sums below.
        next_R = torch.cat([windows_BL[:, 1:], windows_BL[:, :1]], dim=1).flatten()
        next_R = next_R.to(next(iter(normed_states.values())).device)
        if "rest_RE" in reference:
            terms = _by_statistics(reference, next_R, normed_states, head)
        else:
            terms = _by_logits(reference, next_R, normed_states, head)
        # Per sequence: the sums over its positions. They leave a GPU together.
        kl_CBL = torch.stack([kl_R.double() for kl_R, _ in terms]).view(-1, *windows_BL.shape)
        nll_CBL = torch.stack([nll_R.double() for _, nll_R in terms]).view(-1, *windows_BL.shape)
        found_CB2 = torch.stack([kl_CBL.sum(2), nll_CBL[:, :, :-1].sum(2)], dim=2).tolist()
        sums: dict[LayerSubset, list[list[float]]] = {}
        length = windows_BL.shape[1]
        for candidate, found_B2 in zip(normed_states, found_CB2, strict=True):
            sums[candidate] = [[kl, nll, length] for kl, nll in found_B2]
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


def _by_statistics(
    reference: "Mapping[str, torch.Tensor]",
    next_R: "torch.Tensor",
    normed_states: "Mapping[LayerSubset, torch.Tensor]",
    head: "Head",
) -> "list[tuple[torch.Tensor, torch.Tensor]]":
    """Return KL and negative log-likelihood of each position and candidate from statistics."""
    import torch

    from prunesearch.execution.head_choice import choice_for
    from prunesearch.execution.head_reading import PickedTokens, read_head
    from prunesearch.objectives.dense_statistics import DenseStatistics

    dense = DenseStatistics(**reference).on(next_R.device)
    picked = PickedTokens(torch.cat([dense.index_RK.long(), next_R[:, None]], dim=1))
    terms = []
    for normed_RE in normed_states.values():
        reading = read_head(head, normed_RE, picked, choice_for(head, normed_RE))
        nll_R = reading.logsumexp_R - reading.picked_RP[:, -1]
        terms.append((dense.divergence(normed_RE, reading), nll_R))
    return terms


def _by_logits(
    reference: "Mapping[str, torch.Tensor]",
    next_R: "torch.Tensor",
    normed_states: "Mapping[LayerSubset, torch.Tensor]",
    head: "Head",
) -> "list[tuple[torch.Tensor, torch.Tensor]]":
    """Return KL and negative log-likelihood of each position and candidate from all logits.

    The dense distribution of a block of positions is computed once and used for all candidates.
    """
    import torch

    from prunesearch.execution.head import HEAD_ROWS
    from prunesearch.objectives.reference_logits import ReferenceLogits

    logits_of_dense, device = ReferenceLogits(**reference), next_R.device
    terms = []
    for _ in normed_states:
        terms.append((torch.empty(len(next_R), device=device), torch.empty_like(next_R).float()))
    step = HEAD_ROWS.get(device.type, HEAD_ROWS["cpu"])
    for start in range(0, len(next_R), step):
        every = slice(start, min(start + step, len(next_R)))
        parts = _parts(every)
        dense = [logits_of_dense.rows(rows, device) for rows in parts]
        for normed_RE, (kl_R, nll_R) in zip(normed_states.values(), terms, strict=True):
            logits = torch.split(head.logits(normed_RE[every]), _ROWS)
            for rows, dense_rows, logits_RV in zip(parts, dense, logits, strict=True):
                log_q_RV = torch.log_softmax(logits_RV, dim=-1, dtype=torch.float32)
                kl_R[rows] = dense_rows.divergence(log_q_RV)
                nll_R[rows] = -log_q_RV.gather(1, next_R[rows, None])[:, 0]
    return terms


def _parts(rows: slice) -> list[slice]:
    """Split a range of positions into blocks of `_ROWS` positions."""
    blocks = []
    for first in range(rows.start, rows.stop, _ROWS):
        blocks.append(slice(first, min(first + _ROWS, rows.stop)))
    return blocks
