"""The dense model's answers that a pruned model's are compared with: computed once, kept in files.

Names of shapes: R rows (tokens), V vocabulary, K likeliest tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from prunesearch.errors import StorageError, one_line
from prunesearch.scoring.tensor_files import read_tensors, write_tensors
from prunesearch.store.keys import evaluation_key

_TINY = 1e-12  # the least mass of the lump


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of the dense model on a chunk.

    Attributes:
        logits_RV: its logits, as it computed them; None when only the likeliest tokens are kept.
        log_p_RK, index_RK: float32 log-probabilities of the K likeliest tokens, and which they are.
    """

    logits_RV: torch.Tensor | None = None
    log_p_RK: torch.Tensor | None = None
    index_RK: torch.Tensor | None = None

    @classmethod
    @torch.inference_mode()
    def of(cls, blocks: Iterable[torch.Tensor], top_k: int | None) -> Self:
        """From blocks of rows of logits; `top_k` None keeps them whole."""
        if top_k is None:
            return cls(torch.cat(list(blocks)))
        tops = [torch.log_softmax(b, dim=-1, dtype=torch.float32).topk(min(top_k, b.shape[-1])) for b in blocks]
        return cls(None, torch.cat([t.values for t in tops]), torch.cat([t.indices for t in tops]).int())

    def rows(self, rows: slice, device: torch.device) -> "DenseRows":
        """A few rows, ready to be compared with."""
        if self.logits_RV is not None:
            log_p_RV = torch.log_softmax(self.logits_RV[rows].to(device), dim=-1, dtype=torch.float32)
            return DenseRows(log_p_RV.exp(), log_p_RV)
        assert self.log_p_RK is not None and self.index_RK is not None
        log_p_RK = self.log_p_RK[rows].to(device)
        return DenseRows(log_p_RK.exp(), log_p_RK, self.index_RK[rows].to(device).long())


class DenseRows:
    """The dense model's probabilities of a few tokens.

    Args:
        p, log_p: float32, shape (R, V), or (R, K) with `index_RK`.
    """

    def __init__(self, p: torch.Tensor, log_p: torch.Tensor, index_RK: torch.Tensor | None = None) -> None:
        self._p, self._index_RK = p, index_RK
        self._negative_entropy_R: torch.Tensor = torch.linalg.vecdot(p, log_p)
        if index_RK is not None:
            self._rest_R = (1 - p.sum(-1)).clamp_min(_TINY)
            self._negative_entropy_R += self._rest_R * self._rest_R.log()

    def divergence(self, log_q_RV: torch.Tensor) -> torch.Tensor:
        """KL(dense || pruned) of each row in nats, shape (R,); `log_q_RV` in float32.

        sum_v p_v (log p_v - log q_v); with the K likeliest tokens, over these and the rest r in one lump.
        """
        if self._index_RK is None:
            kl_R: torch.Tensor = self._negative_entropy_R - torch.linalg.vecdot(self._p, log_q_RV)
            return kl_R
        log_q_RK = log_q_RV.gather(1, self._index_RK)
        rest_q_R = (1 - log_q_RK.exp().sum(-1)).clamp_min(_TINY)
        kl_R = self._negative_entropy_R - torch.linalg.vecdot(self._p, log_q_RK)
        kl_R -= self._rest_R * rest_q_R.log()
        return kl_R


class ReferenceStore:
    """References by model and chunk, in a folder beside the evaluations, or in memory.

    A file that is damaged or cut short is computed again: each carries the digest of its content.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, Reference] = {}

    def get(self, fingerprint: str, chunk: dict[str, Any]) -> Reference | None:
        """The dense model's answers to a chunk, where they are known."""
        name = _name(fingerprint, chunk)
        if name not in self._held and self._folder is not None:
            found = read_tensors(self._folder / name)
            if found is not None:
                self._held[name] = Reference(**found[0])
        return self._held.get(name)

    def put(self, fingerprint: str, chunk: dict[str, Any], reference: Reference) -> None:
        """Keep the dense model's answers to a chunk.

        Raises:
            StorageError: the folder cannot be written.
        """
        name = _name(fingerprint, chunk)
        self._held[name] = reference
        if self._folder is None:
            return
        try:
            write_tensors(self._folder / name, {k: t for k, t in vars(reference).items() if t is not None})
        except OSError as error:
            raise StorageError(
                f"cannot keep the dense model's answers in {str(self._folder)!r}: {error.strerror or one_line(error)}; "
                "free space, or give --kl-top 512, which takes a fraction of it"
            ) from None


def _name(fingerprint: str, chunk: dict[str, Any]) -> str:
    return evaluation_key(fingerprint, "reference", chunk).digest + ".safetensors"
