"""Bridges over gaps: weights that stay make up for the blocks that are gone, and no weight is added.

A gap, a run of dropped blocks behind a kept one, is bridged in two ways, one after the other, each only where it lowers
the loss on held-out text:

* ``scaling``, Prune&Comp (arXiv 2507.18212): a dropped block would have made the hidden state longer, by the mean ratio
  of norms alpha. Instead of the state before the gap, all that later sublayers add to it is scaled, by 1/alpha. Norms
  make both the same (but for their eps), and embeddings, which the head may share, stay as they are. Behind the last
  kept block nothing is added, so there it does nothing.
* ``linear``, after ReplaceMe (arXiv 2505.02819): with H the state before the gap in the compensated model, T the
  dense model's behind it and Z the input of the last linear map W of the MLP before the gap, it is W + D, where

      D = argmin sum_t |H_t + Z_t D - T_t|^2 / |T_t|^2 + ridge |D|^2 .

  ReplaceMe maps the MLP's output M = Z W by (M^T M)^-1 M^T (T - H + M), which gives those D that are W times a matrix;
  D reaches further. The ridge pulls towards no change, not towards zero. A token weighs by the inverse of its squared
  length, as norms will make them all equally long; else the few tokens with huge states would decide alone.

Gaps are bridged from the first to the last, each in the model in which those before it are. Blocks dropped before the
first kept one have no linear map before them, and are left alone.

Shapes: B windows of L tokens, T tokens, F inputs of the linear map (and a one for its bias), E hidden size.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from prunesearch import events, stopping
from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError, ScoringError
from prunesearch.heal.writers import Edit, applied, flat, look, observed, times
from prunesearch.model.anatomy import blocks_of
from prunesearch.model.loading import LoadedModel
from prunesearch.scoring.batches import Rows
from prunesearch.scoring.forward import Forward, through
from prunesearch.scoring.objectives import CHUNK_TOKENS, CalibrationObjective

METHODS = ("auto", "scaling", "linear")
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Strengths that are tried, from the middle on: multiples of an input's mean square, over the weighed tokens."""
_KL_TOP = 512  # of the dense model's likeliest tokens: keeps its answers to a few thousand tokens in a few megabytes


@dataclass(frozen=True)
class Gap:
    """Consecutive dropped blocks; `before` is the index of the kept one before them."""

    before: int
    dropped: tuple[int, ...]

    @property
    def text(self) -> str:
        """The dropped blocks, with commas."""
        return ",".join(map(str, self.dropped))


def gaps_of(candidate: LayerSubset) -> list[Gap]:
    """The gaps that have a kept block before them, in order."""
    ends = (*candidate.kept, candidate.n_layers)
    return [Gap(a, tuple(range(a + 1, b))) for a, b in pairwise(ends) if b > a + 1]


@dataclass(frozen=True)
class Bridged:
    """What was done about a gap.

    Attributes:
        alpha: what its blocks multiply the state's norm by, where that is made up for; else None.
        ridge: one of `RIDGES`, where a linear map was fitted; else None.
        loss_before, loss_after: cross-entropy of the held-out tokens, in nats per token.
        change_FE: D, where a linear map was fitted.
    """

    gap: Gap
    alpha: float | None
    ridge: float | None
    loss_before: float
    loss_after: float
    seconds: float
    change_FE: torch.Tensor | None = field(default=None, repr=False, compare=False)

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
class Found:
    """What makes up for a candidate's gaps; losses and metrics as in `Compensation`."""

    gaps: tuple[Bridged, ...]
    dense: Mapping[str, float]
    pruned: Mapping[str, float]
    compensated: Mapping[str, float]


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
        return change_FE.float()


class HeldOut:
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
        with applied(edit):
            [found] = self._score([self._candidate])
        return {"cross_entropy": math.inf} if isinstance(found, ScoringError) else found

    def _score(self, candidates: Sequence[LayerSubset]) -> list[Mapping[str, float] | ScoringError]:
        results: dict[LayerSubset, list[Any]] = {candidate: [] for candidate in candidates}
        for chunk in self._objective.chunks:  # one by one: they arrive in order
            stopping.check()
            for _, candidate, found in self._objective.score([(chunk, candidates)], self._forward):
                results[candidate].append(found)
        failures = {c: next((f for f in found if isinstance(f, ScoringError)), None) for c, found in results.items()}
        return [failures[c] or self._objective.metrics(results[c]).values for c in candidates]


