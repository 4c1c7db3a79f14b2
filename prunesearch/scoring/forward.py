"""Hidden states of many candidates at once: what they share is computed once.

Candidates are paths through the same blocks. As long as two of them keep the same units they have the same hidden
state, so a generation is a trie, walked breadth-first over the layers: at each block, every distinct state goes
through it once for each way in which its candidates use the block (whole, without attention, without MLP), and stays
for those that drop it. The numbers are those of one candidate alone, to the bit: a block sees the same tensor.

The model's own code makes the embeddings, masks and rotary angles (`enter` records what it passes to each block) and
reads the final state (`Head`), so nothing here knows an architecture.

Shapes: B sequences, L tokens, E hidden size, R rows that are read, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError, ScoringError, one_line
from prunesearch.model.anatomy import blocks_of, family_of, input_device, returned, settings_of
from prunesearch.model.guard import guarded
from prunesearch.model.layers import Layers
from prunesearch.model.surgery import pruned, silenced
from prunesearch.scoring.batches import Batch, Rows, no_masks
from prunesearch.scoring.shelf import Shelf

HEAD_ROWS = {"cpu": 128, "cuda": 1024}
"""Rows that the vocabulary head is given at a time, by device.

With fewer, reading its weights takes longer than multiplying; with more, logits leave the cache before they are used.
On 2 CPU cores 22,850 rows took 2.0 s by 128, 2.8 by 64 and 2.7 by 512.
"""
_ALIKE = 0.02  # relative difference: more than 16-bit rounding makes
_checked: set[str] = set()
"""Types outside the table of which that is known."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What the model passes to a block beside the hidden state."""


class Stopped(BaseException):
    """Raised between two blocks when nobody waits for the result any more."""


@dataclass
class Tally:
    """Work done: blocks times tokens, as computed and as separate forward passes would have."""

    computed: int = 0
    separate: int = 0

    @property
    def saved(self) -> float:
        """Share of the block computations that sharing saved."""
        return 1 - self.computed / self.separate if self.separate else 0.0


@dataclass(frozen=True)
class _State:
    place: int  # on the shelf
    members: tuple[LayerSubset, ...]  # whose state it is up to here


