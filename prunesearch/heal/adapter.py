"""LoRA adapters on a pruned model: put on, merged into the weights, taken off without a trace.

Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, eq. 3: W x + (alpha / rank) B A x, with B = 0 at
the start, so that training begins at the pruned model.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, StorageError, VerificationError, one_line
from prunesearch.heal.recipe import ALL_LINEAR, HealRecipe
from prunesearch.model.anatomy import blocks_of, family_of

# peft takes names such as `gate_proj` in a model with experts for those of an older transformers, in which each expert
# had its own, and would adapt the fused experts instead; our names are the model's own.
_RENAMING = "peft.utils.transformers_weight_conversion.convert_peft_config_for_transformers"
_NARROW = (torch.bfloat16, torch.float16)
# Largest difference of a logit by which merging may show, as a share of the largest logit: one more rounding.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def target_names(model: PreTrainedModel, wanted: str) -> list[str]:
    """The full names of the linear layers that get an adapter, in order.

    Args:
        wanted: ``all-linear``, or names with commas; a name is a layer's own, or ends its path in the block.

    Raises:
        InputError: a name matches no linear layer of the blocks.
    """
    found = [
        (index, name)
        for index, block in enumerate(blocks_of(model))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    words = [ALL_LINEAR] if wanted.strip() == ALL_LINEAR else [word.strip() for word in wanted.split(",")]
    for word in words:
        if word != ALL_LINEAR and not any(_ends(name, word) for _, name in found):
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for _, name in found)) or "none"
            raise InputError(f"target module {word!r} matches no linear layer of the blocks; there are {known}")
    if not found:
        raise InputError("the blocks have no linear layers that LoRA could adapt")
    path = family_of(model.config).blocks
    return [f"{path}.{i}.{name}" for i, name in found if words == [ALL_LINEAR] or any(_ends(name, w) for w in words)]


def _ends(name: str, word: str) -> bool:
    return f".{name}".endswith(f".{word}")


@dataclass
class Adapter:
    """An adapter on a model.

    Attributes:
        model: the model with it.
        merged: its product is in the weights.
    """

    model: PeftModel
    merged: bool = False

    def read(self, folder: Path) -> None:
        """Take the adapter's weights from a checkpoint.

        Raises:
            StorageError: they are damaged, or another model's.
        """
        try:
            weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
            set_peft_model_state_dict(self.model, weights)
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            raise StorageError(
                f"the adapter in {str(folder)!r} is damaged or another model's ({one_line(error)}): delete it"
            ) from None

    def reset(self) -> None:
        """Make the adapted model the pruned one: B = 0, and A too, as it may hold what is no number."""
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def merge(self, ids_BL: torch.Tensor) -> float:
        """Add the adapter's product to the weights, and see that the logits are those of the adapted model.

        Args:
            ids_BL: what is compared on.

        Returns:
            Largest absolute difference of a logit.

        Raises:
            InputError: it is merged already.
            VerificationError: the logits differ by more than rounding; the weights are as before.
        """
        if self.merged:
            raise InputError("the adapter is merged already: a second time its product would count twice")
        adapted = self._logits(ids_BL)
        self.model.merge_adapter()
        difference = float((self._logits(ids_BL) - adapted).abs().max())
        allowed = _TOLERANCE[next(self.model.parameters()).dtype] * float(adapted.abs().max())
        if not difference <= allowed:  # also where it is no number
            self.model.unmerge_adapter()
            raise VerificationError(f"merging the adapter changes logits by {difference:.3g}, allowed {allowed:.3g}")
        self.merged = True
        return difference

    def _logits(self, ids_BL: torch.Tensor) -> torch.Tensor:
        self.model.eval()
        device = next(self.model.parameters()).device
        bare = self.model.base_model  # the Trainer leaves an autocast on the forward of the model round it
        logits: torch.Tensor = bare(input_ids=ids_BL.to(device), use_cache=False).logits
        return logits.float()


@contextmanager
def adapted(model: PreTrainedModel, recipe: HealRecipe) -> Iterator[Adapter]:
    """A fresh adapter on `model` inside the ``with`` block; behind it only what was merged is left.

    Raises:
        InputError: the target modules match nothing.
    """
    needs_gradient = {parameter: parameter.requires_grad for parameter in model.parameters()}
    settings = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # a float works and is saved as one
        lora_dropout=recipe.dropout,
        target_modules=target_names(model, recipe.target_modules),
        task_type="CAUSAL_LM",
    )
    set_seed(recipe.seed)  # A is drawn at random
    with warnings.catch_warnings(), mock.patch(_RENAMING, lambda *args, **kwargs: None):
        warnings.simplefilter("ignore")  # on names that transformers will drop, and on transposed layers
        adapter = Adapter(get_peft_model(model, settings))
    settings.base_model_name_or_path = None  # or each checkpoint would look for the base model's config on a hub
    try:
        yield adapter
    finally:
        adapter.model.unload()
        for parameter, needed in needs_gradient.items():
            parameter.requires_grad_(needed)


@contextmanager
def wide_weights(model: PreTrainedModel, wide: bool) -> Iterator[None]:
    """16-bit weights as float32 inside the ``with`` block, rounded behind it; what did not change comes back equal.

    Args:
        wide: false does nothing.
    """
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in _NARROW] if wide else []
    before = [tensor.dtype for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in zip(tensors, before, strict=True):
            tensor.data = tensor.data.to(dtype)


@contextmanager
def weights_restored(
    model: PreTrainedModel, candidates: Sequence[LayerSubset], wanted: str = ALL_LINEAR
) -> Iterator[None]:
    """Give the model its weights back behind the ``with`` block, whatever was healed inside.

    Args:
        candidates: what will be healed: the blocks that any of them keeps are cloned.
        wanted: the target modules of the recipe; no other weight is cloned.

    Raises:
        InputError: the target modules match nothing.
    """
    path = family_of(model.config).blocks
    kept = {f"{path}.{i}" for candidate in candidates for i in candidate.kept}
    names = [n for n in target_names(model, wanted) if any(n.startswith(f"{block}.") for block in kept)]
    weights: list[Any] = [model.get_submodule(name).weight for name in names]
    clones = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, clone in zip(weights, clones, strict=True):
                weight.copy_(clone)
