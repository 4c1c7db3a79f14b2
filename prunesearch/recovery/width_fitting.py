"""Compensation for narrowed blocks: what is left of each output projection is fitted anew.

No weight is added. The narrowed blocks are visited in order. In each, the output projection of the
attention and then that of the MLP are fitted by least squares (see `output_fit`). They are fitted
on the inputs that they have in the candidate, after all fits before. The target is what the whole
sublayers of the block would give for the same hidden states. (With the outputs of the dense model
for its own states as the target, on the same ridges, one run on SmolLM2-135M without a quarter of
its channels left a KL of 0.258 instead of 0.230; both were measured on the text that chose the
ridges.)

The ridge is chosen on held-out windows, by the distance of the outputs. A projection that no ridge
brings nearer to the dense output stays as it is. If all fits together do not lower the loss on the
held-out windows, the blocks are visited again. Each fit is then kept only if it lowers the loss.

Shapes: B windows of L tokens, T tokens, E hidden size.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch import events
from prunesearch.candidate import LayerSubset
from prunesearch.execution.batches import CHUNK_TOKENS, Rows
from prunesearch.execution.block_code import Call
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.models.narrowing import NarrowOutput, narrow_outputs
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import used
from prunesearch.recovery.held_out import HeldOut
from prunesearch.recovery.output_fit import OutputSums
from prunesearch.recovery.output_projections import Edit, Observed, applied, flat, observed
from prunesearch.recovery.width_results import SublayerFit, WidthResult
from prunesearch.runtime import stopping

RIDGES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Ridge strengths, as multiples of the mean square of an input over the tokens."""


@dataclass
class _Stream:
    """A batch of windows on its way through the candidate.

    Attributes:
        held_out: True for held-out windows, False for those that are fitted to.
        calls: arguments of each block.
        hidden_BLE: hidden states before the current block, with the fits so far.
        wanted: what the whole output projections of the current block give for these states.
    """

    held_out: bool
    calls: list[Call]
    hidden_BLE: torch.Tensor
    wanted: dict[nn.Module, torch.Tensor]


