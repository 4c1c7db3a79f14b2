"""Compensation for gaps: kept weights are changed so that they replace dropped blocks.

No weight is added.

A gap is a run of dropped blocks after a kept block. Two methods are tried on each gap, one after
the other. Each is kept only if it lowers the loss on held-out text:

* ``scaling``, Prune&Comp (arXiv 2507.18212): the dropped blocks would have multiplied the norm of
  the hidden state by a mean ratio alpha. The paper scales the state before the gap. This module
  scales the outputs of all later sublayers by 1/alpha instead. The norms of later sublayers make
  both equivalent (except for their eps), and the embeddings, which the head may share, stay
  unchanged. After the last kept block nothing is added, so scaling has no effect there.
* ``linear``, after ReplaceMe (arXiv 2505.02819): the last linear map W of the MLP before the gap
  becomes W + D. Let H be the state before the gap in the compensated model, T the state after the
  gap in the dense model, and Z the input of W. Then

      D = argmin sum_t |H_t + Z_t D - T_t|^2 / |T_t|^2 + ridge |D|^2 .

  ReplaceMe multiplies the MLP's output M = Z W by (M^T M)^-1 M^T (T - H + M), so its D is always W
  times a matrix. Here D is not restricted. The ridge pulls D towards zero, so the weights stay
  close to W. Each token is weighted by the inverse of its squared norm, because later norms make
  all tokens equally long. Without the weights, the few tokens with very large states would dominate
  the fit.

Gaps are compensated from the first to the last. Each is fitted in the model in which the gaps
before it are already compensated. Blocks dropped before the first kept one have no linear map
before them, so they are not compensated.

Shapes: B windows of L tokens, T tokens, F inputs of the linear map (and a one for its bias), E
hidden size.
"""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from prunesearch import events
from prunesearch.candidate import LayerSubset, named_layers
from prunesearch.compat.transformers import Conv1D
from prunesearch.errors import ModelError
from prunesearch.execution.batches import CHUNK_TOKENS, Rows
from prunesearch.execution.block_code import Call, run_block
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.models.narrowing import narrow_outputs
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import used
from prunesearch.recovery.gaps import Gap, GapResult, gaps_of
from prunesearch.recovery.held_out import HeldOut
from prunesearch.recovery.least_squares import LeastSquares
from prunesearch.recovery.output_projections import (
    Edit,
    Linear,
    Observed,
    applied,
    flat,
    look,
    observed,
    times,
)
from prunesearch.runtime import stopping

