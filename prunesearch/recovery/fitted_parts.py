"""Results of a compensation in a file: numbers as JSON in its header, and weights as tensors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from prunesearch.cache.files import cannot_write
from prunesearch.errors import StorageError
from prunesearch.objectives.tensor_files import read_tensors, write_tensors
from prunesearch.recovery.gaps import Gap, GapResult
from prunesearch.recovery.width_results import SublayerFit, WidthResult
from prunesearch.runtime.json_values import JsonObject

SUBLAYERS = ("attention", "mlp")
"""Sublayers of a narrowed block whose fits are stored."""
# Attributes that are stored besides the tensors.
_OF_GAP = ("alpha", "ridge", "loss_before", "loss_after", "seconds")
_OF_FIT = ("ridge", "error_before", "error_after")
_NOTE = "found"


@dataclass(frozen=True)
class FittedParts:
    """Results for all narrowed blocks and gaps of a candidate. The metrics are those of
    `Compensation`.
    """

    widths: tuple[WidthResult, ...]
    gaps: tuple[GapResult, ...]
    dense: Mapping[str, float]
    pruned: Mapping[str, float]
    compensated: Mapping[str, float]


def keep_fitted(path: Path, found: FittedParts) -> None:
    """Store a result.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    # Gaps have one change each.
    gaps: list[JsonObject] = []
    for index, fitted in enumerate(found.gaps):
        gaps.append({name: getattr(fitted, name) for name in _OF_GAP})
        if fitted.change_FE is not None:
            tensors[str(index)] = fitted.change_FE
    # Narrowed blocks have weights and biases of their sublayers.
    widths: list[JsonObject] = []
    for result in found.widths:
        document: JsonObject = {"block": result.block, "seconds": result.seconds}
        for kind in SUBLAYERS:
            fit = getattr(result, kind)
            if fit is None:
                continue
            document[kind] = {name: getattr(fit, name) for name in _OF_FIT}
            tensors[f"{result.block}.{kind}.weight"] = fit.weight_EK.contiguous()
            if fit.bias_E is not None:
                tensors[f"{result.block}.{kind}.bias"] = fit.bias_E
        widths.append(document)
    metrics = {name: getattr(found, name) for name in ("dense", "pruned", "compensated")}
    note = {**metrics, "gaps": gaps}
    if widths:
        note["widths"] = widths
    try:
        write_tensors(path, tensors, {_NOTE: json.dumps(note)})
    except OSError as error:
        raise StorageError(
            f"cannot keep the compensation: {cannot_write(path.parent, error)}"
        ) from None


def read_fitted(path: Path, gaps: Sequence[Gap]) -> FittedParts | None:
    """Read a stored result. None if there is none or its file is damaged.

    Args:
        path: the file.
        gaps: gaps of the candidate, in order.
    """
    kept = read_tensors(path)
    if kept is None:
        return None
    tensors, notes = kept
    found = json.loads(notes[_NOTE])
    of_gaps, of_widths = found.pop("gaps"), found.pop("widths", [])
    # Gaps are stored in order. None of them is stored if they could not be compensated.
    fitted = []
    for index, numbers in enumerate(of_gaps):
        fitted.append(GapResult(gaps[index], **numbers, change_FE=tensors.get(str(index))))
    widths = []
    for document in of_widths:
        block = document["block"]
        fits: list[SublayerFit | None] = []
        for kind in SUBLAYERS:
            fit = None
            if kind in document:
                weight_EK = tensors[f"{block}.{kind}.weight"]
                bias_E = tensors.get(f"{block}.{kind}.bias")
                fit = SublayerFit(**document[kind], weight_EK=weight_EK, bias_E=bias_E)
            fits.append(fit)
        widths.append(WidthResult(block, fits[0], fits[1], document["seconds"]))
    return FittedParts(tuple(widths), tuple(fitted), **found)
