"""Compensation without training: a candidate's gaps bridged (see `bridges`), and the model taken back or exported.

What was found is kept by everything that determines it: the scales and the changes of linear maps, from which the same
weights follow.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from prunesearch.candidate import LayerSubset
from prunesearch.errors import (
    InputError,
    ModelError,
    RunError,
    StorageError,
    UnknownNameError,
)
from prunesearch.export import export
from prunesearch.export.writer import MAX_SHARD
from prunesearch.heal.bridges import METHODS, Bridged, Bridges, Found, Gap, HeldOut, gaps_of
from prunesearch.heal.writers import Edit, put
from prunesearch.model.fingerprint import fingerprint
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import check_removable
from prunesearch.recipe import BUILTIN_TEXT
from prunesearch.scoring.objectives import numerics_of, tokens_digest
from prunesearch.scoring.tensor_files import read_tensors, write_tensors
from prunesearch.scoring.text import HELD_OUT, check_fits, token_windows
from prunesearch.store.files import cannot_write
from prunesearch.store.keys import canonical_json

COMPENSATION_VERSION = 1
"""Raised whenever a change of this module may change a compensated weight."""
_NUMBERS = ("alpha", "ridge", "loss_before", "loss_after", "seconds")  # of a bridged gap, beside the change
_NOTE = "found"


@dataclass(frozen=True)
class Compensation:
    """A model whose weights make up for a candidate's gaps.

    As a context manager it takes the compensation back at the end of the ``with`` block.

    Attributes:
        gaps: what was done about each, in order.
        dense, pruned, compensated: ``cross_entropy``, ``perplexity`` and ``kl`` (over the dense model's 512 likeliest
            tokens) on the held-out tokens.
        cached: it had been found before, and was only put in place.
    """

    candidate: LayerSubset
    gaps: tuple[Bridged, ...]
    dense: Mapping[str, float]
    pruned: Mapping[str, float]
    compensated: Mapping[str, float]
    cached: bool
    _dense_weights: Edit = field(repr=False)

    @property
    def changed(self) -> tuple[nn.Parameter, ...]:
        """The parameters whose weights were replaced."""
        return tuple(self._dense_weights)

    @property
    def helped(self) -> bool:
        """Whether any weight was changed."""
        return any(done.method != "none" for done in self.gaps)

    @property
    def recovered(self) -> float:
        """Share of the log-perplexity lost by pruning that came back; 0 where none was lost."""
        lost = self.pruned["cross_entropy"] - self.dense["cross_entropy"]
        return (self.pruned["cross_entropy"] - self.compensated["cross_entropy"]) / lost if lost > 0 else 0.0

    def undo(self) -> None:
        """Put the dense model's weights back: the very same tensors."""
        put(self._dense_weights)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "dropped": self.candidate.text,
            "gaps": [done.document() for done in self.gaps],
            "dense": dict(self.dense),
            "pruned": dict(self.pruned),
            "compensated": dict(self.compensated),
            "recovered": self.recovered,
            "cached": self.cached,
        }


