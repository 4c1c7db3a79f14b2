"""Time: per-block latencies measured once, from which any candidate's is predicted, and the real thing for winners.

Sizes are exact and come from `model.anatomy.Sizes`. 16-bit products are timed as the engine makes them: nobody would
deploy a model on a CPU that takes eight times as long over them (see `model.arithmetic`).
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch import stopping
from prunesearch.candidate import LayerSubset
from prunesearch.model.anatomy import blocks_of, family_of, input_device, lost, most_positions, parts_of, settings_of
from prunesearch.model.arithmetic import wide_products
from prunesearch.model.layers import Layers
from prunesearch.model.surgery import pruned
from prunesearch.scoring.batches import Rows
from prunesearch.scoring.forward import Forward, Head, through

TOKENS = 256
"""Length of the one sequence whose prefill is timed, of models that have so many positions."""
_SECONDS = 5.0  # a slow model is timed less often than a fast one


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of one prefill of `timed_tokens` tokens, by part.

    Attributes:
        block_ms: each block's share.
        attention_ms: of it, the attention's; the rest is the MLP's.
        other_ms: embeddings, final norm and head.
    """

    block_ms: tuple[float, ...]
    attention_ms: tuple[float, ...]
    other_ms: float

    def predict(self, candidate: LayerSubset | None = None) -> float:
        """Latency of a candidate in milliseconds; of the dense model without one."""
        return float(self.other_ms + sum(self.block_ms) - lost(self.block_ms, self.attention_ms, candidate))

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Read what `as_json` wrote."""
        return cls(tuple(stored["block_ms"]), tuple(stored["attention_ms"]), stored["other_ms"])


@torch.inference_mode()
@wide_products()
def measure_latency_model(model: PreTrainedModel, layers: Layers, repeats: int = 7) -> LatencyModel:
    """Time each block inside whole forward passes, by hooks; where its weights are streamed, while it is there.

    Blocks with equal parameter shapes do equal work, so they share their median: what is left between them is noise.
    """
    blocks = list(blocks_of(model))
    sublayer = family_of(model.config).attention
    attentions = [parts_of(block, sublayer.modules)[:1] if sublayer else [] for block in blocks]
    parts = blocks + [part for found in attentions for part in found]
    ids = _input(model)
    spent: list[list[float]] = [[] for _ in parts]
    started: dict[int, float] = {}

    def before(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:  # noqa: ANN401
            started[index] = _now(model)

        return hook

    def after(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:  # noqa: ANN401
            spent[index].append(_now(model) - started[index])

        return hook

    hooks = [part.register_forward_pre_hook(before(i)) for i, part in enumerate(parts)]
    hooks += [part.register_forward_hook(after(i)) for i, part in enumerate(parts)]
    try:
        if layers.one_pass:
            other_ms = 1000 * _time_streamed(model, layers, ids, repeats + 2)
        else:
            totals = [_time_forward(model, ids) for _ in _turns(repeats + 2)][2:]
    finally:
        for handle in hooks:
            handle.remove()
    by_shape: dict[tuple[object, ...], list[float]] = {}
    for part, times in zip(parts, spent, strict=True):
        by_shape.setdefault(_shape(part), []).extend(times[2:])
    part_ms = [round(1000 * statistics.median(by_shape[_shape(part)]), 4) for part in parts]
    block_ms, rest = tuple(part_ms[: len(blocks)]), iter(part_ms[len(blocks) :])
    attention_ms = tuple(next(rest) if found else 0.0 for found in attentions)
    if not layers.one_pass:
        other_ms = max(0.0, 1000 * statistics.median(totals) - sum(block_ms))
    return LatencyModel(block_ms, attention_ms, round(other_ms, 4))


@torch.inference_mode()
@wide_products()
def compare_latency(model: PreTrainedModel, candidate: LayerSubset, repeats: int = 11) -> tuple[float, float]:
    """Median milliseconds of one prefill of `timed_tokens` tokens, dense and pruned.

    The two take turns, so that whatever else the machine does falls on both.
    """
    ids = _input(model)
    dense, lean = [], []
    for _ in _turns(repeats + 1):
        dense.append(_time_forward(model, ids))
        with pruned(model, candidate):
            lean.append(_time_forward(model, ids))
    return 1000 * statistics.median(dense[1:]), 1000 * statistics.median(lean[1:])  # the first turn warms up


def _turns(most: int) -> Iterator[int]:
    """Repeat a measurement `most` times, or as often as there is time for; three times at least."""
    start = time.perf_counter()
    for turn in range(most):
        stopping.check()
        if turn >= 3 and time.perf_counter() - start > _SECONDS:
            return
        yield turn


def machine(model: PreTrainedModel) -> str:
    """Name the hardware and thread count that a latency holds for."""
    if input_device(model).type == "cuda":
        return str(torch.cuda.get_device_name(input_device(model)))
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def timed_tokens(model: PreTrainedModel) -> int:
    """How many tokens are timed: `TOKENS`, or as many as the model has positions for."""
    return min(TOKENS, most_positions(model) or TOKENS)


def _input(model: PreTrainedModel) -> torch.Tensor:
    vocabulary = int(settings_of(model.config).vocab_size)
    return (torch.arange(timed_tokens(model), device=input_device(model)) * 7919 % vocabulary)[None]


def _time_streamed(model: PreTrainedModel, layers: Layers, ids: torch.Tensor, repeats: int) -> float:
    """Call each block while its weights are there; returns the seconds of everything else."""
    forward, head = Forward(model, layers), Head(model)
    start = _now(model)
    hidden_1LE, calls = forward.enter(Rows(ids))
    entering = _now(model) - start
    for index, block in layers.walk(range(len(calls))):
        stopping.check()
        for _ in range(repeats):
            through(block, hidden_1LE, calls[index])
    start = _now(model)
    head.logits(head.finish(hidden_1LE[0]))
    return entering + _now(model) - start


def _time_forward(model: PreTrainedModel, ids: torch.Tensor) -> float:
    start = _now(model)
    model(input_ids=ids, use_cache=False)
    return _now(model) - start


def _now(model: PreTrainedModel) -> float:
    if input_device(model).type == "cuda":
        torch.cuda.synchronize(input_device(model))
    return time.perf_counter()


def _shape(block: nn.Module) -> tuple[object, ...]:
    return tuple((name, tuple(p.shape)) for name, p in block.named_parameters())
