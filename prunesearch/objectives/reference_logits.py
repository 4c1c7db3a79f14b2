"""Reference logits of the dense model, which pruned models are compared with.

They are computed once and kept in files.

Shapes: R rows (tokens), V vocabulary, K likeliest tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from prunesearch.cache.keys import evaluation_key
from prunesearch.errors import StorageError, one_line
from prunesearch.objectives.tensor_files import read_tensors, write_tensors
from prunesearch.runtime.json_values import Json

_TINY = 1e-12  # smallest probability of the tail bucket


@dataclass(frozen=True)
class Reference:
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


class ReferenceLogitsCache:
    """Keeps references by model and chunk, in files and in memory.

    Each file contains the digest of its content. A reference whose file is damaged or incomplete
    counts as missing, so it is computed again.

    Args:
        folder: folder of the files. None: references are kept in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, Reference] = {}

    def get(self, fingerprint: str, chunk: Mapping[str, Json]) -> Reference | None:
        """Return the reference of a chunk; None if it is not known."""
        name = _name(fingerprint, chunk)
        if name not in self._held and self._folder is not None:
            found = read_tensors(self._folder / name)
            if found is not None:
                self._held[name] = Reference(**found[0])
        return self._held.get(name)

    def put(self, fingerprint: str, chunk: Mapping[str, Json], reference: Reference) -> None:
        """Keep the reference of a chunk.

        Raises:
            StorageError: the folder cannot be written.
        """
        name = _name(fingerprint, chunk)
        self._held[name] = reference
        if self._folder is None:
            return
        try:
            write_tensors(
                self._folder / name, {k: t for k, t in vars(reference).items() if t is not None}
            )
        except OSError as error:
            raise StorageError(
                f"cannot keep the dense model's answers in {str(self._folder)!r}: "
                f"{error.strerror or one_line(error)}; "
                "free space, or give --kl-top 512, which takes a fraction of it"
            ) from None


def _name(fingerprint: str, chunk: Mapping[str, Json]) -> str:
    """Return the file name of a reference."""
    return evaluation_key(fingerprint, "reference", chunk).digest + ".safetensors"
