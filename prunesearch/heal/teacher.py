"""The dense model as a teacher: what it says of each training sequence, asked once and kept.

Shapes: B sequences of L tokens, K likeliest tokens.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from prunesearch import stopping
from prunesearch.errors import InputError
from prunesearch.model.anatomy import input_device
from prunesearch.model.arithmetic import wide_products
from prunesearch.model.loading import LoadedModel
from prunesearch.scoring.objectives import CHUNK_TOKENS, SCORING_VERSION, numerics_of, tokens_digest
from prunesearch.scoring.reference import Reference, ReferenceStore

_ROWS = 64  # rows of logits in float32 at a time


class Teacher:
    """The dense model's `top_k` likeliest tokens behind each token of a sequence.

    Args:
        loaded: the dense model.
        top_k: how many of the likeliest tokens are kept; the rest is one lump.
        folder: where answers are kept, as a `ReferenceStore` keeps them; None: in memory.
        dense: the weights in memory are still those that `loaded.fingerprint` names.
    """

    def __init__(self, loaded: LoadedModel, top_k: int, folder: Path | None, dense: bool = True) -> None:
        self._loaded, self._top_k, self._folder, self._dense = loaded, top_k, folder, dense
        self._memory = ReferenceStore(None)
        self._numerics = numerics_of(loaded.model)

    def prepare(self, ids_BL: torch.Tensor, progress: Callable[[int, int], None]) -> int:
        """Ask for what is not known yet; the model must have all its blocks.

        Args:
            progress: told how many sequences are done, and how many there are.

        Returns:
            How many sequences the dense model was asked about.

        Raises:
            InputError: there is something to ask and the weights are no longer the dense model's.
            StorageError: answers cannot be kept.
        """
        missing = [row_L for row_L in ids_BL if self._known(row_L) is None]
        if missing and not self._dense:
            raise InputError(
                "the dense model's answers are not known and its weights were changed in memory: load it afresh"
            )
        done = len(ids_BL) - len(missing)
        for rows in self._passes(missing):
            stopping.check()
            self._ask(torch.stack(rows))
            done += len(rows)
            progress(done, len(ids_BL))
        return len(missing)

    def answers(self, ids_L: torch.Tensor) -> Reference:
        """What was prepared for a sequence: float32 log-probabilities and int32 token ids, shape (L, K)."""
        known = self._known(ids_L)
        if known is None:  # deleted, or damaged, since it was prepared
            raise InputError("the dense model's answers have gone from the store while training: run it again")
        return known

    def _passes(self, rows: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        size = CHUNK_TOKENS.get(input_device(self._loaded.model).type, CHUNK_TOKENS["cpu"])
        most = max(1, size // len(rows[0])) if rows else 1
        for start in range(0, len(rows), most):
            yield rows[start : start + most]

    @torch.inference_mode()
    def _ask(self, ids_BL: torch.Tensor) -> None:
        model = self._loaded.model
        with wide_products():
            logits_BLV = model(input_ids=ids_BL.to(input_device(model)), use_cache=False).logits
        for ids_L, logits_LV in zip(ids_BL, logits_BLV, strict=True):
            reference = Reference.of(torch.split(logits_LV, _ROWS), self._top_k)
            self._store().put(self._loaded.fingerprint, self._identity(ids_L), reference)

    def _known(self, ids_L: torch.Tensor) -> Reference | None:
        return self._store().get(self._loaded.fingerprint, self._identity(ids_L))

    def _store(self) -> ReferenceStore:
        """A fresh one over the folder each time: a store holds what it has read, and a data set may not fit memory."""
        return self._memory if self._folder is None else ReferenceStore(self._folder)

    def _identity(self, ids_L: torch.Tensor) -> dict[str, Any]:
        return {
            "kind": f"teacher top {self._top_k}",
            "version": SCORING_VERSION,
            "numerics": self._numerics,
            "tokens": tokens_digest([ids_L.tolist()]),
        }
