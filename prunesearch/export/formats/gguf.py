"""A GGUF file for llama.cpp."""

from pathlib import Path
from typing import TYPE_CHECKING

from prunesearch.candidate import LayerSubset
from prunesearch.export.formats.registry import ExportFormat, narrows, register

if TYPE_CHECKING:
    from prunesearch.export.results import ExportedGguf
    from prunesearch.models.loading import LoadedModel


class Gguf(ExportFormat):
    """A GGUF model is edited block by block, and a checkpoint is converted."""

    def write_file(
        self, loaded: "LoadedModel", candidate: LayerSubset, out: Path
    ) -> "ExportedGguf":
        """Write a GGUF file, and compare it in llama.cpp if that is installed."""
        from prunesearch.export import gguf_edit, gguf_write, llama_cpp
        from prunesearch.export.results import ExportedGguf

        # Columns of quantised tensors cannot be put in another order, so the weights of narrow
        # layers are written in the dtype in which they were scored.
        if loaded.source.gguf is not None and not narrows(candidate):
            compare = loaded if llama_cpp.available() else None
            check = gguf_edit.edit(loaded.source.gguf, candidate, out, compare, loaded.fingerprint)
        else:
            check = gguf_write.write(loaded, candidate, out, compare=llama_cpp.available())
        return ExportedGguf(out, out.stat().st_size, candidate, check)


register(
    Gguf(
        "gguf",
        "A GGUF file: llama.cpp and programs built on it load it.",
        order=50,
        narrowed=True,
        option="--gguf",
        other_program=True,
        suffix=".gguf",
        hub=False,
        shards=False,
    )
)
