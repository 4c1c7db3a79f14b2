"""Reference logits of the dense model, which pruned models are compared with.

Shapes: R rows (tokens), V vocabulary, K likeliest tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch

_TINY = 1e-12  # smallest probability of the tail bucket


@dataclass(frozen=True)
class ReferenceLogits:
    """Log-probabilities of the dense model on a chunk.

    Attributes:
        logits_RV: logits in the model's precision. None: only the likeliest tokens are kept.
        log_p_RK: float32 log-probabilities of the K likeliest tokens.
        index_RK: ids of the K likeliest tokens.
    """

    logits_RV: torch.Tensor | None = None
    log_p_RK: torch.Tensor | None = None
    index_RK: torch.Tensor | None = None

    @classmethod
    @torch.inference_mode()
    def of(cls, blocks: Iterable[torch.Tensor], top_k: int | None) -> Self:
        """Build a reference from blocks of rows of logits.

        Args:
            blocks: logits, shape (R, V) each. They are consumed one at a time.
            top_k: number of likeliest tokens to keep. None: keep all logits.
        """
        if top_k is None:
            return cls(torch.cat(list(blocks)))
        # Reduce each block before the next one is computed.
        values, indices = [], []
        for logits_RV in blocks:
            top = torch.log_softmax(logits_RV, dim=-1, dtype=torch.float32).topk(
                min(top_k, logits_RV.shape[-1])
            )
            values.append(top.values)
            indices.append(top.indices)
        return cls(None, torch.cat(values), torch.cat(indices).int())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are kept, by the names of the attributes."""
        kept = {"logits_RV": self.logits_RV, "log_p_RK": self.log_p_RK, "index_RK": self.index_RK}
        return {name: tensor for name, tensor in kept.items() if tensor is not None}

    def rows(self, rows: slice, device: torch.device) -> "DenseRows":
        """Return the probabilities of a few rows on a device."""
        if self.logits_RV is not None:
            log_p_RV = torch.log_softmax(
                self.logits_RV[rows].to(device), dim=-1, dtype=torch.float32
            )
            return DenseRows(log_p_RV.exp(), log_p_RV)
        assert self.log_p_RK is not None and self.index_RK is not None
        log_p_RK = self.log_p_RK[rows].to(device)
        return DenseRows(log_p_RK.exp(), log_p_RK, self.index_RK[rows].to(device).long())


class DenseRows:
    """The dense model's probabilities of a few rows.

    Args:
        p: float32 probabilities, shape (R, V), or (R, K) if `index_RK` is given.
        log_p: logarithms of `p`.
        index_RK: ids of the K likeliest tokens.
    """

    def __init__(
        self, p: torch.Tensor, log_p: torch.Tensor, index_RK: torch.Tensor | None = None
    ) -> None:
        self._p, self._index_RK = p, index_RK
        self._negative_entropy_R: torch.Tensor = torch.linalg.vecdot(p, log_p)
        if index_RK is not None:
            self._rest_R = (1 - p.sum(-1)).clamp_min(_TINY)
            self._negative_entropy_R += self._rest_R * self._rest_R.log()

    def divergence(self, log_q_RV: torch.Tensor) -> torch.Tensor:
        """Return KL(dense || pruned) of each row in nats, shape (R,).

        The KL is sum_v p_v (log p_v - log q_v). If only the K likeliest tokens are kept, the sum is
        over them and over one tail bucket with the remaining probability.

        Args:
            log_q_RV: float32 log-probabilities of the pruned model.
        """
        if self._index_RK is None:
            kl_R: torch.Tensor = self._negative_entropy_R - torch.linalg.vecdot(self._p, log_q_RV)
            return kl_R
        log_q_RK = log_q_RV.gather(1, self._index_RK)
        rest_q_R = (1 - log_q_RK.exp().sum(-1)).clamp_min(_TINY)
        kl_R = self._negative_entropy_R - torch.linalg.vecdot(self._p, log_q_RK)
        kl_R -= self._rest_R * rest_q_R.log()
        return kl_R
