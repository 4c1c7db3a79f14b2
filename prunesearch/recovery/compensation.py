"""Compensation of a candidate without training: of its narrowed blocks (see `width_fitting`) and of
its gaps (see `gap_fitting`).

Results are stored by a digest of everything that determines them. A result holds the scales and
the changes of linear maps, from which the same weights are computed again, and the weights that
narrowed projections got.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from prunesearch import events
from prunesearch.cache.keys import canonical_json
from prunesearch.candidate import LayerSubset, named_layers
from prunesearch.errors import InputError, ModelError, UnknownNameError
from prunesearch.models.fingerprint import digest_of
from prunesearch.models.loading import LoadedModel
from prunesearch.models.narrowing import narrow_outputs
from prunesearch.models.reordering import check_order
from prunesearch.models.surgery import check_removable
from prunesearch.models.weights_state import WeightsState
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.objectives.calibration_data import check_fits, token_windows
from prunesearch.objectives.calibration_sources.registry import source_of
from prunesearch.objectives.identity import numerics_of, tokens_digest
from prunesearch.recovery.fitted_parts import (
    SUBLAYERS,
    FittedParts,
    keep_fitted,
    read_fitted,
)
from prunesearch.recovery.gap_fitting import METHODS, GapFitter
from prunesearch.recovery.gaps import GapResult, gaps_of
from prunesearch.recovery.held_out import HeldOut
from prunesearch.recovery.output_projections import Edit, put
from prunesearch.recovery.width_fitting import WidthFitter, narrowed_blocks
from prunesearch.recovery.width_results import WidthResult
from prunesearch.runtime.json_values import JsonObject
from prunesearch.widths.layer_widths import LayerWidths

COMPENSATION_VERSION = 1
"""Version of compensation. Increase it with every change that may change a compensated weight."""
WIDTHS_VERSION = 1
"""The same for narrowed blocks."""


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
        widths: results of its narrowed blocks, in order.
        gaps: results of its gaps, in order.
        dense, pruned, compensated: ``cross_entropy``, ``perplexity`` and ``kl`` (over the dense
            model's 512 likeliest tokens) on the held-out tokens.
        cached: True if a stored result was applied.
    """

    candidate: LayerSubset
    widths: tuple[WidthResult, ...]
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
        methods = {done.method for done in self.gaps} | {done.method for done in self.widths}
        return bool(methods - {"none"})

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
    """Change the kept blocks of `loaded` so that they compensate what was removed.

    Only changes that lower the loss on held-out text are kept. Tensors are replaced and not written
    to, so other holders of the dense tensors keep their values.

    Args:
        loaded: the dense model. Its channels are in the order of a candidate that narrows blocks.
        candidate: the candidate whose narrowed blocks and gaps are compensated.
        fit_BL: token ids that the scale and the linear maps are fitted to, shape (B, L).
        held_out_BL: token ids of any length. Their loss selects the ridge and decides which
            changes are kept.
        method: one of `METHODS`. ``auto`` tries both methods on each gap. Narrowed blocks are
            compensated by ``linear``.
        folder: folder in which results are stored and found again. None stores nothing.

    Raises:
        InputError: the candidate drops sublayers, its channels are in another order, or weights are
            not in memory.
        DataError: the windows do not fit the model.
        StorageError: the folder cannot be written.
        ModelError: the method does not fit this type of model, or the candidate leaves nothing to
            compensate.
        ScoringError: the pruned model's loss is not finite.
    """
    # Check the input.
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    if not isinstance(candidate, LayerWidths):
        check_removable(candidate)
    check_order(loaded.model, candidate)
    check_fits(loaded.model, fit_BL)
    check_fits(loaded.model, held_out_BL)
    if any(parameter.is_meta for parameter in loaded.model.parameters()):
        raise InputError(
            "weights that are not in memory cannot be compensated: leave out `offload` and "
            "`device_map`"
        )
    fitters = _fitters(loaded, candidate, fit_BL, held_out_BL, method)
    # Look for a stored result.
    path, found = None, None
    if folder is not None:
        digest = _digest(loaded, candidate, fit_BL, held_out_BL, method)
        path = folder / f"{digest}.safetensors"
        found = read_fitted(path, gaps_of(candidate))
    # Apply it, or search for a new one.
    cached = found is not None
    if found is None:
        found = fitters.find(HeldOut(loaded, candidate, held_out_BL))
        if path is not None:
            keep_fitted(path, found)
    else:
        fitters.repeat(found)
    # Replace the weights, and remember the dense ones.
    edit = dict(fitters.edit)
    dense_weights = {parameter: parameter.data for parameter in edit}
    done = Compensation(
        candidate,
        **vars(found),
        cached=cached,
        _state=loaded.weights,
        _change=_digest_of_weights(loaded, candidate, edit),
        _dense_weights=dense_weights,
        _own_weights=edit,
    )
    done._apply()
    return done


