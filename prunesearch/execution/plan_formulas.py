"""The formulas of a memory plan for each `--offload`: `none`, `disk` and `cpu`.

Memory, in bytes. N: parameters outside the blocks. L: parameters of the largest block. T: tokens in
all. t: tokens at a time. C: candidates. E: hidden size. V: vocabulary. I: width of the MLP. w:
bytes per number as computed. s: bytes per number as stored.

    none     all weights                 w (N + blocks)
    disk     resident weights, 2 blocks  w (N + 2 L), and the largest tensor if it is converted
    cpu      as disk on the device, and s (blocks) in host memory
    each     this process                as it is now, with its libraries
             states                      w E t (C + 2), streamed w E T (C + 2): up to --state-memory
             final states                w E t C, up to --state-memory as well
             one block at work           w t (3 I + 6 E)
             one weight in float32       4 E V, or the largest tensor, if products use float32
             logits                      64 V (w + 16)
             reference of the dense model
                                T (w E + 520), or 8 T K with --kl-top K; w T V with a soft cap

Time, in seconds, of an early generation, whose candidates are drawn at random. Candidates of later
generations share more.

    compute  2 (parameters used by distinct states + rows read * E V) / measured products per second
    read     s (blocks) / measured bytes per second, from the disk if the page cache is too small
    stream   the longer of both, and the part of the shorter that the CPU cannot do at the same time
"""

import os
import resource
from collections.abc import Sequence
from pathlib import Path

import torch

from prunesearch.candidate import LayerSubset
from prunesearch.execution.hardware import Speed
from prunesearch.execution.head import HEAD_ROWS
from prunesearch.execution.plan_inputs import PlannedModel
from prunesearch.execution.plan_types import Asked, Mode
from prunesearch.models.bf16_cpu import widens
from prunesearch.models.model_configs import settings_of

STATISTICS_BYTES = 520
"""Bytes of a token's statistics beside its hidden state: one float64, and 64 likely tokens."""
_SCORED = 1 / 3  # share of a task's tokens that are scored: 10,963 of HellaSwag's 34,867
_TASK_BYTES = 300 * 2**20  # lm-eval, datasets and a task's documents


