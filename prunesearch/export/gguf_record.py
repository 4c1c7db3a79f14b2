"""What a GGUF export says of itself in its header, and checking it again, at any time and on any machine.

llama.cpp passes over keys that it does not know.
"""

from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, VerificationError
from prunesearch.export import llama_cpp
from prunesearch.model.gguf_file import open_gguf
from prunesearch.model.loading import LoadedModel
from prunesearch.model.source import refuse_part

PREFIX = "prunesearch."
"""How the names of these keys begin."""
_DROPPED, _LAYERS, _BASE, _DIGEST = (f"{PREFIX}{name}" for name in ("dropped", "base_layers", "base", "digest"))
_TEXT = "The history of the lighthouse begins with"


class Record:
    """Collects what a file will say while its tensors are given to its writer."""

    def __init__(self, candidate: LayerSubset, base_fingerprint: str) -> None:
        self._candidate, self._base = candidate, base_fingerprint
        self._digest = xxhash.xxh3_128()

    def see(self, name: str, kind: str, data: np.ndarray[Any, Any]) -> None:
        """Take note of the next tensor."""
        self._digest.update(f"{name}:{kind}:{data.nbytes}:".encode())
        self._digest.update(np.ascontiguousarray(data).view(np.uint8).data)

    def add_to(self, writer: Any) -> None:  # noqa: ANN401 (gguf.GGUFWriter, which has no types)
        """Put it into the header, which must not be written yet."""
        writer.add_string(_DROPPED, self._candidate.text)
        writer.add_uint32(_LAYERS, self._candidate.n_layers)
        writer.add_string(_BASE, self._base)
        writer.add_string(_DIGEST, self.digest)

    @property
    def digest(self) -> str:
        """Of all tensors so far."""
        return self._digest.hexdigest()


def recheck(path: Path, base: LoadedModel | None = None) -> dict[str, Any]:
    """Verify a GGUF export: that its weights are those that were written, and that llama.cpp runs it.

    Args:
        base: the dense model; what llama.cpp predicts is compared with its candidate.

    Returns:
        What was found, as JSON values; ``llama_cpp`` is None where that is not installed.

    Raises:
        InputError: no export of this tool, or another base model.
        VerificationError: it is not what it was.
    """
    refuse_part(path)
    reader = open_gguf(path)
    said = {key: reader.get_field(key) for key in (_DROPPED, _LAYERS, _BASE, _DIGEST)}
    if any(field is None for field in said.values()):
        raise InputError(
            f"{str(path)!r} does not say what it was made from, so it cannot be verified: it is no export of this "
            "version; export it again"
        )
    dropped, layers, fingerprint, digest = (field.contents() for field in said.values())
    candidate = LayerSubset.parse(dropped, layers)
    record = Record(candidate, fingerprint)
    for tensor in reader.tensors:
        record.see(tensor.name, tensor.tensor_type.name, tensor.data)
    if record.digest != digest:
        raise VerificationError(f"the weights in {str(path)!r} are not those that were written: export it again")
    found = {"gguf": str(path), "dropped": dropped, "tensors": len(reader.tensors), "compared": False}
    if base is not None and base.fingerprint != fingerprint:
        raise InputError(f"{base.name!r} is not the model that {str(path)!r} was made from: its weights differ")
    if not llama_cpp.available():
        return {**found, "llama_cpp": None}
    if base is None:
        return {**found, "llama_cpp": {"generated": llama_cpp.generate(path, _TEXT)}}
    check = llama_cpp.check(path, base, candidate, most_common_type(reader))
    return {**found, "compared": True, "llama_cpp": check.document()}


def most_common_type(reader: Any) -> str:  # noqa: ANN401 (gguf.GGUFReader, which has no types)
    """In which type a file has most of its matrices, as GGUF names it."""
    types = [tensor.tensor_type.name for tensor in reader.tensors if tensor.name.endswith("_down.weight")]
    return max(types, key=types.count, default="F32")