class WidthFitter:
    """Compensates the narrowed blocks of a candidate, one after the other.

    Args:
        loaded: the dense model, whose channels are in the candidate's order.
        candidate: the candidate.
        fit_BL: token ids that the projections are fitted to.
        held_out_BL: token ids that choose the ridge.

    Attributes:
        edit: the weights that were changed so far, with their new values.
        metrics: metrics of the candidate with these weights, on held-out text.
    """

    metrics: Mapping[str, float]

    def __init__(
        self,
        loaded: LoadedModel,
        candidate: LayerSubset,
        fit_BL: torch.Tensor,
        held_out_BL: torch.Tensor,
    ) -> None:
        self.edit: Edit = {}
        self._model = loaded.model
        self._candidate = candidate
        self._blocks = list(blocks_of(loaded.model))
        self._forward = Forward(loaded.model, loaded.layers)
        self._texts = ((fit_BL, False), (held_out_BL, True))

    @torch.no_grad()  # not inference_mode: the fitted weights may be trained
    def find(self, held_out: HeldOut) -> tuple[WidthResult, ...]:
        """Fit each narrowed block, and keep fits that lower the loss on the held-out tokens."""
        self._held_out, self.metrics = held_out, held_out.pruned
        results = self._walk(each=False)
        if self.edit and not self._improves(self.edit):
            self.edit = {}
            results = self._walk(each=True)
        return results

    def _walk(self, each: bool) -> tuple[WidthResult, ...]:
        """Visit the blocks in order, and fit those that are narrowed.

        Args:
            each: keep a fit only if it lowers the loss. False: keep all fits.
        """
        results: list[WidthResult] = []
        streams = self._streams()
        last = max(narrowed_blocks(self._model, self._candidate), default=-1)
        for index in range(last + 1):
            outputs = narrow_outputs(self._model, self._candidate, index)
            if any(outputs):
                self._run_whole(index, outputs, streams)
                line = f"compensating the width of layer {index}, the last one is {last}"
                events.tell(events.StageProgress(line))
                results.append(self._fit_block(index, outputs, streams, each))
            # Go on to the next block, with the fits that were kept.
            for stream in streams:
                stopping.check()
                stream.hidden_BLE, _ = self._run_narrow(index, stream, self.edit, [])
        return tuple(results)

    def repeat(self, results: Sequence[WidthResult]) -> None:
        """Apply a stored result without searching again. The weights are the same to the bit."""
        for result in results:
            outputs = narrow_outputs(self._model, self._candidate, result.block)
            for output, fit in zip(outputs, (result.attention, result.mlp), strict=True):
                if output is not None and fit is not None:
                    self.edit = _edited(self.edit, output, fit)

    def _streams(self) -> list[_Stream]:
        """Return all windows in batches, before the first block."""
        tokens = CHUNK_TOKENS.get(self._model.device.type, CHUNK_TOKENS["cpu"])
        streams = []
        for ids_BL, held_out in self._texts:
            for part_BL in torch.split(ids_BL, max(1, tokens // ids_BL.shape[1])):
                batch = Rows(part_BL).on(self._model)
                first_BLE, calls = self._forward.capture_block_inputs(batch)
                streams.append(_Stream(held_out, calls, first_BLE, {}))
        return streams

    def _run_whole(
        self, index: int, outputs: Sequence[NarrowOutput | None], streams: Sequence[_Stream]
    ) -> None:
        """Run the whole block, and note the outputs of the projections that are narrowed."""
        linears = [output.linear for output in outputs if output is not None]
        for stream in streams:
            stopping.check()
            call = stream.calls[index]
            _, seen = observed(self._blocks[index], stream.hidden_BLE, call, linears)
            stream.wanted = {each.module: flat(each.gave) for each in seen}

    def _run_narrow(
        self, index: int, stream: _Stream, edit: Edit, linears: Sequence[nn.Linear]
    ) -> tuple[torch.Tensor, list[Observed]]:
        """Run a block as the candidate uses it, and record the calls of some of its linear maps."""
        use, block = self._candidate.use(index), self._blocks[index]
        if use is None:
            return stream.hidden_BLE, []
        with applied(edit), used(self._model, block, use):
            return observed(block, stream.hidden_BLE, stream.calls[index], linears)

    def _fit_block(
        self,
        index: int,
        outputs: tuple[NarrowOutput | None, NarrowOutput | None],
        streams: Sequence[_Stream],
        each: bool,
    ) -> WidthResult:
        """Fit the output projections of a block. See `_walk` for `each`."""
        start = time.perf_counter()
        found: list[SublayerFit | None] = []
        # The MLP is fitted on the inputs that it has after the fit of the attention.
        for output in outputs:
            fit = None
            if output is not None:
                fit = self._fit(index, output, streams)
            if output is not None and fit is not None:
                edit = _edited(self.edit, output, fit)
                if not each:
                    self.edit = edit
                elif not self._improves(edit):
                    fit = None
            found.append(fit)
        return WidthResult(index, found[0], found[1], time.perf_counter() - start)

    def _improves(self, edit: Edit) -> bool:
        """Keep an edit if it lowers the loss on the held-out tokens, and return whether it does."""
        metrics = self._held_out.metrics(edit)
        if metrics["cross_entropy"] < self.metrics["cross_entropy"]:
            self.edit, self.metrics = edit, metrics
            return True
        return False

    def _fit(
        self, index: int, output: NarrowOutput, streams: Sequence[_Stream]
    ) -> SublayerFit | None:
        """Fit an output projection. None if no ridge brings it nearer to the dense output."""
        fitted, held_out = OutputSums(), OutputSums()
        for stream in streams:
            stopping.check()
            _, [seen] = self._run_narrow(index, stream, self.edit, [output.linear])
            inputs_TF = flat(seen.given)
            # A column of ones fits the bias.
            if output.bias is not None:
                inputs_TF = torch.cat([inputs_TF, inputs_TF.new_ones(len(inputs_TF), 1)], dim=1)
            sums = held_out if stream.held_out else fitted
            sums.add(inputs_TF, flat(seen.gave), stream.wanted[output.linear])
        # Choose the ridge by the error on held-out text.
        before = best = held_out.error()
        ridge, change_FE = 0.0, None
        # From the strongest on. The error has one minimum, so the search stops after it.
        for strength in RIDGES:
            tried_FE = fitted.solve(strength)
            error = held_out.error(tried_FE)
            if not error < best:
                break
            best, ridge, change_FE = error, strength, tried_FE
        if change_FE is None:
            return None
        # The last row of the change belongs to the bias, if there is one.
        whole = self.edit.get(output.weight, output.weight.data)
        columns_EK = whole[:, : output.columns]
        weight_EK = columns_EK.double() + change_FE[: output.columns].T.to(columns_EK.device)
        bias_E = None
        if output.bias is not None:
            moved_E = change_FE[output.columns].to(output.bias.device)
            bias_E = (output.bias.double() + moved_E).to(output.bias.dtype)
        return SublayerFit(ridge, before, best, weight_EK.to(columns_EK.dtype), bias_E)


def _edited(edit: Edit, output: NarrowOutput, fit: SublayerFit) -> Edit:
    """Return the edit that also gives a narrowed output projection its fitted weights."""
    # The columns that are removed stay as they are.
    whole = edit.get(output.weight, output.weight.data).clone()
    whole[:, : output.columns] = fit.weight_EK
    edited: dict[nn.Parameter, torch.Tensor] = {**edit, output.weight: whole}
    if output.bias is not None and fit.bias_E is not None:
        edited[output.bias] = fit.bias_E.to(output.bias.device)
    return edited


def narrowed_blocks(model: PreTrainedModel, candidate: LayerSubset) -> list[int]:
    """Return the blocks in which a candidate narrows an output projection, in order."""
    found = []
    for index in candidate.kept:
        if any(narrow_outputs(model, candidate, index)):
            found.append(index)
    return found
