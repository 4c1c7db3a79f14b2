"""Compensation without training: weights that stay make up for the blocks that are gone, and no weight is added.

A gap, a run of dropped blocks between kept ones, is bridged in two ways, one after the other, each only where it lowers
the loss on held-out text:

* ``scaling``, Prune&Comp (arXiv 2507.18212): a dropped block would have made the hidden state longer, by the mean ratio
  of norms alpha. Instead of the state before the gap, all that later sublayers add to it is scaled, by 1/alpha. Norms
  make both the same (but for their eps), and embeddings, which the head may share, stay as they are.
* ``linear``, after ReplaceMe (arXiv 2505.02819): with H the state before the gap in the compensated model, T the
  dense model's behind it and Z the input of the last linear map W of the MLP before the gap, it is W + D, where

      D = argmin sum_t |H_t + Z_t D - T_t|^2 / |T_t|^2 + ridge |D|^2 .

  ReplaceMe maps the MLP's output M = Z W by (M^T M)^-1 M^T (T - H + M), which gives those D that are W times a matrix;
  D reaches further. The ridge pulls towards no change, not towards zero. A token weighs by the inverse of its squared
  length, as norms will make them all equally long; else the few tokens with huge states would decide alone.

Gaps are bridged from the first to the last, each in the model in which those before it are. Which module is a
sublayer's last linear map is observed, and that it can be changed as said is tried out on a window of the text.

Shapes: B windows of L tokens, T tokens, F inputs of the linear map (and a one for its bias), E hidden size.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError, RunError, ScoringError, UnknownNameError
from prunesearch.export import export
from prunesearch.export.writer import MAX_SHARD
from prunesearch.model.anatomy import blocks_of, family_of, parts_of
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import check_removable
from prunesearch.recipe import BUILTIN_TEXT
from prunesearch.scoring.batches import Rows
from prunesearch.scoring.forward import Call, Forward, Head, through
from prunesearch.scoring.objectives import CHUNK_TOKENS, CalibrationObjective
from prunesearch.scoring.text import HELD_OUT, token_windows

METHODS = ("auto", "scaling", "linear")
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Strengths that are tried, from the middle on: multiples of an input's mean square, over the weighed tokens."""
_KL_TOP = 512  # of the dense model's likeliest tokens: keeps its answers to a few thousand tokens in a few megabytes
_ALIKE = 0.02  # relative difference: more than eps or 16-bit rounding make, less than a norm in the way

Linear = nn.Linear | Conv1D
"""Conv1D keeps its weight transposed."""
Edit = Mapping[nn.Parameter, torch.Tensor]
"""Weights with what shall stand in their place."""


@dataclass(frozen=True)
class Gap:
    """Dropped blocks between two that are kept; `before` is the index of the last one before them."""

    before: int
    dropped: tuple[int, ...]

    @property
    def text(self) -> str:
        """The dropped blocks, with commas."""
        return ",".join(map(str, self.dropped))


def gaps_of(candidate: LayerSubset) -> list[Gap]:
    """The gaps that have a kept block before and behind them, in order."""
    kept = candidate.kept
    return [Gap(a, tuple(range(a + 1, b))) for a, b in pairwise(kept) if b > a + 1]


@dataclass(frozen=True)
class Bridged:
    """What was done about a gap.

    Attributes:
        alpha: what its blocks multiply the state's norm by, where that is made up for; else None.
        ridge: one of `RIDGES`, where a linear map was fitted; else None.
        loss_before, loss_after: cross-entropy of the held-out tokens, in nats per token.
    """

    gap: Gap
    alpha: float | None
    ridge: float | None
    loss_before: float
    loss_after: float
    seconds: float

    @property
    def method(self) -> str:
        """``scaling``, ``linear``, ``scaling+linear`` or ``none``."""
        used = (("scaling", self.alpha), ("linear", self.ridge))
        return "+".join(name for name, value in used if value is not None) or "none"

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "dropped": self.gap.text,
            "method": self.method,
            "alpha": self.alpha,
            "ridge": self.ridge,
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class Compensation:
    """A model whose weights make up for a candidate's gaps.

    As a context manager it takes the compensation back at the end of the ``with`` block.

    Attributes:
        gaps: what was done about each, in order.
        dense, pruned, compensated: ``cross_entropy``, ``perplexity`` and ``kl`` (over the dense model's 512 likeliest
            tokens) on the held-out tokens.
    """

    candidate: LayerSubset
    gaps: tuple[Bridged, ...]
    dense: Mapping[str, float]
    pruned: Mapping[str, float]
    compensated: Mapping[str, float]
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
        _put(self._dense_weights)

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
        }


