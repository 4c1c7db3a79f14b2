"""A cache of the dense model's outputs, which pruned models are compared with.

They are computed once and kept in files.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from prunesearch.cache.keys import evaluation_key
from prunesearch.errors import StorageError, one_line
from prunesearch.objectives.base import Identity
from prunesearch.objectives.tensor_files import read_tensors, write_tensors


class ReferenceCache:
    """Keeps tensors of the dense model by model and chunk, in files and in memory.

    Each file contains the digest of its content. A reference whose file is damaged or incomplete
    counts as missing, so it is computed again.

    Args:
        folder: folder of the files. None: references are kept in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, Mapping[str, torch.Tensor]] = {}

    def get(self, fingerprint: str, chunk: Identity) -> Mapping[str, torch.Tensor] | None:
        """Return the reference of a chunk; None if it is not known."""
        name = _name(fingerprint, chunk)
        if name not in self._held and self._folder is not None:
            found = read_tensors(self._folder / name)
            if found is not None:
                self._held[name] = found[0]
        return self._held.get(name)

    def put(self, fingerprint: str, chunk: Identity, reference: Mapping[str, torch.Tensor]) -> None:
        """Keep the reference of a chunk.

        Raises:
            StorageError: the folder cannot be written.
        """
        name = _name(fingerprint, chunk)
        self._held[name] = reference
        if self._folder is None:
            return
        try:
            write_tensors(self._folder / name, reference)
        except OSError as error:
            raise StorageError(
                f"cannot keep the dense model's outputs in {str(self._folder)!r}: "
                f"{error.strerror or one_line(error)}; "
                "free space, or give `kl_top` 512, which takes a fraction of it"
            ) from None


def _name(fingerprint: str, chunk: Identity) -> str:
    """Return the file name of a reference."""
    return evaluation_key(fingerprint, "reference", chunk).digest + ".safetensors"