class Forward:
    """Runs candidates over batches.

    Args:
        layers: where the blocks come from.
        state_memory: bytes that hidden states may take; beyond it candidates go in groups, and what these share is
            computed once a group.
        stopped: asked between blocks; true leaves with `Stopped`.

    Attributes:
        tally: what was computed and what was saved.
        spilled: bytes of hidden states that were put aside, for want of memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Layers,
        state_memory: int = 2**31,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model = model
        self.tally = Tally()
        self.spilled = 0
        self._layers = layers
        self._memory = state_memory
        self.stopped = stopped
        if not layers.one_pass and not family_of(model.config).known:
            self._check()

    def _check(self) -> None:
        """See, once for each type, that block by block a model outside the table computes what its own code does.

        Raises:
            ModelError: it does not: its blocks hand on more than the hidden state, or return it in another form.
        """
        kind = self.model.config.model_type
        if kind in _checked:
            return
        try:
            why = "" if self._composes() else ": what they give differs"
        except (
            ScoringError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            why = f": {one_line(error)}"
        if why:
            raise ModelError(
                f"models of type {kind!r} cannot be scored, as their blocks are not one after the other{why}"
            )
        self.tally = Tally()
        _checked.add(kind)

    @torch.inference_mode()
    def _composes(self) -> bool:
        n, vocabulary = len(blocks_of(self.model)), settings_of(self.model.config).vocab_size
        batch, head = Rows(torch.arange(1, 17)[None] * 7919 % vocabulary).on(self.model), Head(self.model)
        candidates = [LayerSubset.of(n), *([LayerSubset.of(n, (n // 2,))] if n > 1 else [])]
        away = []
        for _, candidate, hidden_1LE in self.run([(batch, candidates)]):
            found_LV = head.logits(head.finish(hidden_1LE[0])).float()
            with pruned(self.model, candidate) as model:
                own_LV = model(input_ids=batch.ids, use_cache=False).logits[0].float()
            away.append(float((found_LV - own_LV).norm() / own_LV.norm()))
        return all(difference <= _ALIKE for difference in away)

    @torch.inference_mode()
    def run(
        self, jobs: Sequence[tuple[Batch, Sequence[LayerSubset]]]
    ) -> Iterator[tuple[int, LayerSubset, torch.Tensor]]:
        """Yield job number, candidate and its state behind the last block, shape (B, L, E); jobs end in order.

        A job's candidates come in the order of their paths, so the dense model's state, if it is asked for, is first.

        Raises:
            Stopped: see `stopped`.
        """
        if self._layers.one_pass:
            yield from self._wave([(job, batch, _in_order(c)) for job, (batch, c) in enumerate(jobs)])
            return
        for job, (batch, candidates) in enumerate(jobs):
            for group in self._groups(batch, candidates):
                yield from self._wave([(job, batch, group)])

    def _groups(self, batch: Batch, candidates: Sequence[LayerSubset]) -> Iterator[tuple[LayerSubset, ...]]:
        """Cut a generation to what fits the memory for states; neighbours share most."""
        ordered, most = _in_order(candidates), self.lot(batch)
        for start in range(0, len(ordered), most):
            yield ordered[start : start + most]

    def lot(self, batch: Batch) -> int:
        """How many candidates' states of a batch fit the memory for states; at least one."""
        state_bytes = batch.tokens * settings_of(self.model.config).hidden_size * self.model.dtype.itemsize
        return max(1, int(self._memory // state_bytes))

    def _wave(
        self, jobs: Sequence[tuple[int, Batch, tuple[LayerSubset, ...]]]
    ) -> Iterator[tuple[int, LayerSubset, torch.Tensor]]:
        """Take all jobs through the blocks together."""
        with Shelf(self._memory if self._layers.one_pass else None) as shelf:
            entered = [self.enter(batch) for _, batch, _ in jobs]
            states = [[_State(shelf.put(hidden), c)] for (hidden, _), (_, _, c) in zip(entered, jobs, strict=True)]
            wanted = sorted({i for _, _, candidates in jobs for c in candidates for i in c.kept})
            for index, block in self._layers.walk(wanted):
                for place, (_, batch, _) in enumerate(jobs):
                    with batch.attention(self.model.config):
                        call = entered[place][1][index]
                        states[place] = list(self._through(block, index, call, states[place], shelf, batch.tokens))
            self.spilled += shelf.spilled
            for place, (job, batch, candidates) in enumerate(jobs):
                self.tally.separate += batch.tokens * sum(len(c.kept) for c in candidates)
                for state in states[place]:
                    for candidate in state.members:
                        yield job, candidate, shelf.take(state.place)

    def _through(
        self, block: nn.Module, index: int, call: Call, states: list[_State], shelf: "Shelf", tokens: int
    ) -> Iterator[_State]:
        """Split each state by what its candidates do with a block."""
        for state in states:
            uses: dict[tuple[bool, bool] | None, list[LayerSubset]] = {}
            for candidate in state.members:
                use = (index in candidate.attention, index in candidate.mlp) if index not in candidate.dropped else None
                uses.setdefault(use, []).append(candidate)
            if set(uses) == {None}:
                yield state
                continue
            hidden = shelf.get(state.place)
            for use, members in uses.items():
                if use is None:
                    yield _State(state.place, tuple(members))
                    continue
                if self.stopped():
                    raise Stopped
                with silenced(self.model, block, *use):
                    out = through(block, hidden, call)
                self.tally.computed += tokens
                yield _State(shelf.put(out), tuple(members))
            if None not in uses:
                shelf.drop(state.place)

    @torch.inference_mode()
    def enter(self, batch: Batch) -> tuple[torch.Tensor, list[Call]]:
        """What the model makes of a batch before its first block, and what it passes to each block."""
        calls: list[Call] = []
        first: list[torch.Tensor] = []

        def note(*args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor | None, ...]:  # noqa: ANN401
            hidden: torch.Tensor = args[0] if args else kwargs.pop("hidden_states")
            calls.append((args[1:], kwargs))
            first.append(hidden)
            return returned(self.model, hidden)

        with ExitStack() as stack:
            for block in blocks_of(self.model):
                stack.enter_context(mock.patch.object(block, "forward", note))
            stack.enter_context(batch.attention(self.model.config))
            stack.enter_context(code_of(self.model))
            trunk_of(self.model)(
                input_ids=batch.ids.to(input_device(self.model)), position_ids=batch.positions, use_cache=False
            )
        return first[0], calls


def code_of(module: nn.Module) -> AbstractContextManager[None]:
    """A guard around a model's own code: older than transformers, lacking a setting, or short of memory."""
    return guarded(f"{type(module).__name__} cannot compute", kind=ScoringError)


def _in_order(candidates: Sequence[LayerSubset]) -> tuple[LayerSubset, ...]:
    return tuple(sorted(set(candidates), key=lambda c: c.path))


def through(block: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """Hidden states behind a block; some blocks return them alone, others with attention weights."""
    args, kwargs = call
    with code_of(block):
        out: torch.Tensor | tuple[torch.Tensor, ...] = block(hidden, *args, **kwargs)
    return out if isinstance(out, torch.Tensor) else out[0]


@dataclass
class _Finished(MoeModelOutputWithPast):
    """What any trunk may be asked for by the model round it."""

    cross_attentions: None = None
    cache_params: None = None
    shared_kv_states: None = None


class Head:
    """Reads states behind the last block: final norm, vocabulary head, and whatever the model does to its logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._trunk = trunk_of(model)

    @torch.inference_mode()
    def finish(self, states_RE: torch.Tensor) -> torch.Tensor:
        """What the model does between its last block and the head, on chosen rows: shape (R, E)."""
        device, answer = input_device(self._model), returned(self._model, states_RE[None])
        with ExitStack() as stack:
            for block in blocks_of(self._model):
                stack.enter_context(mock.patch.object(block, "forward", lambda *_, **__: answer))
            stack.enter_context(no_masks(self._model.config))
            stack.enter_context(code_of(self._model))
            nothing_1R = torch.zeros(1, len(states_RE), dtype=torch.int64, device=device)
            finished: torch.Tensor = self._trunk(
                input_ids=nothing_1R, position_ids=nothing_1R, use_cache=False
            ).last_hidden_state
        return finished[0]

    @torch.inference_mode()
    def logits(self, finished_RE: torch.Tensor) -> torch.Tensor:
        """Logits of finished rows, shape (R, V)."""
        answer = _Finished(last_hidden_state=finished_RE[None])
        ids_1R = torch.zeros(1, len(finished_RE), dtype=torch.int64, device=finished_RE.device)
        with mock.patch.object(self._trunk, "forward", lambda *_, **__: answer), code_of(self._model):
            logits: torch.Tensor = self._model(input_ids=ids_1R, use_cache=False).logits
        return logits[0]


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The module that embeds, goes through the blocks and norms: the one that has the blocks."""
    return model.get_submodule(family_of(model.config).blocks.rpartition(".")[0])
