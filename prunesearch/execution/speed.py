"""Measured times of candidates, each several times: of a prompt, and of each new token.

Candidates are measured in turns, so that other work of the machine affects all of them alike.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.execution.greedy import generate
from prunesearch.execution.latency import now, time_forward, timed_input, turns
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.surgery import pruned

NEW_TOKENS = 16
"""Tokens that are generated in each turn."""


@dataclass(frozen=True)
class MeasuredSpeed:
    """Measured times of a candidate, in milliseconds.

    Attributes:
        prefill_ms: median time of one pass over the timed prompt.
        prefill_error_ms: standard error of the times of a pass.
        decode_ms: median time of one new token after the prompt; None if none was generated.
        decode_error_ms: standard error of the turns' times of a token.
        runs: number of turns.
    """

    prefill_ms: float
    prefill_error_ms: float
    decode_ms: float | None
    decode_error_ms: float | None
    runs: int


class _Clock:
    """Notes when each token of a generation is known.

    Args:
        model: the model that generates.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Note the time. The first call is made with the prompt."""
        self.times.append(now(self._model))

    def end(self) -> None:
        """Do nothing at the end of the text."""

    def token_ms(self) -> float | None:
        """Return the median milliseconds of a token after the first new one."""
        steps = []
        for before, after in zip(self.times[1:], self.times[2:], strict=False):
            steps.append(1000 * (after - before))
        return statistics.median(steps) if steps else None


@torch.inference_mode()
@wide_products()
def measure_speeds(
    model: PreTrainedModel, candidates: Sequence[LayerSubset], most: int = 7
) -> Mapping[LayerSubset, MeasuredSpeed]:
    """Measure candidates of a model in turns, after one turn that warms up.

    Args:
        model: the dense model, whose weights are all in memory.
        candidates: candidates to measure.
        most: largest number of turns. A slow model is measured in fewer, but in at least two.
    """
    ids = timed_input(model)
    passes: dict[LayerSubset, list[float]] = {candidate: [] for candidate in candidates}
    tokens: dict[LayerSubset, list[float]] = {candidate: [] for candidate in candidates}
    for turn in turns(most + 1, 5.0 * len(passes)):
        for candidate in passes:
            with pruned(model, candidate):
                prefill = 1000 * time_forward(model, ids)
                decode = _token_ms(model, ids)
            # The first turn warms up and does not count.
            if turn == 0:
                continue
            passes[candidate].append(prefill)
            if decode is not None:
                tokens[candidate].append(decode)
    return {candidate: _speed(passes[candidate], tokens[candidate]) for candidate in passes}


def _token_ms(model: PreTrainedModel, ids: torch.Tensor) -> float | None:
    """Return the milliseconds of a new token after a prompt; None if the model generates none."""
    room = ids.shape[1] - NEW_TOKENS
    if room < 1 or not model.can_generate():
        return None
    clock = _Clock(model)
    generate(model, ids[:, :room], NEW_TOKENS, streamer=clock)
    return clock.token_ms()


def _speed(passes: Sequence[float], tokens: Sequence[float]) -> MeasuredSpeed:
    decode = statistics.median(tokens) if tokens else None
    return MeasuredSpeed(
        prefill_ms=statistics.median(passes),
        prefill_error_ms=_error(passes),
        decode_ms=decode,
        decode_error_ms=_error(tokens) if tokens else None,
        runs=len(passes),
    )


def _error(times: Sequence[float]) -> float:
    """Return the standard error of the mean of some times; 0 for a single one."""
    if len(times) < 2:
        return 0.0
    return float(statistics.stdev(times) / len(times) ** 0.5)
