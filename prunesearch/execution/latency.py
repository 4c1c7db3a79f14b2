"""Latency of candidates, predicted from per-block latencies or measured.

Per-block latencies are measured once, and the latency of any candidate is predicted from them. The
selected candidates are measured directly. Sizes are exact and come from `models.sizes.Sizes`.

16-bit products are timed as the engine computes them, see `models.bf16_cpu`. Some CPUs take eight
times as long for plain 16-bit products, and such a CPU would not be used for them.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Self, TypedDict

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.execution.batches import Rows
from prunesearch.execution.block_code import run_block
from prunesearch.execution.hardware import machine_name
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.layers import Layers
from prunesearch.models.model_configs import settings_of
from prunesearch.models.sizes import lost
from prunesearch.models.structure import (
    architecture_of,
    blocks_of,
    input_device,
    most_positions,
    parts_of,
)
from prunesearch.models.surgery import pruned
from prunesearch.runtime import stopping

TOKENS = 256
"""Length of the timed sequence. It is shorter if the model has fewer positions."""
_SECONDS = 5.0  # time limit of a measurement, after which a slow model is timed no further


class StoredLatency(TypedDict):
    """A `LatencyModel` as JSON values."""

    block_ms: list[float]
    attention_ms: list[float]
    other_ms: float


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of one prefill of `timed_tokens` tokens, by part of the model.

    Attributes:
        block_ms: time of each block.
        attention_ms: time of each block's attention. The rest of a block's time is the MLP's.
        other_ms: time of the embeddings, the final norm and the head.
    """

    block_ms: tuple[float, ...]
    attention_ms: tuple[float, ...]
    other_ms: float

    def predict(self, candidate: LayerSubset | None = None) -> float:
        """Return the latency of a candidate in milliseconds. None: the dense model."""
        return float(
            self.other_ms + sum(self.block_ms) - lost(self.block_ms, self.attention_ms, candidate)
        )

    def as_json(self) -> StoredLatency:
        """Return the latencies as JSON values."""
        return {
            "block_ms": list(self.block_ms),
            "attention_ms": list(self.attention_ms),
            "other_ms": self.other_ms,
        }

    @classmethod
    def from_json(cls, stored: StoredLatency) -> Self:
        """Build a latency model from the values that `as_json` returned."""
        return cls(tuple(stored["block_ms"]), tuple(stored["attention_ms"]), stored["other_ms"])


