"""What one forward pass of the dense model tells about its blocks.

All windows run through a block before the next block is visited, so streamed weights are read once.

* *Moments* of the inputs of all linear layers (`moments.InputMoments`), which criteria read.
* *Block influence*: X. Men et al., "ShortGPT", arXiv:2403.03853, eq. 1: the mean over tokens of
  1 - cos(input, output) of the block.
* *Outlier share*: L. Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", arXiv:2310.05175:
  the share of a block's weights whose |W_ij| * ||x_j|| is more than `OUTLIERS` times the mean of
  the block.

Shapes: B windows of L tokens, E hidden size, C input columns of a linear layer.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunesearch.execution.batches import Rows
from prunesearch.execution.block_code import Call, run_block
from prunesearch.execution.shared_forward import Forward
from prunesearch.importance.moments import InputMoments
from prunesearch.importance.router_use import RouterUse
from prunesearch.models.experts import experts_of
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import blocks_of, input_device
from prunesearch.runtime import stopping

OUTLIERS = 5.0
"""OWL's M, in its experiments."""


@dataclass(frozen=True)
class BlockStatistics:
    """What a pass tells about one block.

    Attributes:
        index: index of the block.
        block: the block. Its weights are in memory until the next block is asked for.
        moments: moments of the inputs of its linear layers.
        influence: block influence.
        outlier_share: share of weights that are outliers.
        router_use: what the router and the experts do; None if the block has no experts that can be
            removed.
    """

    index: int
    block: nn.Module
    moments: Mapping[nn.Module, InputMoments]
    influence: float
    outlier_share: float
    router_use: RouterUse | None = None


@torch.inference_mode()
def block_statistics(loaded: LoadedModel, windows_BL: torch.Tensor) -> Iterator[BlockStatistics]:
    """Run the dense model over windows of text, and yield what is learned about each block.

    Args:
        loaded: the dense model, in memory or streamed.
        windows_BL: token ids, shape (B, L).
    """
    forward = Forward(loaded.model, loaded.layers)
    # The state before the first block, and the arguments of all blocks, for each window.
    states_W: list[torch.Tensor] = []
    calls_W: list[list[Call]] = []
    for window_L in windows_BL.to(input_device(loaded.model)):
        hidden_BLE, calls = forward.capture_block_inputs(Rows(window_L[None]))
        states_W.append(hidden_BLE)
        calls_W.append(calls)
    for index, block in loaded.layers.walk(range(len(blocks_of(loaded.model)))):
        stopping.check()
        # Hooks record the inputs of the block's linear layers, and what its experts do.
        recorder = _InputRecorder()
        experts, router_use = experts_of(loaded.model, block), None
        if experts is not None:
            router_use = RouterUse(experts)
        influence, tokens = 0.0, 0
        # All windows run through the block while its weights are in memory.
        with recorder.on(block) as hooks:
            if experts is not None and router_use is not None:
                hook = experts.experts.register_forward_pre_hook(router_use.note)
                hooks.callback(hook.remove)
            for window, calls in enumerate(calls_W):
                before = states_W[window]
                # Some models add to the hidden state in place, so it is compared with a copy.
                after = run_block(block, before.clone(), calls[index])
                cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
                influence += float((1.0 - cosine).sum(dtype=torch.float64))
                tokens += cosine.numel()
                states_W[window] = after
        yield BlockStatistics(
            index,
            block,
            recorder.moments,
            influence / tokens,
            _outlier_share(recorder.moments),
            router_use,
        )


class _InputRecorder:
    """Records the moments of the inputs of a block's linear layers.

    Attributes:
        moments: moments by linear layer.
    """

    def __init__(self) -> None:
        self.moments: dict[nn.Module, InputMoments] = {}

    def on(self, block: nn.Module) -> ExitStack:
        """Return a context in which the inputs of the block's linear layers are recorded."""
        stack = ExitStack()
        for module in block.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(self._note).remove)
        return stack

    def _note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        found = InputMoments.of(args[0])
        before = self.moments.get(module)
        self.moments[module] = found if before is None else before.merged(found)


def _outlier_share(moments: Mapping[nn.Module, InputMoments]) -> float:
    """Return the share of the weights of linear layers that are outliers; 0 without weights."""
    # The mean comes first, over all layers together.
    total, count = 0.0, 0
    for module, inputs in moments.items():
        metric = _metric(module, inputs)
        total += float(metric.sum(dtype=torch.float64))
        count += metric.numel()
    if not count:
        return 0.0
    # Then the weights that are far above it are counted.
    outliers = 0
    for module, inputs in moments.items():
        outliers += int((_metric(module, inputs) > OUTLIERS * total / count).sum())
    return outliers / count


def _metric(module: nn.Module, inputs: InputMoments) -> torch.Tensor:
    """Return |W_ij| * ||x_j|| of a linear layer, with the root mean square as the norm."""
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight.float().abs() * inputs.mean_square_C.sqrt().float().to(weight.device)
