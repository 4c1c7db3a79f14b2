"""Protection of models and tokenizers that are passed to another library.

lm-eval ties weights that a checkpoint stores separately, and it adds a padding token. peft and
transformers' Trainer set fields of the config. A score is stored under the digest of the loaded
weights, so no change may go unnoticed. Settings are restored, and a changed weight is an error.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunesearch.errors import RunError
from prunesearch.models.guard import guarded
from prunesearch.runtime.json_values import JsonObject, as_object
from prunesearch.runtime.patching import replaced
from prunesearch.units import noun_for

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def unchanged_by(library: str, model: PreTrainedModel, *, trains: bool = False) -> Iterator[None]:
    """Protect a model that a library uses inside the ``with`` block.

    The settings of the model (configs, training mode, hooks, attributes) are restored afterwards.
    Weights cannot be tied inside the block. The weights are compared by their addresses and by the
    number of times they were written to, which costs next to nothing. Offloaded and streamed
    weights have no address and are not compared.

    Args:
        library: name of the library, for the message.
        model: model that the library uses.
        trains: True if the library may change values. Then only the names of the weights and their
            ties are compared, because a head that is stored separately must stay separate.

    Raises:
        RunError: the library changed a weight.
    """
    # Note the state of the model.
    attributes = set(vars(model))
    configs = _saved_configs(model)
    modes = {module: module.training for module in model.modules()}
    hooks: dict[tuple[torch.nn.Module, str], set[int]] = {}
    for module in modes:
        for kind in _HOOKS:
            hooks[module, kind] = set(getattr(module, kind))
    before = _ties(model) if trains else _places(model)
    try:
        with replaced(model, "tie_weights", lambda *args, **kwargs: None):
            yield
    finally:
        # Restore the settings.
        for config in configs:
            config.restore()
        for module, training in modes.items():
            module.training = training
        for (module, kind), known in hooks.items():
            now = getattr(module, kind)
            for added in set(now) - known:
                del now[added]
        for name in set(vars(model)) - attributes:
            delattr(model, name)
        # Compare the weights.
        after = _ties(model) if trains else _places(model)
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        if changed:
            weights = noun_for(
                len(changed), "weight of the model, ", "weights of the model, the first is "
            )
            raise RunError(
                f"{library} changed {len(changed)} {weights}{changed[0]}, so that any "
                f"score would be of another model: use a version of {library} that is known to "
                f"work"
            )


def tokenizer_copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer for a library that adds tokens, or that sets padding and
    truncation.

    Raises:
        ModelError: the tokenizer cannot be copied.
    """
    advice = "save it with transformers as a fast tokenizer, and use that"
    with guarded(f"the tokenizer ({type(tokenizer).__name__}) cannot be copied", advice=advice):
        return copy.deepcopy(tokenizer)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Compute a digest of everything that decides how a tokenizer turns text into ids and ids into
    text.
    """
    facts: JsonObject = {
        "special": tokenizer.all_special_ids,
        "cleaned": getattr(tokenizer, "clean_up_tokenization_spaces", None),
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # A tokenizer that is written in Python has no description of its rules.
        facts |= {
            "class": type(tokenizer).__name__,
            "words": tokenizer.get_vocab(),
            "settings": tokenizer.init_kwargs,
        }
    else:
        rules = as_object(json.loads(backend.to_str()), "tokenizer.json")
        # The latest call leaves its settings in the tokenizer.
        for passing in ("padding", "truncation"):
            rules.pop(passing, None)
        facts["rules"] = rules
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and stored buffers, each under every name that it has."""
    yield from model.named_parameters(remove_duplicate=False)
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", buffer


def _places(model: PreTrainedModel) -> dict[str, tuple[Any, ...]]:
    """Return the address of each weight, and the number of times it was written to."""
    location: dict[str, tuple[Any, ...]] = {}
    for name, tensor in _weights(model):
        kind = tensor.dtype, tuple(tensor.shape)
        # An offloaded or streamed weight has no address.
        if tensor.is_meta:
            location[name] = kind
            continue
        written = None if tensor.is_inference() else tensor._version
        location[name] = (*kind, tensor.device, tensor.data_ptr(), written)
    return location


def _ties(model: PreTrainedModel) -> dict[str, tuple[Any, ...]]:
    """Return the dtype and the shape of each weight, and the first name of the tensor that it is
    tied to.
    """
    first: dict[Any, str] = {}
    ties: dict[str, tuple[Any, ...]] = {}
    for name, tensor in _weights(model):
        # Tied weights have the same address. Tensors without an address are told apart as objects.
        place: Any = id(tensor)
        if tensor.numel() and not tensor.is_meta:
            place = (tensor.device, tensor.data_ptr())
        ties[name] = tensor.dtype, tuple(tensor.shape), first.setdefault(place, name)
    return ties


class _SavedConfig:
    """A config and a copy of its content.

    Modules keep references to the config, so its content is restored and not the object. Configs
    inside it are saved separately.

    Args:
        config: config to save.
    """

    def __init__(self, config: object) -> None:
        self._config = config
        self.inner: list[PretrainedConfig] = []
        copied = {}
        for name, value in vars(config).items():
            if isinstance(value, PretrainedConfig):
                self.inner.append(value)
            shared = isinstance(value, PretrainedConfig | torch.nn.Module)
            copied[name] = value if shared else copy.deepcopy(value)
        self._content = copied

    def restore(self) -> None:
        """Give the config its content again."""
        vars(self._config).clear()
        vars(self._config).update(self._content)


def _saved_configs(model: PreTrainedModel) -> list[_SavedConfig]:
    """Save the model's config, the configs inside it and the one for generation."""
    saved: list[_SavedConfig] = []
    left: list[PretrainedConfig] = [model.config]
    while left:
        saved.append(_SavedConfig(left.pop()))
        left += saved[-1].inner
    if getattr(model, "generation_config", None) is not None:
        saved.append(_SavedConfig(model.generation_config))
    return saved