def compensate(
    loaded: LoadedModel,
    candidate: LayerSubset,
    fit_BL: torch.Tensor,
    held_out_BL: torch.Tensor,
    method: str = "auto",
    folder: Path | None = None,
) -> Compensation:
    """Let the kept blocks of `loaded` make up for the dropped ones, where that lowers the loss on held-out text.

    Weights are replaced, not written into: who shares the dense tensors keeps them as they are.

    Args:
        fit_BL: token ids that scale and map are fitted to, shape (B, L).
        held_out_BL: token ids, of any length, that strength and use are decided by.
        method: one of `METHODS`; ``auto`` tries both on each gap.
        folder: where what is found is kept, and found again; None: nowhere.

    Raises:
        InputError: the candidate drops sublayers, or weights are not in memory.
        DataError: the windows do not fit the model.
        StorageError: the folder cannot be written.
        ModelError: the method does not fit this type of model, or the candidate leaves no gap.
        ScoringError: the pruned model's loss is not finite.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    check_removable(candidate)
    check_fits(loaded.model, fit_BL)
    check_fits(loaded.model, held_out_BL)
    gaps = gaps_of(candidate)
    if not gaps:
        raise ModelError(
            f"dropping layers {candidate.text} leaves no gap behind a kept one: there is nothing to compensate"
        )
    if any(parameter.is_meta for parameter in loaded.model.parameters()):
        raise InputError("weights that are not in memory cannot be compensated: leave out --weights and --device-map")
    bridges = Bridges(loaded, candidate, fit_BL, method)
    path = None if folder is None else folder / f"{_digest(loaded, candidate, fit_BL, held_out_BL, method)}.safetensors"
    found = None if path is None else _read(path, gaps)
    cached = found is not None
    if found is None:
        found = bridges.find(HeldOut(loaded, candidate, held_out_BL))
        if path is not None:
            _keep(path, found)
    else:
        bridges.repeat(found)
    dense_weights = {parameter: parameter.data for parameter in bridges.edit}
    put(bridges.edit)
    return Compensation(candidate, **vars(found), cached=cached, _dense_weights=dense_weights)


def compensate_and_export(
    loaded: LoadedModel,
    candidate: LayerSubset,
    out: Path,
    windows: tuple[torch.Tensor, torch.Tensor],
    *,
    facts: Mapping[str, Any],
    method: str = "auto",
    folder: Path | None = None,
    max_shard: int = MAX_SHARD,
) -> dict[str, Any]:
    """Write the compensated candidate; `loaded` is the dense model again afterwards.

    Args:
        windows: what `compensate` fits to, and what it decides by.
        facts: what is known of the candidate, for the manifest.
        folder: where compensations are kept.

    Returns:
        What was done and what was made, as JSON values.

    Raises:
        RunError: the compensation does not help, or see `compensate` and `export`; nothing is written.
    """
    with compensate(loaded, candidate, *windows, method, folder) as done:
        document = done.document()
        if not done.helped:
            raise RunError(
                f"compensation does not help on the held-out tokens (cross-entropy without layers {candidate.text} is "
                f"{done.pruned['cross_entropy']:.4f}): nothing was written; fit it to more --tokens of --calibration"
            )
        figures = {"metrics": done.compensated, "stderr": {}, "dense_metrics": done.dense}
        facts = {**facts, **figures, "compensation": document}
        made = export(loaded, candidate, out, facts, changed=("compensated",), max_shard=max_shard)
    return {"compensation": document, "export": made.document()}


def fit_and_held_out(
    tokenizer: PreTrainedTokenizerBase,
    calibration: str,
    tokens: int,
    window: int,
    held_out: str | None = None,
    held_out_tokens: int = 2048,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of text to fit to and to decide by, which have none in common.

    Args:
        held_out: where the latter come from; None: the builtin text's held-out part, or else other windows of the
            calibration text.

    Raises:
        DataError: a text is missing or too short.
    """
    if held_out is None and calibration != BUILTIN_TEXT:
        both_BL = token_windows(calibration, tokenizer, tokens + held_out_tokens, window)
        fit_BL, held_out_BL = both_BL.tensor_split([tokens // both_BL.shape[1]])
        return fit_BL, held_out_BL
    return (
        token_windows(calibration, tokenizer, tokens, window),
        token_windows(held_out or HELD_OUT, tokenizer, held_out_tokens, window),
    )


def _digest(
    loaded: LoadedModel, candidate: LayerSubset, fit_BL: torch.Tensor, held_out_BL: torch.Tensor, method: str
) -> str:
    """Of everything that determines a compensation."""
    identity = {
        "version": COMPENSATION_VERSION,
        "model": fingerprint(loaded.model),
        "candidate": candidate.canonical,
        "fit": tokens_digest(fit_BL.tolist()),
        "held_out": tokens_digest(held_out_BL.tolist()),
        "method": method,
        "numerics": numerics_of(loaded.model),
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def _keep(path: Path, found: Found) -> None:
    notes = {name: metrics for name, metrics in vars(found).items() if name != "gaps"}
    gaps = [{name: getattr(bridged, name) for name in _NUMBERS} for bridged in found.gaps]
    changes = {str(i): b.change_FE for i, b in enumerate(found.gaps) if b.change_FE is not None}
    try:
        write_tensors(path, changes, {_NOTE: json.dumps({**notes, "gaps": gaps})})
    except OSError as error:
        raise StorageError(f"cannot keep the compensation: {cannot_write(path.parent, error)}") from None


def _read(path: Path, gaps: Sequence[Gap]) -> Found | None:
    """What was found before; None where it is not known or its file is damaged."""
    kept = read_tensors(path)
    if kept is None:
        return None
    changes, notes = kept
    found = json.loads(notes[_NOTE])
    numbers = found.pop("gaps")
    bridged = (Bridged(gap, **numbers[i], change_FE=changes.get(str(i))) for i, gap in enumerate(gaps))
    return Found(tuple(bridged), **found)
