"""The record of an export in the header of a GGUF file, and its verification at any time on any
machine.

llama.cpp ignores keys that it does not know.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xxhash

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, VerificationError
from prunesearch.export import llama_cpp
from prunesearch.export.channel_order_file import as_text, from_text
from prunesearch.export.results import Generated, GgufRecheck, LlamaCppCheck
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.gguf_file import open_gguf
from prunesearch.models.loading import LoadedModel
from prunesearch.models.reordering import reorder
from prunesearch.models.source import refuse_part
from prunesearch.models.width_shape import width_shape_of
from prunesearch.widths.layer_widths import LayerWidths

PREFIX = "prunesearch."
"""Start of the names of these keys."""
_DROPPED = f"{PREFIX}dropped"
_LAYERS = f"{PREFIX}base_layers"
_BASE = f"{PREFIX}base"
_DIGEST = f"{PREFIX}digest"
_ORDER = f"{PREFIX}order"
_ORDER_TEXT = f"{PREFIX}channel_order"
_TEXT = "The history of the lighthouse begins with"


class Record:
    """The record of a file, which is collected while the tensors are added to its writer.

    Args:
        candidate: candidate that is written.
        base_fingerprint: fingerprint of the dense model.
        order: channel order of narrow layers. None: no layer is narrower.
    """

    def __init__(
        self, candidate: LayerSubset, base_fingerprint: str, order: ChannelOrder | None = None
    ) -> None:
        self._candidate, self._base, self._order = candidate, base_fingerprint, order
        self._digest = xxhash.xxh3_128()

    def see(self, name: str, kind: str, data: np.ndarray[Any, Any]) -> None:
        """Add the next tensor to the digest.

        Args:
            name: name of the tensor.
            kind: GGUF's name of its type.
            data: content of the tensor.
        """
        self._digest.update(f"{name}:{kind}:{data.nbytes}:".encode())
        self._digest.update(np.ascontiguousarray(data).view(np.uint8).data)

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Add the record to a header that is not written yet."""
        writer.add_string(_DROPPED, self._candidate.text)
        writer.add_uint32(_LAYERS, self._candidate.n_layers)
        writer.add_string(_BASE, self._base)
        writer.add_string(_DIGEST, self.digest)
        if self._order is not None:
            writer.add_string(_ORDER, self._order.digest)
            writer.add_string(_ORDER_TEXT, as_text(self._order))

    @property
    def digest(self) -> str:
        """Return the digest of all tensors so far."""
        return self._digest.hexdigest()


def recheck(path: Path, base: LoadedModel | None = None) -> GgufRecheck:
    """Verify a GGUF export: its weights must be unchanged, and llama.cpp must run it.

    Args:
        path: GGUF file.
        base: dense model. If given, llama.cpp's predictions are compared with its candidate.

    Raises:
        InputError: the file is not an export of this tool, or it was made from another base model.
        VerificationError: the file has changed, or llama.cpp predicts something else.
    """
    # Read the record.
    refuse_part(path)
    reader = open_gguf(path)
    said: list[Any] = []
    for key in (_DROPPED, _LAYERS, _BASE, _DIGEST):
        field = reader.get_field(key)
        if field is None:
            raise InputError(
                f"{str(path)!r} does not say what it was made from, so it cannot be verified: it "
                f"is not an export of "
                "this version; export it again"
            )
        said.append(field.contents())
    dropped, layers, fingerprint, digest = said
    # Compare the weights with the record.
    record = Record(LayerSubset.of(layers), fingerprint)
    for tensor in reader.tensors:
        record.see(tensor.name, tensor.tensor_type.name, tensor.data)
    if record.digest != digest:
        raise VerificationError(
            f"the weights in {str(path)!r} are not those that were written: export it again"
        )
    if base is not None and base.fingerprint != fingerprint:
        raise InputError(
            f"{base.name!r} is not the model that {str(path)!r} was made from: its weights differ"
        )
    # Run the file in llama.cpp as far as that is possible here.
    run: LlamaCppCheck | Generated | None = None
    compared = base is not None and llama_cpp.available()
    if base is not None and compared:
        candidate = _candidate(path, reader, base, dropped)
        run = llama_cpp.check(path, base, candidate, most_common_type(reader))
    elif llama_cpp.available():
        run = Generated(llama_cpp.generate(path, _TEXT))
    return GgufRecheck(path, dropped, len(reader.tensors), compared, run)


def _candidate(path: Path, reader: gguf.GGUFReader, base: LoadedModel, dropped: str) -> LayerSubset:
    """Return the candidate of a file. The channels of the base model are put in its order.

    Raises:
        VerificationError: the channel order is damaged.
    """
    said = [reader.get_field(key) for key in (_ORDER, _ORDER_TEXT)]
    if said[0] is None or said[1] is None:
        return LayerSubset.parse(dropped, base.n_layers)
    order = from_text(str(said[1].contents()), str(said[0].contents()), path)
    reorder(base.model, order)
    return LayerWidths.read(dropped, width_shape_of(base.model), order.digest, order.biases)


def most_common_type(reader: gguf.GGUFReader) -> str:
    """Return GGUF's name of the type that most matrices of a file have."""
    types = [
        tensor.tensor_type.name for tensor in reader.tensors if tensor.name.endswith("_down.weight")
    ]
    return max(types, key=types.count, default="F32")