class _Fitters:
    """Compensates narrowed blocks first, and then gaps in the model that results.

    Args:
        widths: compensates narrowed blocks; None for none.
        gaps: compensates gaps; None for none.

    Attributes:
        edit: the weights that were changed, with their new values.
    """

    def __init__(self, widths: WidthFitter | None, gaps: GapFitter | None) -> None:
        self.edit: Edit = {}
        self._widths, self._gaps = widths, gaps

    def find(self, held_out: HeldOut) -> FittedParts:
        """Search for the changes that lower the loss."""
        metrics = held_out.pruned
        widths: tuple[WidthResult, ...] = ()
        gaps: tuple[GapResult, ...] = ()
        if self._widths is not None:
            widths = self._widths.find(held_out)
            self.edit, metrics = self._widths.edit, self._widths.metrics
        if self._gaps is not None:
            self._gaps.edit = self.edit
            gaps = self._gaps.find(held_out, metrics)
            self.edit, metrics = self._gaps.edit, self._gaps.metrics
        return FittedParts(widths, gaps, held_out.dense, held_out.pruned, metrics)

    def repeat(self, found: FittedParts) -> None:
        """Apply a stored result without searching again."""
        if self._widths is not None:
            self._widths.repeat(found.widths)
            self.edit = self._widths.edit
        if self._gaps is not None:
            self._gaps.edit = self.edit
            self._gaps.repeat(found.gaps)
            self.edit = self._gaps.edit


def _fitters(
    loaded: LoadedModel,
    candidate: LayerSubset,
    fit_BL: torch.Tensor,
    held_out_BL: torch.Tensor,
    method: str,
) -> _Fitters:
    """Return what compensates a candidate.

    Raises:
        ModelError: nothing of it can be compensated.
    """
    widths, gaps = None, None
    if method != "scaling" and narrowed_blocks(loaded.model, candidate):
        widths = WidthFitter(loaded, candidate, fit_BL, held_out_BL)
    if gaps_of(candidate):
        try:
            gaps = GapFitter(loaded, candidate, fit_BL, method)
        except ModelError as error:
            # The narrowed blocks can still be compensated.
            if widths is None:
                raise
            events.tell(events.Message(f"gaps are not compensated: {error}"))
    if widths is None and gaps is None:
        raise ModelError(
            f"dropping {named_layers(candidate.text)} leaves no gap after a kept block, and no "
            "narrower layer whose output projection could be fitted: there is nothing to compensate"
        )
    return _Fitters(widths, gaps)


def _digest_of_weights(loaded: LoadedModel, candidate: LayerSubset, edit: Edit) -> str:
    """Digest of the weights that an edit puts into the model."""
    names = {parameter: name for name, parameter in loaded.model.named_parameters()}
    # Biases of narrowed projections belong to the candidate and not to the model.
    for index in narrowed_blocks(loaded.model, candidate):
        for kind, narrow in zip(
            SUBLAYERS, narrow_outputs(loaded.model, candidate, index), strict=True
        ):
            if narrow is not None and narrow.bias is not None:
                names.setdefault(narrow.bias, f"{index}.{kind}.bias")
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
    if isinstance(candidate, LayerWidths):
        identity["widths"] = WIDTHS_VERSION
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()
