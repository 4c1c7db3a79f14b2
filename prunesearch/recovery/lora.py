"""LoRA adapters on a pruned model: add them, merge them into the weights, remove them.

Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, eq. 3:
W x + (alpha / rank) B A x, with B = 0 at the start, so that training begins at the pruned model.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, set_seed

from prunesearch.candidate import LayerSubset
from prunesearch.compat.peft import SAFETENSORS_WEIGHTS_NAME, names_as_given
from prunesearch.compat.transformers import Conv1D
from prunesearch.config.recovery import ALL_LINEAR, HealRecipe
from prunesearch.errors import (
    InputError,
    StorageError,
    VerificationError,
    one_line,
)
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import architecture_of, blocks_of

_NARROW = (torch.bfloat16, torch.float16)
# Largest mean KL from the adapted to the merged model, in nats per token. Merging rounds each
# weight once more. In bfloat16 this KL was .003 for SmolLM2-135M, where a logit changed by 3.9.
_TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 2e-2}
# Without many of its blocks a model is sensitive: this KL was .08 for SmolLM2-135M, where training
# itself changed the predictions by .8 nats or more. So merging may lose this share of the change.
_SHARE = {torch.float32: 0.0, torch.float16: 0.05, torch.bfloat16: 0.1}


def target_names(model: PreTrainedModel, wanted: str) -> list[str]:
    """Return the full names of the linear layers that get an adapter, in order.

    Args:
        model: the pruned model.
        wanted: ``all-linear``, or names separated by commas. A name is the name of a layer, or the
            end of its path in the block.

    Raises:
        InputError: a name matches no linear layer of the blocks.
    """
    # Find all linear layers of the blocks.
    found: list[tuple[int, str]] = []
    for index, block in enumerate(blocks_of(model)):
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                found.append((index, name))
    # Each name must match at least one of them.
    every = wanted.strip() == ALL_LINEAR
    words = [] if every else [word.strip() for word in wanted.split(",")]
    for word in words:
        if word != ALL_LINEAR and not any(_ends(name, word) for _, name in found):
            last_names = dict.fromkeys(name.rpartition(".")[2] for _, name in found)
            known = ", ".join(last_names) or "none"
            raise InputError(
                f"target module {word!r} matches no linear layer of the blocks; there are {known}"
            )
    if not found:
        raise InputError("the blocks have no linear layers that LoRA could adapt")
    path = architecture_of(model.config).blocks
    names = []
    for index, name in found:
        if every or any(_ends(name, word) for word in words):
            names.append(f"{path}.{index}.{name}")
    return names


def _ends(name: str, word: str) -> bool:
    """Return whether a dotted name ends with a word, in whole parts."""
    return f".{name}".endswith(f".{word}")


@dataclass
class Adapter:
    """An adapter on a model.

    Attributes:
        model: the model with the adapter.
        merged: True if the product B A was added to the weights.
    """

    model: PeftModel
    merged: bool = False

    def read(self, folder: Path) -> None:
        """Read the weights of the adapter from a checkpoint.

        Raises:
            StorageError: the file is damaged, or belongs to another model.
        """
        try:
            weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
            set_peft_model_state_dict(self.model, weights)
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            raise StorageError(
                f"the adapter in {str(folder)!r} is damaged or another model's "
                f"({one_line(error)}): delete it"
            ) from None

    def reset(self) -> None:
        """Set A and B to zero, so that the adapted model equals the pruned one.

        A is set to zero as well, because it may hold NaN.
        """
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def merge(self, ids_BL: torch.Tensor) -> float:
        """Merge the adapter into the weights, and check that the predictions stay the same.

        Args:
            ids_BL: token ids that the logits are compared on.

        Returns:
            Largest absolute difference of a logit.

        Raises:
            InputError: the adapter is merged already.
            VerificationError: the predictions differ by more than rounding. The adapter is taken
                out of the weights again, which leaves their rounding.
        """
        if self.merged:
            raise InputError(
                "the adapter is merged already: a second time its product would count twice"
            )
        adapted_BLV = self._logits(ids_BL)
        with self.model.disable_adapter():
            changed = _kl(adapted_BLV, self._logits(ids_BL))
        self.model.merge_adapter()
        merged_BLV = self._logits(ids_BL)
        kl = _kl(adapted_BLV, merged_BLV)
        dtype = next(self.model.parameters()).dtype
        allowed = max(_TOLERANCE[dtype], _SHARE[dtype] * changed)
        # This form of the test also fails for NaN.
        if not kl <= allowed:
            self.model.unmerge_adapter()
            raise VerificationError(
                f"merging the adapter changes the predictions by {kl:.3g} nats per token (KL), "
                f"allowed {allowed:.3g}: load the model in float32 (`dtype`)"
            )
        self.merged = True
        return float((merged_BLV - adapted_BLV).abs().max())

    def _logits(self, ids_BL: torch.Tensor) -> torch.Tensor:
        self.model.eval()
        device = next(self.model.parameters()).device
        # The Trainer leaves an autocast on the forward method of the wrapping model.
        bare = self.model.base_model
        logits: torch.Tensor = bare(input_ids=ids_BL.to(device), use_cache=False).logits
        return logits.float()


def _kl(first_BLV: torch.Tensor, second_BLV: torch.Tensor) -> float:
    """Return the mean KL from the predictions of some logits to those of others, in nats."""
    return float(
        nn.functional.kl_div(
            second_BLV.log_softmax(-1).flatten(0, 1),
            first_BLV.log_softmax(-1).flatten(0, 1),
            reduction="batchmean",
            log_target=True,
        )
    )


@contextmanager
def adapted(model: PreTrainedModel, recipe: HealRecipe) -> Iterator[Adapter]:
    """Add a new adapter to `model` inside the ``with`` block.

    The adapter is removed at the end. If it was merged, its product stays in the weights.

    Args:
        model: the pruned model.
        recipe: recipe with the settings of the adapter.

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
    # A is drawn at random.
    set_seed(recipe.seed)
    with (
        warnings.catch_warnings(),
        names_as_given(),  # they are those of the model itself
    ):
        # The warnings are about names that transformers will drop, and about transposed layers.
        warnings.simplefilter("ignore")
        adapter = Adapter(get_peft_model(model, settings))
    # With a name, each checkpoint would look for the config of the base model on the hub.
    settings.base_model_name_or_path = None
    try:
        yield adapter
    finally:
        adapter.model.unload()
        for parameter, needed in needs_gradient.items():
            parameter.requires_grad_(needed)