class Bridges:
    """Bridges one gap after the other.

    Attributes:
        edit: the weights so far.
    """

    def __init__(self, loaded: LoadedModel, candidate: LayerSubset, fit_BL: torch.Tensor, method: str) -> None:
        self.edit: Edit = {}
        self._unit = 1.0  # what the dense model's states are multiplied by to be the compensated model's
        self._candidate = candidate
        self._blocks = blocks_of(loaded.model)
        self._forward = Forward(loaded.model, loaded.layers)
        tokens = CHUNK_TOKENS.get(loaded.model.device.type, CHUNK_TOKENS["cpu"])
        self._batches = [
            Rows(ids_BL).on(loaded.model) for ids_BL in torch.split(fit_BL, max(1, tokens // fit_BL.shape[1]))
        ]
        self._looks, norm_scales = look(loaded.model, self._forward, Rows(fit_BL[:1]).on(loaded.model))
        self._gaps = gaps_of(candidate)
        later = [self._looks[i] for i in candidate.kept if i > self._gaps[0].before]
        self._scales = method != "linear" and norm_scales and all(block.scales for block in later)
        self._fits = {gap: method != "scaling" and self._looks[gap.before].adds for gap in self._gaps}
        if not self._scales and not any(self._fits.values()):
            what = {"auto": "compensated", "scaling": "compensated by scaling", "linear": "compensated by a linear map"}
            raise ModelError(
                f"models of type {loaded.model.config.model_type!r} cannot be {what[method]}: what their sublayers "
                "compute is not the output of one linear map that is added as it is (norms behind sublayers, experts)"
            )

    def find(self, held_out: "HeldOut") -> Found:
        """Try on each gap what is possible, and keep what lowers the loss."""
        self._held_out, self._metrics = held_out, held_out.pruned
        gaps = []
        for number, gap in enumerate(self._gaps, 1):
            events.tell(f"compensating gap {number} of {len(self._gaps)}: layers {gap.text}")
            gaps.append(self._bridge(gap))
        return Found(tuple(gaps), held_out.dense, held_out.pruned, self._metrics)

    def repeat(self, found: Found) -> None:
        """Do again what was found, without its search: the weights are the same to the bit."""
        for bridged in found.gaps:
            if bridged.alpha is not None:
                self.edit = self._scaled(bridged.gap, 1 / bridged.alpha)
            if bridged.change_FE is not None:
                self.edit = self._mapped(bridged.gap, self.edit, bridged.change_FE)

    def _bridge(self, gap: Gap) -> Bridged:
        start, before = time.perf_counter(), self._metrics["cross_entropy"]
        sums = self._sums(gap)
        alpha = ridge = change_FE = None
        if self._scales:
            longer = sums.ratio * self._unit
            if self._improves(self._scaled(gap, 1 / longer)):
                alpha, self._unit = longer, self._unit / longer
        if self._fits[gap]:
            base, middle = self.edit, len(RIDGES) // 2
            for walk in (RIDGES[middle::-1], RIDGES[middle + 1 :]):
                for strength in walk:
                    tried_FE = sums.solve(strength, self._unit)
                    if not self._improves(self._mapped(gap, base, tried_FE)):
                        break  # the loss has one minimum over them
                    ridge, change_FE = strength, tried_FE
        seconds = time.perf_counter() - start
        return Bridged(gap, alpha, ridge, before, self._metrics["cross_entropy"], seconds, change_FE)

    def _improves(self, edit: Edit) -> bool:
        metrics = self._held_out.metrics(edit)
        if metrics["cross_entropy"] < self._metrics["cross_entropy"]:
            self.edit, self._metrics = edit, metrics
            return True
        return False

    @torch.inference_mode()
    def _sums(self, gap: Gap) -> LeastSquares:
        """Go over the text, with the dense weights and with those so far."""
        sums, last = LeastSquares(), self._looks[gap.before].writers[-1]
        for batch in self._batches:
            stopping.check()
            hidden_BLE, calls = self._forward.enter(batch)
            target_BLE = hidden_BLE
            for index in range(gap.dropped[-1] + 1):
                target_BLE = through(self._blocks[index], target_BLE, calls[index])
            with applied(self.edit):
                for index in (i for i in self._candidate.kept if i < gap.before):
                    hidden_BLE = through(self._blocks[index], hidden_BLE, calls[index])
                hidden_BLE, seen = observed(self._blocks[gap.before], hidden_BLE, calls[gap.before], [last])
            inputs_TF = flat(seen[-1].given)
            if last.bias is not None:
                inputs_TF = torch.cat([inputs_TF, inputs_TF.new_ones(len(inputs_TF), 1)], dim=1)
            sums.add(inputs_TF, flat(hidden_BLE), flat(target_BLE).to(hidden_BLE.device))
        return sums

    def _scaled(self, gap: Gap, factor: float) -> Edit:
        """All that is added behind a gap, times a factor."""
        edit = dict(self.edit)
        for index in (i for i in self._candidate.kept if i > gap.before):
            for writer in self._looks[index].writers:
                edit |= times(writer, factor, edit)
        return edit

    def _mapped(self, gap: Gap, base: Edit, change_FE: torch.Tensor) -> Edit:
        """The last linear map before a gap, changed."""
        last = self._looks[gap.before].writers[-1]
        parameters = list(last.parameters(recurse=False))  # weight, and bias where it has one
        weight_FE, bias_1E = change_FE.tensor_split([len(change_FE) - len(parameters) + 1])
        changes = (weight_FE if isinstance(last, Conv1D) else weight_FE.T, bias_1E.flatten())
        edit = {
            p: (base.get(p, p.data) + d.to(p.device)).to(p.dtype) for p, d in zip(parameters, changes, strict=False)
        }
        return {**base, **edit}