@torch.inference_mode()
@wide_products()
def measure_latency_model(model: PreTrainedModel, layers: Layers, repeats: int = 7) -> LatencyModel:
    """Measure each block and its attention with hooks.

    Blocks are timed in whole forward passes. Streamed blocks are timed while their weights are in
    memory. Blocks with equal parameter shapes do equal work, so they get their common median. The
    differences between them are noise.

    Args:
        model: the dense model.
        layers: the model's blocks, in memory or streamed.
        repeats: number of measurements, after two that warm up.
    """
    # List the timed modules: the blocks, and then the attention of each block that has one.
    blocks = list(blocks_of(model))
    sublayer = architecture_of(model.config).attention
    attentions = []
    for block in blocks:
        attentions.append(parts_of(block, sublayer.modules)[:1] if sublayer else [])
    parts = [*blocks, *chain.from_iterable(attentions)]
    ids = timed_input(model)
    spent: list[list[float]] = [[] for _ in parts]
    started: dict[int, float] = {}

    def before(index: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            started[index] = now(model)

        return hook

    def after(index: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            spent[index].append(now(model) - started[index])

        return hook

    # Run the measurements with a pair of hooks on each module.
    hooks = [part.register_forward_pre_hook(before(i)) for i, part in enumerate(parts)]
    hooks += [part.register_forward_hook(after(i)) for i, part in enumerate(parts)]
    try:
        if layers.streamed_once:
            other_ms = 1000 * _time_streamed(model, layers, ids, repeats + 2)
        else:
            totals = [time_forward(model, ids) for _ in turns(repeats + 2)][2:]
    finally:
        for handle in hooks:
            handle.remove()
    # Take the median over all modules of the same shape.
    by_shape: dict[tuple[object, ...], list[float]] = {}
    for part, times in zip(parts, spent, strict=True):
        by_shape.setdefault(_shape(part), []).extend(times[2:])
    part_ms = [round(1000 * statistics.median(by_shape[_shape(part)]), 4) for part in parts]
    # Split the times into those of blocks and those of attentions. The rest of a pass is other
    # work.
    block_ms, rest = tuple(part_ms[: len(blocks)]), iter(part_ms[len(blocks) :])
    attention_ms = tuple(next(rest) if found else 0.0 for found in attentions)
    if not layers.streamed_once:
        other_ms = max(0.0, 1000 * statistics.median(totals) - sum(block_ms))
    return LatencyModel(block_ms, attention_ms, round(other_ms, 4))


@torch.inference_mode()
@wide_products()
def compare_latency(
    model: PreTrainedModel, candidate: LayerSubset, repeats: int = 11
) -> tuple[float, float]:
    """Return the median milliseconds of one prefill of `timed_tokens` tokens: dense, and pruned.

    The two are measured alternately, so that other work of the machine affects both.
    """
    ids = timed_input(model)
    dense, lean = [], []
    for _ in turns(repeats + 1):
        dense.append(time_forward(model, ids))
        with pruned(model, candidate):
            lean.append(time_forward(model, ids))
    # The first turn warms up and does not count.
    return 1000 * statistics.median(dense[1:]), 1000 * statistics.median(lean[1:])


def turns(most: int, limit: float = _SECONDS) -> Iterator[int]:
    """Count the turns of a measurement: at most `most`, and fewer after the time limit, but at
    least three.

    Args:
        most: largest number of turns.
        limit: seconds after which no further turn begins.
    """
    start = time.perf_counter()
    for turn in range(most):
        stopping.check()
        if turn >= 3 and time.perf_counter() - start > limit:
            return
        yield turn


def machine(model: PreTrainedModel) -> str:
    """Return the name of the hardware, and the number of threads of a CPU.

    A latency holds for them only.
    """
    return machine_name(input_device(model))


def timed_tokens(model: PreTrainedModel) -> int:
    """Return the number of tokens that are timed: `TOKENS`, or the model's number of positions if
    it is smaller.
    """
    return min(TOKENS, most_positions(model) or TOKENS)


def timed_input(model: PreTrainedModel) -> torch.Tensor:
    """Return the token ids of the timed sequence, shape (1, L)."""
    vocabulary = int(settings_of(model.config).vocab_size)
    return (torch.arange(timed_tokens(model), device=input_device(model)) * 7919 % vocabulary)[None]


def _time_streamed(
    model: PreTrainedModel, layers: Layers, ids: torch.Tensor, repeats: int
) -> float:
    """Run each block several times while its weights are in memory.

    Return the seconds of all other work.
    """
    forward, head = Forward(model, layers), Head(model)
    start = now(model)
    hidden_1LE, calls = forward.capture_block_inputs(Rows(ids))
    entering = now(model) - start
    for index, block in layers.walk(range(len(calls))):
        stopping.check()
        for _ in range(repeats):
            run_block(block, hidden_1LE, calls[index])
    start = now(model)
    head.logits(head.apply_final_norm(hidden_1LE[0]))
    return entering + now(model) - start


def time_forward(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Return the seconds of one forward pass."""
    start = now(model)
    model(input_ids=ids, use_cache=False)
    return now(model) - start


def now(model: PreTrainedModel) -> float:
    """Return the time after the device has finished its work."""
    if input_device(model).type == "cuda":
        torch.cuda.synchronize(input_device(model))
    return time.perf_counter()


def _shape(block: nn.Module) -> tuple[object, ...]:
    """Return the names and shapes of a module's parameters."""
    return tuple((name, tuple(p.shape)) for name, p in block.named_parameters())