@contextmanager
def wide_weights(model: PreTrainedModel, wide: bool) -> Iterator[None]:
    """Hold 16-bit weights as float32 inside the ``with`` block, and round them at its end.

    Weights that did not change are restored exactly.

    Args:
        model: the model.
        wide: False does nothing.
    """
    tensors: list[torch.Tensor] = []
    if wide:
        everything = (*model.parameters(), *model.buffers())
        tensors = [tensor for tensor in everything if tensor.dtype in _NARROW]
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
    loaded: LoadedModel, candidates: Sequence[LayerSubset], wanted: str = ALL_LINEAR
) -> Iterator[None]:
    """Restore the weights of the model at the end of the ``with`` block, after any healing inside.

    Args:
        loaded: the dense model.
        candidates: candidates that will be healed. The blocks that any of them keeps are cloned.
        wanted: target modules of the recipe. No other weight is cloned.

    Raises:
        InputError: the target modules match nothing.
    """
    model = loaded.model
    path = architecture_of(model.config).blocks
    # Collect the name prefixes of the kept blocks. str.startswith takes a tuple of them.
    prefixes: set[str] = set()
    for candidate in candidates:
        prefixes.update(f"{path}.{index}." for index in candidate.kept)
    names = [name for name in target_names(model, wanted) if name.startswith(tuple(prefixes))]
    weights: list[Any] = [model.get_submodule(name).weight for name in names]
    clones = [weight.detach().clone() for weight in weights]
    try:
        with loaded.weights.restored():
            yield
    finally:
        with torch.no_grad():
            for weight, clone in zip(weights, clones, strict=True):
                weight.copy_(clone)
