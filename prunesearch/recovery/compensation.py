"""Compensation of a candidate's gaps without training (see `gap_fitting`).

Results are stored by a digest of everything that determines them. A result holds the scales and
the changes of linear maps, from which the same weights are computed again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from prunesearch.cache.files import cannot_write
from prunesearch.cache.keys import canonical_json
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError, StorageError, UnknownNameError
from prunesearch.models.fingerprint import digest_of
from prunesearch.models.loading import LoadedModel
from prunesearch.models.surgery import check_removable
from prunesearch.models.weights_state import WeightsState
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.objectives.calibration_data import check_fits, token_windows
from prunesearch.objectives.calibration_sources.registry import source_of
from prunesearch.objectives.identity import numerics_of, tokens_digest
from prunesearch.objectives.tensor_files import read_tensors, write_tensors
from prunesearch.recovery.gap_fitting import METHODS, GapFitter
from prunesearch.recovery.gaps import FittedGaps, Gap, GapResult, gaps_of
from prunesearch.recovery.held_out import HeldOut
from prunesearch.recovery.output_projections import Edit, put
from prunesearch.runtime.json_values import JsonObject

COMPENSATION_VERSION = 1
"""Version of compensation. Increase it with every change that may change a compensated weight."""
# Attributes of a compensated gap that are stored besides its change.
_NUMBERS = ("alpha", "ridge", "loss_before", "loss_after", "seconds")
_NOTE = "found"


@dataclass(frozen=True)
class CompensationSettings:
    """Settings of a compensation without healing.

    Attributes:
        method: one of `METHODS`.
        calibration: text to fit to.
        tokens: number of tokens to fit to.
        window: tokens of a window.
        held_out: text that must improve. None: see `fit_and_held_out`.
        held_out_tokens: number of held-out tokens.
    """

    method: str = "auto"
    calibration: str = BUILTIN_TEXT
    tokens: int = 16384
    window: int = 256
    held_out: str | None = None
    held_out_tokens: int = 2048


@dataclass(frozen=True)
class Compensation:
    """A compensation whose weights are in the model, until `undo` restores the dense ones.

    As a context manager it restores the dense weights at the end of the ``with`` block.

    Attributes:
        candidate: the candidate.
        gaps: results of its gaps, in order.
        dense, pruned, compensated: ``cross_entropy``, ``perplexity`` and ``kl`` (over the dense
            model's 512 likeliest tokens) on the held-out tokens.
        cached: True if a stored result was applied.
    """

    candidate: LayerSubset
    gaps: tuple[GapResult, ...]
    dense: Mapping[str, float]
    pruned: Mapping[str, float]
    compensated: Mapping[str, float]
    cached: bool
    _state: WeightsState = field(repr=False)
    _change: str = field(repr=False)
    """Digest of the changed weights."""
    _dense_weights: Edit = field(repr=False)
    _own_weights: Edit = field(repr=False)

    @property
    def changed(self) -> tuple[nn.Parameter, ...]:
        """Parameters whose weights were replaced."""
        return tuple(self._dense_weights)

    @property
    def helped(self) -> bool:
        """True if any weight was changed."""
        return any(done.method != "none" for done in self.gaps)

    @property
    def recovered(self) -> float:
        """Recovered share of the cross-entropy that pruning added; 0 if none was lost."""
        lost = self.pruned["cross_entropy"] - self.dense["cross_entropy"]
        if not lost > 0:
            return 0.0
        return (self.pruned["cross_entropy"] - self.compensated["cross_entropy"]) / lost

    def undo(self) -> None:
        """Restore the dense weights. They are the same tensors as before."""
        put(self._dense_weights)
        self._state.remove(self._change)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Restore the dense weights inside the ``with`` block only."""
        self.undo()
        try:
            yield
        finally:
            self._apply()

    def _apply(self) -> None:
        """Replace the weights, and register the change if there is one."""
        put(self._own_weights)
        if self._own_weights:
            self._state.add(self._change)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def compensate(
    loaded: LoadedModel,
    candidate: LayerSubset,
    fit_BL: torch.Tensor,
    held_out_BL: torch.Tensor,
    method: str = "auto",
    folder: Path | None = None,
) -> Compensation:
    """Change the kept blocks of `loaded` so that they compensate the dropped ones.

    Only changes that lower the loss on held-out text are kept. Tensors are replaced and not written
    to, so other holders of the dense tensors keep their values.

    Args:
        loaded: the dense model.
        candidate: the candidate whose gaps are compensated.
        fit_BL: token ids that the scale and the linear map are fitted to, shape (B, L).
        held_out_BL: token ids of any length. Their loss selects the ridge and decides which
            changes are kept.
        method: one of `METHODS`. ``auto`` tries both methods on each gap.
        folder: folder in which results are stored and found again. None stores nothing.

    Raises:
        InputError: the candidate drops sublayers, or weights are not in memory.
        DataError: the windows do not fit the model.
        StorageError: the folder cannot be written.
        ModelError: the method does not fit this type of model, or the candidate leaves no gap.
        ScoringError: the pruned model's loss is not finite.
    """
    # Check the input.
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    check_removable(candidate)
    check_fits(loaded.model, fit_BL)
    check_fits(loaded.model, held_out_BL)
    gaps = gaps_of(candidate)
    if not gaps:
        raise ModelError(
            f"dropping layers {candidate.text} leaves no gap after a kept block: there is nothing "
            f"to compensate"
        )
    if any(parameter.is_meta for parameter in loaded.model.parameters()):
        raise InputError(
            "weights that are not in memory cannot be compensated: leave out `offload` and "
            "`device_map`"
        )
    gap_fitter = GapFitter(loaded, candidate, fit_BL, method)
    # Look for a stored result.
    path, found = None, None
    if folder is not None:
        digest = _digest(loaded, candidate, fit_BL, held_out_BL, method)
        path = folder / f"{digest}.safetensors"
        found = _read(path, gaps)
    # Apply it, or search for a new one.
    cached = found is not None
    if found is None:
        found = gap_fitter.find(HeldOut(loaded, candidate, held_out_BL))
        if path is not None:
            _keep(path, found)
    else:
        gap_fitter.repeat(found)
    # Replace the weights, and remember the dense ones.
    edit = dict(gap_fitter.edit)
    dense_weights = {parameter: parameter.data for parameter in edit}
    done = Compensation(
        candidate,
        **vars(found),
        cached=cached,
        _state=loaded.weights,
        _change=_digest_of_weights(loaded, edit),
        _dense_weights=dense_weights,
        _own_weights=edit,
    )
    done._apply()
    return done


def _digest_of_weights(loaded: LoadedModel, edit: Edit) -> str:
    """Digest of the weights that an edit puts into the model."""
    names = {parameter: name for name, parameter in loaded.model.named_parameters()}
    return digest_of({names[parameter]: tensor for parameter, tensor in edit.items()})


def fit_and_held_out(
    tokenizer: PreTrainedTokenizerBase,
    calibration: str,
    tokens: int,
    window: int,
    held_out: str | None = None,
    held_out_tokens: int = 2048,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read windows of text to fit to, and held-out windows. They have no window in common.

    Args:
        tokenizer: tokenizer of the model.
        calibration: text to fit to.
        tokens: number of tokens to fit to.
        window: tokens of a window.
        held_out: held-out text. None takes the held-out part of the builtin text, or else other
            windows of the calibration text.
        held_out_tokens: number of held-out tokens.

    Raises:
        DataError: a text is missing or too short.
    """
    # Split one text in two if it has no held-out part.
    apart = held_out or source_of(calibration).held_out(calibration)
    if apart is None:
        both_BL = token_windows(calibration, tokenizer, tokens + held_out_tokens, window)
        fit_BL, held_out_BL = both_BL.tensor_split([tokens // both_BL.shape[1]])
        return fit_BL, held_out_BL
    return (
        token_windows(calibration, tokenizer, tokens, window),
        token_windows(apart, tokenizer, held_out_tokens, window),
    )


def _digest(
    loaded: LoadedModel,
    candidate: LayerSubset,
    fit_BL: torch.Tensor,
    held_out_BL: torch.Tensor,
    method: str,
) -> str:
    """Digest of everything that determines a compensation."""
    identity: JsonObject = {
        "version": COMPENSATION_VERSION,
        "model": loaded.content,
        "candidate": candidate.canonical,
        "fit": tokens_digest(fit_BL.tolist()),
        "held_out": tokens_digest(held_out_BL.tolist()),
        "method": method,
        "numerics": numerics_of(loaded.model),
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def _keep(path: Path, found: FittedGaps) -> None:
    """Store a result: numbers as JSON in the header, and changes of linear maps as tensors.

    Raises:
        StorageError: the file cannot be written.
    """
    notes = {name: metrics for name, metrics in vars(found).items() if name != "gaps"}
    gaps = []
    changes: dict[str, torch.Tensor] = {}
    for index, fitted in enumerate(found.gaps):
        gaps.append({name: getattr(fitted, name) for name in _NUMBERS})
        if fitted.change_FE is not None:
            changes[str(index)] = fitted.change_FE
    try:
        write_tensors(path, changes, {_NOTE: json.dumps({**notes, "gaps": gaps})})
    except OSError as error:
        raise StorageError(
            f"cannot keep the compensation: {cannot_write(path.parent, error)}"
        ) from None


def _read(path: Path, gaps: Sequence[Gap]) -> FittedGaps | None:
    """Read a stored result. None if there is none or its file is damaged."""
    kept = read_tensors(path)
    if kept is None:
        return None
    changes, notes = kept
    found = json.loads(notes[_NOTE])
    numbers = found.pop("gaps")
    fitted = []
    for index, gap in enumerate(gaps):
        fitted.append(GapResult(gap, **numbers[index], change_FE=changes.get(str(index))))
    return FittedGaps(tuple(fitted), **found)
