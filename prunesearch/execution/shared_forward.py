"""Forward pass for many candidates at once. Shared prefixes are computed once.

Candidates are paths through the same blocks. Two candidates have the same hidden state as long as
they keep the same units, so a generation is a trie. It is walked breadth-first over the layers. At
each block, every distinct state passes through the block once for each way in which its candidates
use it (whole, without attention, without MLP). The state is unchanged for candidates that drop the
block. A block sees the same tensor as in a separate pass, so the numbers are equal to the bit if
the blocks run by the model's own code (see `execution.block_code`).

The model's own code computes the embeddings, masks and rotary angles:
`Forward.capture_block_inputs` records the arguments of each block. `execution.head` reads the final
state. This module therefore needs no knowledge of an architecture.

Shapes: B sequences, L tokens, E hidden size, R rows that are read, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch import events
from prunesearch.candidate import LayerSubset, Use
from prunesearch.execution.batches import Batch, Rows
from prunesearch.execution.block_code import BlockCode, Call
from prunesearch.execution.cancellation import EvaluationCancelled
from prunesearch.execution.composition import check_composition
from prunesearch.execution.device_memory import STATE_BYTES, state_bytes
from prunesearch.execution.head import code_of, trunk_of
from prunesearch.execution.merged_passes import Job, MergedPass, merge
from prunesearch.execution.pass_tokens import bytes_per_token, pass_tokens_for, timed
from prunesearch.execution.state_buffer import StateBuffer
from prunesearch.models.layers import Layers
from prunesearch.models.model_configs import settings_of
from prunesearch.models.reordering import check_order
from prunesearch.models.structure import architecture_of, blocks_of, input_device, returned
from prunesearch.models.surgery import used
from prunesearch.runtime.patching import replaced


@dataclass
class WorkCounter:
    """Counter of work in blocks times tokens.

    Attributes:
        computed: work that was done.
        separate: work that separate forward passes would have done.
    """

    computed: int = 0
    separate: int = 0

    @property
    def saved(self) -> float:
        """Share of the block computations that shared prefixes saved."""
        if not self.separate:
            return 0.0
        return 1 - self.computed / self.separate


@dataclass(frozen=True)
class _State:
    """A hidden state and the candidates that share it.

    Attributes:
        place: number of the hidden state in the state buffer.
        members: candidates that have this state so far.
    """

    place: int
    members: tuple[LayerSubset, ...]


class Forward:
    """Runs candidates over batches.

    Args:
        model: the dense model.
        layers: source of the blocks: memory, or a stream from disk.
        state_memory: bytes that hidden states may take. Candidates that need more are run in
            groups, and shared prefixes are then computed once per group. None: by the free memory
            of a GPU.
        stopped: function that is called between blocks. If it returns True, the pass raises
            `EvaluationCancelled`.
        code: how blocks are run. Default: by the model's own code.

    Attributes:
        work_counter: counter of the work done and of the work saved.
        spilled: bytes of hidden states that were written to disk for lack of memory.
        pass_tokens: tokens of a pass that several jobs share; 0: jobs share no pass. None: it is
            measured when a GPU first has several jobs (`execution.pass_tokens`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Layers,
        state_memory: int | None = STATE_BYTES,
        stopped: Callable[[], bool] = lambda: False,
        code: BlockCode | None = None,
    ) -> None:
        self.model = model
        self.code = code or BlockCode()
        self.work_counter = WorkCounter()
        self.spilled = 0
        self.pass_tokens: int | None = None
        self._layers = layers
        self._given_memory = state_memory
        self._memory = state_memory or STATE_BYTES
        self.stopped = stopped
        if not layers.streamed_once and not architecture_of(model.config).known:
            check_composition(model, self.run)
            # The caller did not ask for the work of the check.
            self.work_counter = WorkCounter()

    @torch.inference_mode()
    def run(
        self, jobs: Sequence[tuple[Batch, Sequence[LayerSubset]]]
    ) -> Iterator[tuple[int, LayerSubset, torch.Tensor]]:
        """Yield job number, candidate and its state after the last block, shape (B, L, E).

        Jobs end in order. The candidates of a job come in the order of their paths, so the dense
        model's state comes first if it was requested.

        Raises:
            EvaluationCancelled: `stopped` returned True.
        """
        for _, candidates in jobs:
            for candidate in candidates:
                check_order(self.model, candidate)
        self._choose_memory(jobs)
        # Blocks that are streamed from disk are loaded once, for all jobs.
        if self._layers.streamed_once:
            yield from self._wave(
                [(job, batch, _in_order(c)) for job, (batch, c) in enumerate(jobs)]
            )
            return
        # Blocks in memory are free to visit again, so each group is run by itself.
        for merged in merge(jobs, self._tokens_of_pass(jobs), self.max_candidates):
            yield from self._run_pass(merged, jobs)

    def _run_pass(
        self, merged: MergedPass, jobs: Sequence[Job]
    ) -> Iterator[tuple[int, LayerSubset, torch.Tensor]]:
        """Run the jobs of a pass together; one after the other if memory does not suffice."""
        if len(merged.jobs) == 1:
            for group in self._groups(merged.batch, merged.candidates):
                yield from self._run_group(merged.jobs[0], merged.batch, group)
            return
        states: list[tuple[LayerSubset, torch.Tensor]] | None = None
        try:
            finished = self._wave([(0, merged.batch, _in_order(merged.candidates))])
            states = [(candidate, state_BLE) for _, candidate, state_BLE in finished]
        except torch.OutOfMemoryError:
            # Inside of this block, the error would still hold the tensors of the pass.
            pass
        if states is not None:
            yield from merged.split(states)
            return
        self.pass_tokens = merged.batch.tokens // 2
        _tell_of_short_memory(self.model)
        for single in merged.apart(jobs):
            yield from self._run_pass(single, jobs)

    def _run_group(
        self, job: int, batch: Batch, group: tuple[LayerSubset, ...]
    ) -> Iterator[tuple[int, LayerSubset, torch.Tensor]]:
        """Run candidates together, or in halves if memory does not suffice.

        States are handed out after the last block, and memory runs out before.
        """
        try:
            yield from self._wave([(job, batch, group)])
            return
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
        # Later passes keep to what has proved to fit.
        self._memory //= 2
        self._given_memory = self._memory
        _tell_of_short_memory(self.model)
        for half in (group[: len(group) // 2], group[len(group) // 2 :]):
            yield from self._run_group(job, batch, half)

    def _tokens_of_pass(self, jobs: Sequence[Job]) -> int:
        """Return the tokens of a pass that several jobs share. It is measured once."""
        if self.pass_tokens is not None:
            return self.pass_tokens
        batch = jobs[0][0] if len(jobs) > 1 else None
        if not isinstance(batch, Rows):
            return 0
        # A pass through a few blocks shows what a pass through all of them would.
        n = len(blocks_of(self.model))
        few, counter = LayerSubset.of(n, range(min(4, n), n)), self.work_counter
        row_1L = batch.ids[:1]

        def seconds(tokens: int) -> float:
            repeated = Rows(row_1L.repeat(-(-tokens // row_1L.shape[1]), 1))
            wave = partial(self._wave, [(0, repeated, (few,))])
            return timed(lambda: list(wave()), input_device(self.model))

        self.work_counter = WorkCounter()
        try:
            found = pass_tokens_for(self.model, row_1L.shape[1], batch.tokens, seconds)
        finally:
            self.work_counter = counter
        self.pass_tokens = found
        return found

    def _choose_memory(self, jobs: Sequence[Job]) -> None:
        """Choose the memory for states by what is free, if it was not given.

        What one block at work needs is set aside.
        """
        if self._given_memory is None and jobs:
            tokens = max(batch.tokens for batch, _ in jobs)
            needed = tokens * bytes_per_token(self.model.config, self.model.dtype)
            self._memory = state_bytes(input_device(self.model), needed)

    def _groups(
        self, batch: Batch, candidates: Sequence[LayerSubset]
    ) -> Iterator[tuple[LayerSubset, ...]]:
        """Split a generation into groups whose states fit in memory.

        Neighbours in the order of paths share the longest prefixes.
        """
        ordered, most = _in_order(candidates), self.max_candidates(batch)
        for start in range(0, len(ordered), most):
            yield ordered[start : start + most]

    def max_candidates(self, batch: Batch) -> int:
        """Return how many candidates' states of a batch fit in `state_memory`, at least one."""
        state_bytes = (
            batch.tokens * settings_of(self.model.config).hidden_size * self.model.dtype.itemsize
        )
        return max(1, int(self._memory // state_bytes))

    def _wave(
        self, jobs: Sequence[tuple[int, Batch, tuple[LayerSubset, ...]]]
    ) -> Iterator[tuple[int, LayerSubset, torch.Tensor]]:
        """Run all jobs through the blocks together."""
        with StateBuffer(self._memory if self._layers.streamed_once else None) as state_buffer:
            inputs = [self.capture_block_inputs(batch) for _, batch, _ in jobs]
            # All candidates of a job start with the same state.
            states: list[list[_State]] = []
            wanted: set[int] = set()
            for (hidden, _), (_, _, candidates) in zip(inputs, jobs, strict=True):
                states.append([_State(state_buffer.put(hidden), candidates)])
                for candidate in candidates:
                    wanted.update(candidate.kept)
            # Run every job through a block while the block is in memory.
            for index, block in self._layers.walk(sorted(wanted)):
                for place, (_, batch, _) in enumerate(jobs):
                    with batch.attention(self.model.config):
                        call = inputs[place][1][index]
                        states[place] = list(
                            self._run_block(
                                block, index, call, states[place], state_buffer, batch.tokens
                            )
                        )
            self.spilled += state_buffer.spilled
            # Hand out the final states. The buffer forgets a state after its last reader.
            for place, (job, batch, candidates) in enumerate(jobs):
                for candidate in candidates:
                    self.work_counter.separate += batch.tokens * len(candidate.kept)
                for state in states[place]:
                    for candidate in state.members:
                        yield job, candidate, state_buffer.take(state.place)

    def _run_block(
        self,
        block: nn.Module,
        index: int,
        call: Call,
        states: list[_State],
        state_buffer: "StateBuffer",
        tokens: int,
    ) -> Iterator[_State]:
        """Run each state through a block, once for each way in which its candidates use the
        block.
        """
        for state in states:
            # Group the candidates by their use of the block. None: they drop it.
            uses: dict[Use | None, list[LayerSubset]] = {}
            for candidate in state.members:
                uses.setdefault(candidate.use(index), []).append(candidate)
            if set(uses) == {None}:
                yield state
                continue
            # Compute the block once for each group that uses it.
            hidden = state_buffer.get(state.place)
            for use, members in uses.items():
                if use is None:
                    yield _State(state.place, tuple(members))
                    continue
                if self.stopped():
                    raise EvaluationCancelled
                with used(self.model, block, use):
                    out = self.code.run(block, hidden, call, use.whole)
                self.work_counter.computed += tokens
                yield _State(state_buffer.put(out), tuple(members))
            # Keep the old state only while a candidate that drops the block still has it.
            if None not in uses:
                state_buffer.drop(state.place)

    @torch.inference_mode()
    def capture_block_inputs(self, batch: Batch) -> tuple[torch.Tensor, list[Call]]:
        """Return the hidden state before the first block, and the arguments of each block.

        Every block's forward is replaced by a function that records its arguments.
        """
        calls: list[Call] = []
        first: list[torch.Tensor] = []

        def note(
            *args: Any,  # noqa: ANN401
            **kwargs: Any,  # noqa: ANN401
        ) -> torch.Tensor | tuple[torch.Tensor | None, ...]:
            # The hidden state is passed first, or by name.
            hidden: torch.Tensor = args[0] if args else kwargs.pop("hidden_states")
            calls.append((args[1:], kwargs))
            first.append(hidden)
            return returned(self.model, hidden)

        with ExitStack() as stack:
            for block in blocks_of(self.model):
                stack.enter_context(replaced(block, "forward", note))
            stack.enter_context(batch.attention(self.model.config))
            stack.enter_context(code_of(self.model))
            trunk_of(self.model)(
                input_ids=batch.ids.to(input_device(self.model)),
                position_ids=batch.positions,
                use_cache=False,
            )
        return first[0], calls


def _tell_of_short_memory(model: PreTrainedModel) -> None:
    """Say that memory ran out, and free what torch has reserved."""
    device = input_device(model)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    events.tell(events.Message(f"memory of {device} ran out: candidates are scored in halves"))


def _in_order(candidates: Sequence[LayerSubset]) -> tuple[LayerSubset, ...]:
    return tuple(sorted(set(candidates), key=lambda c: c.path))