def compensate(
    loaded: LoadedModel,
    candidate: LayerSubset,
    fit_BL: torch.Tensor,
    held_out_BL: torch.Tensor,
    method: str = "auto",
) -> Compensation:
    """Let the kept blocks of `loaded` make up for the dropped ones, where that lowers the loss on held-out text.

    Weights are replaced, not written into: who shares the dense tensors keeps them as they are.

    Args:
        fit_BL: token ids that scale and map are fitted to, shape (B, L).
        held_out_BL: token ids, of any length, that strength and use are decided by.
        method: one of `METHODS`; ``auto`` tries both on each gap.

    Raises:
        InputError: the candidate drops sublayers or leaves no gap, or weights are not in memory.
        ModelError: the method does not fit this type of model.
        ScoringError: the pruned model's loss is not finite.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    check_removable(candidate)
    gaps = gaps_of(candidate)
    if not gaps:
        raise InputError(
            f"dropping layers {candidate.text} leaves no gap between kept ones: there is nothing to compensate"
        )
    if any(parameter.is_meta for parameter in loaded.model.parameters()):
        raise InputError("weights that are not in memory cannot be compensated: leave out --weights and --device-map")
    bridges = _Bridges(loaded, candidate, fit_BL, held_out_BL, method)
    held_out = bridges.held_out
    done = tuple(bridges.bridge(gap) for gap in gaps)
    dense_weights = {parameter: parameter.data for parameter in bridges.edit}
    _put(bridges.edit)
    return Compensation(candidate, done, held_out.dense, held_out.pruned, bridges.metrics, dense_weights)


def compensate_and_export(
    loaded: LoadedModel,
    candidate: LayerSubset,
    out: Path,
    windows: tuple[torch.Tensor, torch.Tensor],
    *,
    facts: Mapping[str, Any],
    method: str = "auto",
    max_shard: int = MAX_SHARD,
) -> dict[str, Any]:
    """Write the compensated candidate; `loaded` is the dense model again afterwards.

    Args:
        windows: what `compensate` fits to, and what it decides by.
        facts: what is known of the candidate, for the manifest.

    Returns:
        What was done and what was made, as JSON values.

    Raises:
        RunError: the compensation does not help, or see `compensate` and `export`; nothing is written.
    """
    with compensate(loaded, candidate, *windows, method) as done:
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


class LeastSquares:
    """Sums over tokens from which scale and linear map follow; they take the same memory for any number of tokens."""

    def __init__(self) -> None:
        self._tokens = 0
        self._ratio: torch.Tensor | float = 0.0
        self._gram_FF: torch.Tensor | float = 0.0
        self._target_FE: torch.Tensor | float = 0.0
        self._state_FE: torch.Tensor | float = 0.0

    def add(self, inputs_TF: torch.Tensor, state_TE: torch.Tensor, target_TE: torch.Tensor) -> None:
        """Take in tokens: inputs of the linear map, states before the gap, the dense model's states behind it."""
        inputs_TF, state_TE, target_TE = inputs_TF.float(), state_TE.float(), target_TE.float()
        square_T1 = target_TE.square().sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        weighted_FT = (inputs_TF / square_T1).T
        self._tokens += len(inputs_TF)
        self._ratio += (square_T1[:, 0].sqrt() / state_TE.norm(dim=1)).double().sum()
        self._gram_FF += (weighted_FT @ inputs_TF).double()
        self._target_FE += (weighted_FT @ target_TE).double()
        self._state_FE += (weighted_FT @ state_TE).double()

    @property
    def ratio(self) -> float:
        """Mean ratio of norms, target / state (Prune&Comp)."""
        return float(self._ratio) / self._tokens

    def solve(self, ridge: float, unit: float) -> torch.Tensor:
        """The change D of the linear map, shape (F, E), for targets times `unit`."""
        gram_FF = torch.as_tensor(self._gram_FF).clone()
        diagonal_F = gram_FF.diagonal()
        diagonal_F += ridge * diagonal_F.mean()
        change_FE: torch.Tensor = torch.linalg.solve(gram_FF, unit * self._target_FE - self._state_FE)
        return change_FE


