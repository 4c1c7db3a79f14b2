"""Models and tokenizers that are handed to another library come back as they were, or it is an error.

lm-eval ties weights that a checkpoint stores apart and adds a padding token; peft and transformers' Trainer set fields
of the config. A score is stored under the digest of the weights that were loaded, so no change may go unnoticed.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunesearch.errors import RunError
from prunesearch.model.guard import guarded

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def unchanged_by(library: str, model: PreTrainedModel, *, trains: bool = False) -> Iterator[None]:
    """Hand a model to a library inside the ``with`` block.

    Its settings (configs, training mode, hooks, attributes) are put back afterwards, and weights cannot be tied
    meanwhile. The weights themselves are compared by where they lie and how often they were written to, which costs
    next to nothing; what is offloaded or streamed has no place of its own and is not compared.

    Args:
        library: its name, for the message.
        trains: the library may change values. Then it is only compared which weights there are and which of them are
            one, since a head that is stored apart must stay apart.

    Raises:
        RunError: the library changed a weight.
    """
    attributes = set(vars(model))
    configs = _configs(model)
    modes = {module: module.training for module in model.modules()}
    hooks = [set(getattr(module, kind)) for module in modes for kind in _HOOKS]
    before = _ties(model) if trains else _places(model)
    try:
        with mock.patch.object(model, "tie_weights", lambda *args, **kwargs: None):
            yield
    finally:
        _restore_configs(configs)
        for module, training in modes.items():
            module.training = training
        every = iter(hooks)
        for module in modes:
            for kind in _HOOKS:
                known, now = next(every), getattr(module, kind)
                for added in set(now) - known:
                    del now[added]
        for name in set(vars(model)) - attributes:
            delattr(model, name)
        after = _ties(model) if trains else _places(model)
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        if changed:
            raise RunError(
                f"{library} changed {len(changed)} weight(s) of the model, the first is {changed[0]}, so that "
                f"any score would be of another model: use a version of {library} that is known to work"
            )


def tokenizer_copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer of its own for a library that adds tokens, or sets padding and truncation.

    Raises:
        ModelError: the tokenizer cannot be copied.
    """
    advice = "save it with transformers as a fast tokenizer, and use that"
    with guarded(f"the tokenizer ({type(tokenizer).__name__}) cannot be copied", advice=advice):
        return copy.deepcopy(tokenizer)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest all that decides how a tokenizer turns text into ids and ids into text."""
    facts: dict[str, Any] = {
        "special": tokenizer.all_special_ids,
        "cleaned": getattr(tokenizer, "clean_up_tokenization_spaces", None),
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # one in Python
        facts |= {"class": type(tokenizer).__name__, "words": tokenizer.get_vocab(), "settings": tokenizer.init_kwargs}
    else:
        facts["rules"] = json.loads(backend.to_str())
        for passing in ("padding", "truncation"):  # of the latest call
            facts["rules"].pop(passing, None)
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and the buffers that are stored, each under every name that it has."""
    yield from model.named_parameters(remove_duplicate=False)
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", buffer


def _places(model: PreTrainedModel) -> dict[str, tuple[Any, ...]]:
    """Where each weight lies, and how often it was written to."""
    places: dict[str, tuple[Any, ...]] = {}
    for name, tensor in _weights(model):
        kind = tensor.dtype, tuple(tensor.shape)
        if tensor.is_meta:
            places[name] = kind
            continue
        written = None if tensor.is_inference() else tensor._version
        places[name] = (*kind, tensor.device, tensor.data_ptr(), written)
    return places


def _ties(model: PreTrainedModel) -> dict[str, tuple[Any, ...]]:
    """Each weight's type and shape, and the first of those that it is one with."""
    first: dict[Any, str] = {}
    ties: dict[str, tuple[Any, ...]] = {}
    for name, tensor in _weights(model):
        place = id(tensor) if tensor.is_meta or not tensor.numel() else (tensor.device, tensor.data_ptr())
        ties[name] = tensor.dtype, tuple(tensor.shape), first.setdefault(place, name)
    return ties


def _configs(model: PreTrainedModel) -> list[tuple[Any, dict[str, Any]]]:
    """The model's config, those inside it and the one for generation, each with a copy of what it says.

    Modules hold on to these very objects, so their content is put back and not they themselves.
    """
    found: list[tuple[Any, dict[str, Any]]] = []
    left: list[Any] = [model.config]
    while left:
        config = left.pop()
        inner = {name: value for name, value in vars(config).items() if isinstance(value, PretrainedConfig)}
        left += inner.values()
        found.append((config, _copied(config, inner)))
    if getattr(model, "generation_config", None) is not None:
        found.append((model.generation_config, _copied(model.generation_config, {})))
    return found


def _copied(config: object, inner: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if name in inner or isinstance(value, torch.nn.Module) else copy.deepcopy(value)
        for name, value in vars(config).items()
    }


def _restore_configs(configs: list[tuple[Any, dict[str, Any]]]) -> None:
    for config, said in configs:
        vars(config).clear()
        vars(config).update(said)
