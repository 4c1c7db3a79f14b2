"""The dense model as a teacher: its logits of each training sequence are computed once and stored.

Shapes: B sequences of L tokens, K likeliest tokens.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from prunesearch.errors import InputError
from prunesearch.execution.batches import CHUNK_TOKENS
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import input_device
from prunesearch.objectives.base import Identity
from prunesearch.objectives.identity import SCORING_VERSION, numerics_of, tokens_digest
from prunesearch.objectives.reference_cache import ReferenceCache
from prunesearch.objectives.reference_logits import ReferenceLogits
from prunesearch.runtime import stopping

# Rows of logits that are converted to float32 at a time.
_ROWS = 64


class Teacher:
    """Teacher logits: the dense model's `top_k` likeliest tokens after each token of a sequence.

    Args:
        loaded: the dense model.
        top_k: number of likeliest tokens that are stored. The rest is one tail bucket.
        folder: folder of the `ReferenceCache`. None keeps the logits in memory.
        dense: True if the weights in memory are still those of `loaded.fingerprint`.
    """

    def __init__(
        self, loaded: LoadedModel, top_k: int, folder: Path | None, dense: bool = True
    ) -> None:
        self._loaded, self._top_k, self._folder, self._dense = loaded, top_k, folder, dense
        self._memory = ReferenceCache(None)
        self._numerics = numerics_of(loaded.model)

    def prepare(self, ids_BL: torch.Tensor, progress: Callable[[int, int], None]) -> int:
        """Compute the teacher logits that are not stored yet. The model must have all its blocks.

        Args:
            ids_BL: token ids of the sequences.
            progress: called with the number of finished sequences and their total number.

        Returns:
            Number of sequences whose logits were computed.

        Raises:
            InputError: logits are missing, and the weights are not the dense model's.
            StorageError: the logits cannot be stored.
        """
        # Find the missing sequences.
        missing = [row_L for row_L in ids_BL if self._known(row_L) is None]
        if missing and not self._dense:
            raise InputError(
                "the teacher logits are not known and its weights were changed in memory: "
                "load it afresh"
            )
        # Compute them, one forward pass at a time.
        done = len(ids_BL) - len(missing)
        for rows in self._passes(missing):
            stopping.check()
            self._ask(torch.stack(rows))
            done += len(rows)
            progress(done, len(ids_BL))
        return len(missing)

    def answers(self, ids_L: torch.Tensor) -> ReferenceLogits:
        """Return the teacher logits of a prepared sequence.

        These are float32 log-probabilities and int32 token ids, both of shape (L, K).
        """
        known = self._known(ids_L)
        # The file may have been deleted or damaged since it was prepared.
        if known is None:
            raise InputError(
                "the teacher logits have gone from the cache while training: run it again"
            )
        return known

    def _passes(self, rows: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """Split sequences into batches of one forward pass."""
        if not rows:
            return
        size = CHUNK_TOKENS.get(input_device(self._loaded.model).type, CHUNK_TOKENS["cpu"])
        most = max(1, size // len(rows[0]))
        for start in range(0, len(rows), most):
            yield rows[start : start + most]

    @torch.inference_mode()
    def _ask(self, ids_BL: torch.Tensor) -> None:
        """Compute and store the logits of a batch."""
        model = self._loaded.model
        with wide_products():
            logits_BLV = model(input_ids=ids_BL.to(input_device(model)), use_cache=False).logits
        for ids_L, logits_LV in zip(ids_BL, logits_BLV, strict=True):
            reference = ReferenceLogits.of(torch.split(logits_LV, _ROWS), self._top_k)
            self._cache().put(self._loaded.fingerprint, self._identity(ids_L), reference.tensors())

    def _known(self, ids_L: torch.Tensor) -> ReferenceLogits | None:
        """Return the stored logits of a sequence, or None."""
        known = self._cache().get(self._loaded.fingerprint, self._identity(ids_L))
        return None if known is None else ReferenceLogits(**known)

    def _cache(self) -> ReferenceCache:
        """Return the cache of the logits.

        A cache keeps in memory what it has read, and a data set may not fit in memory. Each call
        therefore opens a new store of the folder.
        """
        if self._folder is None:
            return self._memory
        return ReferenceCache(self._folder)

    def _identity(self, ids_L: torch.Tensor) -> Identity:
        """Return everything that determines the logits of a sequence, except the model."""
        return {
            "kind": f"teacher top {self._top_k}",
            "version": SCORING_VERSION,
            "numerics": self._numerics,
            "tokens": tokens_digest([ids_L.tolist()]),
        }