class _HeldOut:
    """Scores a candidate of changed weights on the held-out tokens."""

    def __init__(self, loaded: LoadedModel, candidate: LayerSubset, held_out_BL: torch.Tensor) -> None:
        self._forward = Forward(loaded.model, loaded.layers)
        self._objective = CalibrationObjective(loaded, held_out_BL, "perplexity", _KL_TOP)
        self._candidate = candidate
        both = self._score([LayerSubset.of(loaded.n_layers), candidate])
        for found in both:
            if isinstance(found, ScoringError):
                raise found
        self.dense, self.pruned = (found for found in both if not isinstance(found, ScoringError))

    def metrics(self, edit: Edit) -> Mapping[str, float]:
        """The candidate's metrics; an infinite loss where its output is not finite."""
        with _applied(edit):
            [found] = self._score([self._candidate])
        return {"cross_entropy": math.inf} if isinstance(found, ScoringError) else found

    def _score(self, candidates: Sequence[LayerSubset]) -> list[Mapping[str, float] | ScoringError]:
        results: dict[LayerSubset, list[Any]] = {candidate: [] for candidate in candidates}
        for chunk in self._objective.chunks:  # one by one: they arrive in order
            for _, candidate, found in self._objective.score([(chunk, candidates)], self._forward):
                results[candidate].append(found)
        failures = {c: next((f for f in found if isinstance(f, ScoringError)), None) for c, found in results.items()}
        return [failures[c] or self._objective.metrics(results[c]).values for c in candidates]


@dataclass(frozen=True)
class _Block:
    """What can be done to a block; see `_look`."""

    writers: tuple[Linear, ...]
    scales: bool
    adds: bool


