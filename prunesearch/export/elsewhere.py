"""The same removal said to other programs."""

from pathlib import Path

import yaml

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError

PROGRAMS = ("mergekit", "llama-quantize")


def say(program: str, model: str, candidate: LayerSubset, dtype: str) -> str:
    """How `program` is told to drop the candidate's blocks.

    Args:
        dtype: of the weights, for mergekit.

    Raises:
        InputError: an unknown program, or a candidate with sublayers.
    """
    if not candidate.whole_blocks:
        raise InputError(f"layers {candidate.text} name sublayers, and {program} drops whole blocks only")
    return _mergekit(model, candidate, dtype) if program == "mergekit" else _llama_quantize(model, candidate)


def _mergekit(model: str, candidate: LayerSubset, dtype: str) -> str:
    """A passthrough merge; mergekit sets the number of blocks only, so it suits models without per-layer settings."""
    slices = [{"sources": [{"model": model, "layer_range": list(run)}]} for run in runs(candidate.kept)]
    return str(yaml.safe_dump({"slices": slices, "merge_method": "passthrough", "dtype": dtype}, sort_keys=False))


def _llama_quantize(model: str, candidate: LayerSubset) -> str:
    name = model if model.endswith(".gguf") else f"{Path(model).name}.gguf"
    layers = ",".join(str(i) for i in candidate.dropped)
    return f"llama-quantize --prune-layers {layers} {name} {Path(name).stem}-pruned.gguf COPY\n"


def runs(kept: tuple[int, ...]) -> list[tuple[int, int]]:
    """The kept blocks as half-open ranges.

    >>> runs((0, 1, 4))
    [(0, 2), (4, 5)]
    """
    found: list[tuple[int, int]] = []
    for i in kept:
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found