class PlanFormulas:
    """The formulas of this module's docstring."""

    def __init__(
        self,
        model: PlannedModel,
        asked: Asked,
        generation: Sequence[LayerSubset],
        speed: Speed,
        device: torch.device,
        at_once: int,
    ) -> None:
        self._model, self._asked, self._speed, self._at_once = model, asked, speed, at_once
        self._on_cpu = device.type == "cpu"
        self._tokens = asked.tokens_in_all
        self.forwards = distinct_forwards(generation, model.blocks)
        self.separate = 0
        for candidate in generation:
            for index in candidate.kept:
                self.separate += model.blocks[index]

    def modes(self, kl_top: int | None) -> list[Mode]:
        """Return the prediction for each place of the weights."""
        return [self._mode(place, kl_top) for place in self._model.places]

    def _mode(self, place: str, kl_top: int | None) -> Mode:
        """Return the prediction for one place of the weights."""
        model, asked = self._model, self._asked
        streamed = place != "none"
        parts = self._fixed(streamed, kl_top)
        in_host = model.stored_bytes if place == "cpu" else 0
        if self._on_cpu and in_host:
            parts["blocks in memory"] = in_host
        # Give the states what is left, but keep room for the final states of one chunk.
        state = int(settings_of(model.config).hidden_size) * model.size
        tokens = self._tokens if streamed else self._at_once
        wanted = state * tokens * (asked.candidates + 2)
        room = max(asked.memory - sum(parts.values()), 0)
        final = state * self._at_once * asked.candidates
        state_memory = min(wanted, max(room - final, room // 2))
        parts["states"] = state_memory + min(final, state_memory)
        spilled = max(0, wanted - state_memory) if streamed else 0
        enough = state_memory >= state * self._at_once  # room for at least one candidate
        total = sum(parts.values())
        read = model.stored_bytes if place == "disk" else 0
        return Mode(
            place,
            total <= asked.memory and enough,
            total,
            0 if self._on_cpu else in_host,
            parts,
            read,
            round(self._seconds(read, in_host, spilled, total), 3),
            spilled,
            state_memory,
        )

    def _fixed(self, streamed: bool, kl_top: int | None) -> dict[str, int]:
        """Return the bytes by purpose of everything but the states."""
        model, config, t = self._model, settings_of(self._model.config), self._at_once
        vocabulary, hidden = int(config.vocab_size), int(config.hidden_size)
        inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
        # Libraries and documents. On a GPU, 600 MiB is about the size of a CUDA context.
        parts = {"this process": resident_bytes() if self._on_cpu else 600 * 2**20}
        if self._asked.tokens is None:
            parts["task"] = _TASK_BYTES if self._on_cpu else 0
        # Weights: two blocks at a time if they are streamed, and a tensor that is being converted.
        in_blocks = 2 * max(model.blocks) if streamed else sum(model.blocks)
        parts["weights"] = model.size * (model.other + in_blocks)
        if streamed and (model.converted or not self._on_cpu):
            parts["weights"] += model.largest * max(
                (s.dtype.itemsize for s in model.stored.values()), default=2
            )
        # Intermediate results of a block and of the head.
        if self._on_cpu and model.size == 2 and widens():
            parts["widened weight"] = 4 * max(model.largest, vocabulary * hidden)
        parts["block at work"] = model.size * t * (3 * inner + 6 * hidden)
        head_rows = HEAD_ROWS["cpu" if self._on_cpu else "cuda"]
        parts["logits"] = head_rows * vocabulary * (model.size + 12)
        if self._asked.tokens is not None:
            parts["reference logits"] = self._tokens * self._reference_bytes(kl_top)
        return parts

    def _reference_bytes(self, kl_top: int | None) -> int:
        """Return the bytes that are kept of the dense model for each token."""
        config = settings_of(self._model.config)
        # The top-k KL keeps an index and a value of each likely token.
        if kl_top is not None:
            return 8 * kl_top
        # A soft cap makes the head not linear, so that all logits are kept. Only its config is
        # known here.
        if getattr(config, "final_logit_softcapping", None):
            return int(config.vocab_size) * self._model.size
        return int(config.hidden_size) * self._model.size + STATISTICS_BYTES

    def _seconds(self, read: int, in_host: int, spilled: int, memory: int) -> float:
        """Return the time of a generation."""
        model, speed = self._model, self._speed
        # Time to compute the blocks, and the head for the rows that are scored.
        scored = 1.0 if self._asked.tokens is not None else _SCORED
        rows = self._asked.candidates * self._tokens * scored
        head = (
            rows
            * int(settings_of(model.config).hidden_size)
            * int(settings_of(model.config).vocab_size)
        )
        compute = (
            2
            * (self.forwards * self._tokens + head)
            / speed.flops[str(model.dtype).removeprefix("torch.")]
        )
        # Time to read the weights, and to write and read states that do not fit.
        cached = read + memory < speed.free
        reading = read / (speed.cached if cached else speed.disk)
        reading += 2 * spilled * len(model.blocks) / speed.disk
        if not self._on_cpu:
            reading = max(reading, (read + in_host) / speed.to_device)
        # Both run at the same time. A CPU core that copies from the page cache computes nothing.
        if cached and self._on_cpu:
            return max(compute, reading) + min(compute, reading) / torch.get_num_threads()
        return max(compute, reading)


def distinct_forwards(generation: Sequence[LayerSubset], weights: Sequence[float]) -> float:
    """Return the sum of `weights` over the blocks of a generation's trie.

    Each distinct state passes through a block once.
    """
    seen = set()
    for candidate in generation:
        for index in candidate.kept:
            seen.add((index, candidate.path[: index + 1]))
    return sum(weights[index] for index, _ in seen)


def resident_bytes() -> int:
    """Return the bytes of memory of this process.

    It has loaded Python, torch and transformers, as a search has before it loads its model.
    """
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