class _Bridges:
    """Bridges one gap after the other.

    Attributes:
        edit: the weights so far.
        metrics: the held-out tokens' with them.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        candidate: LayerSubset,
        fit_BL: torch.Tensor,
        held_out_BL: torch.Tensor,
        method: str,
    ) -> None:
        self.edit: Edit = {}
        self._unit = 1.0  # what the dense model's states are multiplied by to be the compensated model's
        self._candidate = candidate
        self._blocks = blocks_of(loaded.model)
        self._forward = Forward(loaded.model, loaded.layers)
        tokens = CHUNK_TOKENS.get(loaded.model.device.type, CHUNK_TOKENS["cpu"])
        self._batches = [
            Rows(ids_BL).on(loaded.model) for ids_BL in torch.split(fit_BL, max(1, tokens // fit_BL.shape[1]))
        ]
        self._looks, norm_scales = _look(loaded.model, self._forward, Rows(fit_BL[:1]).on(loaded.model))
        gaps = gaps_of(candidate)
        later = [self._looks[i] for i in candidate.kept if i > gaps[0].before]
        self._scales = method != "linear" and norm_scales and all(block.scales for block in later)
        self._fits = {gap: method != "scaling" and self._looks[gap.before].adds for gap in gaps}
        if not self._scales and not any(self._fits.values()):
            what = {"auto": "compensated", "scaling": "compensated by scaling", "linear": "compensated by a linear map"}
            raise ModelError(
                f"models of type {loaded.model.config.model_type!r} cannot be {what[method]}: what their sublayers "
                "compute is not the output of one linear map that is added as it is (norms behind sublayers, experts)"
            )
        self.held_out = _HeldOut(loaded, candidate, held_out_BL)
        self.metrics = self.held_out.pruned

    def bridge(self, gap: Gap) -> Bridged:
        """Try what is possible and keep what lowers the loss."""
        start, before = time.perf_counter(), self.metrics["cross_entropy"]
        sums = self._sums(gap)
        alpha = ridge = None
        if self._scales:
            unit = 1 / sums.ratio
            if self._improves(self._scaled(gap, unit / self._unit)):
                alpha, self._unit = self._unit / unit, unit
        if self._fits[gap]:
            base, middle = self.edit, len(RIDGES) // 2
            for walk in (RIDGES[middle::-1], RIDGES[middle + 1 :]):
                for strength in walk:
                    if not self._improves(self._mapped(gap, base, sums.solve(strength, self._unit))):
                        break  # the loss has one minimum over them
                    ridge = strength
        seconds = time.perf_counter() - start
        return Bridged(gap, alpha, ridge, before, self.metrics["cross_entropy"], seconds)

    def _improves(self, edit: Edit) -> bool:
        metrics = self.held_out.metrics(edit)
        if metrics["cross_entropy"] < self.metrics["cross_entropy"]:
            self.edit, self.metrics = edit, metrics
            return True
        return False

    @torch.inference_mode()
    def _sums(self, gap: Gap) -> LeastSquares:
        """Go over the text, with the dense weights and with those so far."""
        sums, last = LeastSquares(), self._looks[gap.before].writers[-1]
        for batch in self._batches:
            hidden_BLE, calls = self._forward.enter(batch)
            target_BLE = hidden_BLE
            for index in range(gap.dropped[-1] + 1):
                target_BLE = through(self._blocks[index], target_BLE, calls[index])
            with _applied(self.edit):
                for index in (i for i in self._candidate.kept if i < gap.before):
                    hidden_BLE = through(self._blocks[index], hidden_BLE, calls[index])
                hidden_BLE, seen = _observed(self._blocks[gap.before], hidden_BLE, calls[gap.before], [last])
            inputs_TF = _flat(seen[-1].given)
            if last.bias is not None:
                inputs_TF = torch.cat([inputs_TF, inputs_TF.new_ones(len(inputs_TF), 1)], dim=1)
            sums.add(inputs_TF, _flat(hidden_BLE), _flat(target_BLE).to(hidden_BLE.device))
        return sums

    def _scaled(self, gap: Gap, factor: float) -> Edit:
        """All that is added behind a gap, times a factor."""
        edit = dict(self.edit)
        for index in (i for i in self._candidate.kept if i > gap.before):
            for writer in self._looks[index].writers:
                edit |= _times(writer, factor, edit)
        return edit

    def _mapped(self, gap: Gap, base: Edit, change_FE: torch.Tensor) -> Edit:
        """The last linear map before a gap, changed."""
        last = self._looks[gap.before].writers[-1]
        parameters = list(last.parameters(recurse=False))  # weight, and bias where it has one
        weight_FE, bias_1E = change_FE.tensor_split([len(change_FE) - len(parameters) + 1])
        changes = (weight_FE if isinstance(last, Conv1D) else weight_FE.T, bias_1E.flatten())
        edit = {p: (base.get(p, p.data) + d).to(p.dtype) for p, d in zip(parameters, changes, strict=False)}
        return {**base, **edit}


def _flat(hidden_BLE: torch.Tensor) -> torch.Tensor:
    return hidden_BLE.reshape(-1, hidden_BLE.shape[-1])


def _put(edit: Edit) -> None:
    for parameter, tensor in edit.items():
        parameter.data = tensor


@contextmanager
def _applied(edit: Edit) -> Iterator[None]:
    """Put weights in their place inside the ``with`` block."""
    dense = {parameter: parameter.data for parameter in edit}
    try:
        _put(edit)
        yield
    finally:
        _put(dense)


def _times(writer: Linear, factor: float, base: Edit) -> Edit:
    """A linear map whose output is multiplied."""
    return {parameter: base.get(parameter, parameter.data) * factor for parameter in writer.parameters(recurse=False)}


@dataclass(frozen=True)
class _Seen:
    """A linear map as it was called."""

    module: Linear
    given: torch.Tensor
    gave: torch.Tensor


def _observed(
    block: nn.Module, hidden_BLE: torch.Tensor, call: Call, modules: Sequence[Linear]
) -> tuple[torch.Tensor, list[_Seen]]:
    """Hidden states behind a block, and how it called some of its linear maps, in order."""
    seen: list[_Seen] = []

    def note(module: Any, given: tuple[torch.Tensor, ...], gave: torch.Tensor) -> None:  # noqa: ANN401
        seen.append(_Seen(module, given[0], gave.clone()))  # some add the residual in place

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(note).remove)
        return through(block, hidden_BLE, call), seen


@torch.inference_mode()
def _look(model: PreTrainedModel, forward: Forward, batch: Rows) -> tuple[list[_Block], bool]:
    """Try out on a window what can be done to each block of the dense model, and whether its head minds the scale.

    A block scales if twice the state and twice its sublayers' last linear maps give twice its output. It adds its MLP's
    last linear map if a multiple of that changes its output by as much of the map's output.
    """
    places = Counter(p.data_ptr() for _, p in model.named_parameters(remove_duplicate=False))
    hidden_BLE, calls = forward.enter(batch)
    found = []
    for block, call in zip(blocks_of(model), calls, strict=True):
        out_BLE, last = through(block, hidden_BLE, call), []
        for kind in ("attention", "mlp"):
            sublayer = getattr(family_of(model.config), kind)
            parts = [] if sublayer is None else parts_of(block, sublayer.modules)
            linears = [m for part in parts for m in part.modules() if isinstance(m, nn.Linear | Conv1D)]
            last += _observed(block, hidden_BLE, call, linears)[1][-1:]
        writers = tuple(seen.module for seen in last)
        usable = len(writers) == 2 and all(places[p.data_ptr()] == 1 for w in writers for p in w.parameters())
        found.append(
            _Block(
                writers,
                usable and _scales(block, writers, hidden_BLE, out_BLE, call),
                usable and _adds(block, last[-1], hidden_BLE, out_BLE, call),
            )
        )
        hidden_BLE = out_BLE
    head, rows_TE = Head(model), _flat(hidden_BLE)
    return found, _alike(head.finish(2 * rows_TE), head.finish(rows_TE))


def _scales(
    block: nn.Module, writers: Sequence[Linear], hidden_BLE: torch.Tensor, out_BLE: torch.Tensor, call: Call
) -> bool:
    edit: dict[nn.Parameter, torch.Tensor] = {}
    for writer in writers:
        edit |= _times(writer, 2, {})
    with _applied(edit):
        return _alike(through(block, 2 * hidden_BLE, call), 2 * out_BLE)


def _adds(block: nn.Module, last: _Seen, hidden_BLE: torch.Tensor, out_BLE: torch.Tensor, call: Call) -> bool:
    added_TE, out_TE = _flat(last.gave).float(), _flat(out_BLE).float()
    if added_TE.shape != out_TE.shape or not added_TE.any():
        return False
    exponent = max(0, math.ceil(math.log2(float(out_TE.norm() / added_TE.norm()))))  # or rounding would hide it
    with _applied(_times(last.module, 1 + 2**exponent, {})):
        more_TE = _flat(through(block, hidden_BLE, call)).float()
    return _alike((more_TE - out_TE) / 2**exponent, added_TE)


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether vectors differ by little of their length, in the mean."""
    length = expected.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return bool(((found.float() - expected.float()).norm(dim=-1) / length).mean() <= _ALIKE)