METHODS = ("auto", "scaling", "linear")
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridge strengths, as multiples of the mean square of an input over the weighted tokens."""


class GapFitter:
    """Compensates the gaps of a candidate, one after the other.

    Args:
        loaded: the dense model.
        candidate: the candidate whose gaps are compensated.
        fit_BL: token ids that the scale and the linear map are fitted to.
        method: one of `METHODS`.

    Attributes:
        edit: the weights that were changed so far, with their new values.
        metrics: metrics of the candidate with these weights, on held-out text.

    Raises:
        ModelError: the method cannot be used with this type of model.
    """

    metrics: Mapping[str, float]

    def __init__(
        self,
        loaded: LoadedModel,
        candidate: LayerSubset,
        fit_BL: torch.Tensor,
        method: str,
    ) -> None:
        self.edit: Edit = {}
        self._model = loaded.model
        # Factor that turns states of the dense model into states of the compensated model. Scaling
        # changes it.
        self._unit = 1.0
        self._candidate = candidate
        self._blocks = blocks_of(loaded.model)
        self._forward = Forward(loaded.model, loaded.layers)
        tokens = CHUNK_TOKENS.get(loaded.model.device.type, CHUNK_TOKENS["cpu"])
        windows = max(1, tokens // fit_BL.shape[1])
        self._batches = [Rows(ids_BL).on(loaded.model) for ids_BL in torch.split(fit_BL, windows)]
        self._looks, norm_scales = look(
            loaded.model, self._forward, Rows(fit_BL[:1]).on(loaded.model)
        )
        self._gaps = gaps_of(candidate)
        # Scaling changes every block after the first gap, so all of them must support it.
        self._scales = method != "linear" and norm_scales
        for index in candidate.kept:
            if index > self._gaps[0].before and not self._looks[index].scales:
                self._scales = False
        # A linear map changes only the block before its gap, if the candidate keeps its MLP.
        self._fits = {}
        for gap in self._gaps:
            adds = self._looks[gap.before].adds and gap.before not in candidate.mlp
            self._fits[gap] = method != "scaling" and adds
        if not self._scales and not any(self._fits.values()):
            what = {
                "auto": "compensated",
                "scaling": "compensated by scaling",
                "linear": "compensated by a linear map",
            }
            raise ModelError(
                f"models of type {loaded.model.config.model_type!r} cannot be {what[method]}: what "
                f"their sublayers "
                "compute is not the output of one linear map that is added as it is (norms after "
                "sublayers, experts)"
            )

    def find(
        self, held_out: "HeldOut", metrics: Mapping[str, float] | None = None
    ) -> tuple[GapResult, ...]:
        """Try each possible method on each gap, and keep the changes that lower the loss.

        Args:
            held_out: scores the candidate on held-out tokens.
            metrics: metrics with the weights that are changed already. Default: those of the pruned
                model.
        """
        self._held_out, self.metrics = held_out, metrics or held_out.pruned
        gaps = []
        for number, gap in enumerate(self._gaps, 1):
            events.tell(
                events.StageProgress(
                    f"compensating gap {number} of {len(self._gaps)}: {named_layers(gap.text)}"
                )
            )
            gaps.append(self._fit_gap(gap))
        return tuple(gaps)

    def repeat(self, found: Sequence[GapResult]) -> None:
        """Apply a stored result without searching again. The weights are the same to the bit."""
        for fitted in found:
            if fitted.alpha is not None:
                self.edit = self._scaled(fitted.gap, 1 / fitted.alpha)
            if fitted.change_FE is not None:
                self.edit = self._mapped(fitted.gap, self.edit, fitted.change_FE)

    def _fit_gap(self, gap: Gap) -> GapResult:
        """Compensate one gap."""
        start, before = time.perf_counter(), self.metrics["cross_entropy"]
        sums = self._sums(gap)
        alpha = ridge = change_FE = None
        # Scaling.
        if self._scales:
            longer = sums.ratio * self._unit
            if self._improves(self._scaled(gap, 1 / longer)):
                alpha, self._unit = longer, self._unit / longer
        # Linear map: walk from the middle ridge to weaker ones and then to stronger ones. The loss
        # has one minimum over the ridge, so a walk stops at the first strength that does not lower
        # the loss.
        if self._fits[gap]:
            base, middle = self.edit, len(RIDGES) // 2
            for walk in (RIDGES[middle::-1], RIDGES[middle + 1 :]):
                for strength in walk:
                    tried_FE = sums.solve(strength, self._unit)
                    if not self._improves(self._mapped(gap, base, tried_FE)):
                        break
                    ridge, change_FE = strength, tried_FE
        seconds = time.perf_counter() - start
        return GapResult(
            gap, alpha, ridge, before, self.metrics["cross_entropy"], seconds, change_FE
        )

    def _improves(self, edit: Edit) -> bool:
        """Keep an edit if it lowers the loss on the held-out tokens, and return whether it does."""
        metrics = self._held_out.metrics(edit)
        if metrics["cross_entropy"] < self.metrics["cross_entropy"]:
            self.edit, self.metrics = edit, metrics
            return True
        return False

    @torch.inference_mode()
    def _sums(self, gap: Gap) -> LeastSquares:
        """Run the text through the dense and the compensated model, and sum what a fit needs."""
        sums, last = LeastSquares(), self._looks[gap.before].projections[-1]
        for batch in self._batches:
            stopping.check()
            hidden_BLE, calls = self._forward.capture_block_inputs(batch)
            # Targets: the states of the dense model after the gap.
            target_BLE = hidden_BLE
            for index in range(gap.dropped[-1] + 1):
                target_BLE = run_block(self._blocks[index], target_BLE, calls[index])
            # States and inputs: those of the compensated model up to the block before the gap.
            with applied(self.edit):
                for index in self._candidate.kept:
                    if index < gap.before:
                        hidden_BLE, _ = self._run(index, hidden_BLE, calls, [])
                hidden_BLE, seen = self._run(gap.before, hidden_BLE, calls, [last])
            inputs_TF = flat(seen[-1].given)
            # A column of ones fits the bias.
            if self._last(gap)[1] is not None:
                inputs_TF = torch.cat([inputs_TF, inputs_TF.new_ones(len(inputs_TF), 1)], dim=1)
            sums.add(inputs_TF, flat(hidden_BLE), flat(target_BLE).to(hidden_BLE.device))
        return sums

    def _run(
        self, index: int, hidden_BLE: torch.Tensor, calls: Sequence[Call], linears: Sequence[Linear]
    ) -> tuple[torch.Tensor, list[Observed]]:
        """Run a block as the candidate uses it, and record the calls of some of its linear maps."""
        block = self._blocks[index]
        with used(self._model, block, self._candidate.use(index)):
            return observed(block, hidden_BLE, calls[index], linears)

    def _last(self, gap: Gap) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Return weight and bias of the last linear map before a gap, as the candidate uses it."""
        last = self._looks[gap.before].projections[-1]
        _, narrow = narrow_outputs(self._model, self._candidate, gap.before)
        bias = last.bias if narrow is None else narrow.bias
        return last.get_parameter("weight"), bias

    def _scaled(self, gap: Gap, factor: float) -> Edit:
        """Return the edit that also multiplies all sublayer outputs after a gap by a factor."""
        edit: dict[nn.Parameter, torch.Tensor] = {}
        for index in self._candidate.kept:
            if index <= gap.before:
                continue
            for projection in self._looks[index].projections:
                edit |= times(projection, factor, self.edit)
            # A narrowed projection may have another bias.
            for narrow in narrow_outputs(self._model, self._candidate, index):
                bias = None if narrow is None else narrow.bias
                if bias is not None and bias not in edit:
                    edit[bias] = self.edit.get(bias, bias.data) * factor
        return {**self.edit, **edit}

    def _mapped(self, gap: Gap, base: Edit, change_FE: torch.Tensor) -> Edit:
        """Return the edit that also adds a change to the last linear map before a gap."""
        last = self._looks[gap.before].projections[-1]
        weight, bias = self._last(gap)
        edit = dict(base)
        # The last row of the change belongs to the bias, if the map has one.
        weight_FE = change_FE
        if bias is not None:
            weight_FE = change_FE[:-1]
            edit[bias] = _moved(base.get(bias, bias.data), change_FE[-1])
        # Conv1D stores its weight as (F, E), nn.Linear as (E, F).
        if not isinstance(last, Conv1D):
            weight_FE = weight_FE.T
        # The columns that the candidate removes stay as they are.
        before = base.get(weight, weight.data)
        if weight_FE.shape != before.shape:
            weight_FE = nn.functional.pad(weight_FE, (0, before.shape[1] - weight_FE.shape[1]))
        edit[weight] = _moved(before, weight_FE)
        return edit


def _moved(before: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return the sum of a weight and its change, in the dtype and on the device of the weight."""
    return (before + change.to(before.device)).to(before.dtype)
