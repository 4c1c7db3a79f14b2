"""Reads hidden states after the last block: final norm, vocabulary head and changes of the logits.

The model's own code computes them, so this module needs no knowledge of an architecture.

Shapes: E hidden size, R rows that are read, V vocabulary.
"""

import functools
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionMaskInterface, PretrainedConfig, PreTrainedModel

from prunesearch.compat.transformers import MoeModelOutputWithPast, attention_as
from prunesearch.errors import ScoringError
from prunesearch.execution.linear_head import LinearHead, linear_head_of
from prunesearch.models.guard import guarded
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import architecture_of, blocks_of, input_device, returned
from prunesearch.runtime.patching import replaced

HEAD_ROWS = {"cpu": 128, "cuda": 1024}
"""Rows that the vocabulary head computes at a time, by device.

With fewer rows, reading its weights takes longer than multiplying. With more rows, the logits leave
the cache before they are used. On 2 CPU cores, 22,850 rows took 2.0 s in blocks of 128, 2.8 s in
blocks of 64 and 2.7 s in blocks of 512.
"""
_CHECKED_ROWS = 3
_NO_BLOCKS = "prunesearch_no_blocks"


def code_of(module: nn.Module) -> AbstractContextManager[None]:
    """Return a guard that turns failures of a model's own code into `ScoringError`.

    Examples: code for another version of transformers, a missing setting. A lack of memory on a GPU
    passes as it is, because fewer candidates may fit.
    """
    return guarded(
        f"{type(module).__name__} cannot compute",
        kind=ScoringError,
        passes=(torch.OutOfMemoryError,),
    )


@dataclass
class _Finished(MoeModelOutputWithPast):
    """A base-model output with every attribute that a CausalLM wrapper might read."""

    cross_attentions: None = None
    cache_params: None = None
    shared_kv_states: None = None


class Head:
    """Reads states after the last block: final norm, vocabulary head and changes of the logits.

    The model's own wrapper computes them. Where a check on a few rows shows that the module of the
    norm or of the head gives the same to the bit, that module is called directly.

    Args:
        model: the model. Its modules must not be replaced afterwards.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._trunk = trunk_of(model)
        # The module of the final norm by type and device of the states; None if there is none.
        self._norms: dict[tuple[torch.dtype, torch.device], nn.Module | None] = {}

    def code(self) -> AbstractContextManager[None]:
        """Return a guard that turns failures of the model's code into `ScoringError`."""
        return code_of(self._model)

    @functools.cached_property
    def linear(self) -> LinearHead | None:
        """The vocabulary head as a linear map; None if it is not linear."""
        try:
            with self.code():
                return linear_head_of(self._model, self._own_logits)
        except ScoringError:
            # The model's code refuses the rows of the check, or fails on all rows.
            return None

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the weight, bias and scale of a linear head."""
        assert self.linear is not None
        return self.linear.digest()

    @torch.inference_mode()
    def apply_final_norm(self, states_RE: torch.Tensor) -> torch.Tensor:
        """Apply what the model computes between its last block and the head to rows: shape (R,
        E).
        """
        kind = states_RE.dtype, states_RE.device
        if kind not in self._norms:
            self._norms[kind] = self._only_norm(states_RE[:_CHECKED_ROWS])
        norm = self._norms[kind]
        if norm is None:
            return self._own_final_norm(states_RE)
        with self.code():
            normed_1RE: torch.Tensor = norm(states_RE[None])
        return normed_1RE[0]

    def _only_norm(self, rows_RE: torch.Tensor) -> nn.Module | None:
        """Return the only module that runs between the last block and the head.

        Returns:
            The module, if it gives the trunk's output of some rows to the bit; else None.
        """
        found: list[tuple[nn.Module, torch.Tensor]] = []

        def note(module: nn.Module, _: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                found.append((module, output))

        # Note the outputs of the modules that are directly in the trunk.
        hooks = [module.register_forward_hook(note) for module in self._trunk.children()]
        try:
            own_RE = self._own_final_norm(rows_RE)
        finally:
            for hook in hooks:
                hook.remove()
        # The norm's output is the trunk's.
        for module, output in found:
            if output.data_ptr() != own_RE.data_ptr():
                continue
            with self.code():
                again = module(rows_RE[None])
            if isinstance(again, torch.Tensor) and torch.equal(again[0], own_RE):
                return module
        return None

    def _own_final_norm(self, states_RE: torch.Tensor) -> torch.Tensor:
        """Run the model's trunk, whose blocks return the given states."""
        device, answer = input_device(self._model), returned(self._model, states_RE[None])
        with ExitStack() as stack:
            # Every block returns the given states, whatever its input.
            for block in blocks_of(self._model):
                stack.enter_context(replaced(block, "forward", lambda *_, **__: answer))
            stack.enter_context(no_masks(self._model.config))
            stack.enter_context(self.code())
            nothing_1R = torch.zeros(1, len(states_RE), dtype=torch.int64, device=device)
            finished: torch.Tensor = self._trunk(
                input_ids=nothing_1R, position_ids=nothing_1R, use_cache=False
            ).last_hidden_state
        return finished[0]

    @torch.inference_mode()
    def logits(self, normed_RE: torch.Tensor) -> torch.Tensor:
        """Return the logits of rows that `apply_final_norm` returned, shape (R, V)."""
        linear = self.linear
        if linear is None or linear.convert is None or linear.weight_VE.dtype != normed_RE.dtype:
            return self._own_logits(normed_RE)
        with self.code():
            logits_RV: torch.Tensor = linear.convert(linear.module(normed_RE))
        return logits_RV

    def _own_logits(self, normed_RE: torch.Tensor) -> torch.Tensor:
        """Run the model's wrapper, whose trunk returns the given rows."""
        answer = _Finished(last_hidden_state=normed_RE[None])
        ids_1R = torch.zeros(1, len(normed_RE), dtype=torch.int64, device=normed_RE.device)
        with replaced(self._trunk, "forward", lambda *_, **__: answer), self.code():
            logits: torch.Tensor = self._model(input_ids=ids_1R, use_cache=False).logits
        return logits[0]


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """Return the base model: the module that contains the embeddings, the blocks and the final
    norm.
    """
    return model.get_submodule(architecture_of(model.config).blocks.rpartition(".")[0])


def no_masks(config: PretrainedConfig) -> AbstractContextManager[None]:
    """Return a context in which the model makes no attention masks, for passes that run no
    block.
    """
    return attention_as(settings_of(config), _NO_BLOCKS)


def _unread_mask(*_: object, **__: object) -> torch.Tensor:
    """Return a dummy mask that no block reads.

    It is a tensor because some models convert the mask before they call a block.
    """
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool)


AttentionMaskInterface.register(_NO_BLOCKS, _unread_mask)
