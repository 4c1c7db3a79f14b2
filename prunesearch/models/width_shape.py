"""The parts of a model's blocks that can be removed one by one, and the modules that hold them.

The modules are found by their names and checked by their shapes. An attention or an MLP with
anything that does not belong to a channel, to a KV group or to the whole is not narrowed. Neither
is one that shares a weight with another part of the model.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from prunesearch.errors import ModelError
from prunesearch.models.experts import NarrowableExperts, experts_of
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import architecture_of, blocks_of, parts_of
from prunesearch.widths.shape import WidthShape

_QKV = ("q_proj", "k_proj", "v_proj")
_ATTENTION_OUT = ("o_proj", "out_proj", "dense")
_MLP_IN = (
    ("gate_proj", "up_proj"), ("w1", "w3"), ("up_proj",), ("fc1",), ("fc_in",), ("c_fc",),
    ("dense_h_to_4h",),
)  # fmt: skip
_MLP_OUT = ("down_proj", "w2", "fc2", "fc_out", "c_proj", "dense_4h_to_h")
_FIXED_HEADS = frozenset({"gptj", "opt", "stablelm", "xglm"})
"""Types whose attention divides its rows by the number of heads in the config."""


@dataclass(frozen=True)
class NarrowableMlp:
    """The projections of an MLP.

    Attributes:
        inputs: projections with one row for each channel.
        output: projection with one column for each channel.
    """

    inputs: tuple[nn.Linear, ...]
    output: nn.Linear

    @property
    def channels(self) -> int:
        """Number of channels now."""
        return self.output.in_features

    @property
    def channel_weights(self) -> int:
        """Number of weights of one channel."""
        return self.output.out_features + sum(module.in_features for module in self.inputs)

    @property
    def channel_params(self) -> int:
        """Number of weights and biases of one channel."""
        biases = sum(module.bias is not None for module in self.inputs)
        return self.channel_weights + biases


@dataclass(frozen=True)
class NarrowableAttention:
    """The projections of an attention.

    Attributes:
        query, key, value: projections with rows for each head.
        output: projection with columns for each query head.
        head_dim: size of a head.
        heads_per_group: number of query heads of a KV group.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    head_dim: int
    heads_per_group: int

    @property
    def groups(self) -> int:
        """Number of KV groups now."""
        return self.key.out_features // self.head_dim

    @property
    def query_rows(self) -> int:
        """Number of rows of the query projection, and of columns of the output, of one group."""
        return self.head_dim * self.heads_per_group

    @property
    def group_weights(self) -> int:
        """Number of weights of one group."""
        inputs = self.query_rows * self.query.in_features
        inputs += self.head_dim * (self.key.in_features + self.value.in_features)
        return inputs + self.query_rows * self.output.out_features

    @property
    def group_params(self) -> int:
        """Number of weights and biases of one group."""
        count = self.group_weights
        for module, rows in (
            (self.query, self.query_rows),
            (self.key, self.head_dim),
            (self.value, self.head_dim),
        ):
            if module.bias is not None:
                count += rows
        return count


BlockParts = tuple[NarrowableMlp | NarrowableExperts | None, NarrowableAttention | None]
"""The MLP (or the experts) and the attention of a block; None for one that cannot be narrowed."""


def block_parts(model: PreTrainedModel, block: nn.Module) -> BlockParts:
    """Return the parts of a block that can be narrowed."""
    return mlp_of(model, block) or experts_of(model, block), attention_of(model, block)


def mlp_of(model: PreTrainedModel, block: nn.Module) -> NarrowableMlp | None:
    """Return the projections of a block's MLP; None if it cannot be narrowed."""
    sublayer = architecture_of(model.config).mlp
    if sublayer is None:
        return None
    for module in parts_of(block, sublayer.modules):
        for names in _MLP_IN:
            inputs = _linears(module, names)
            output = _first_linear(module, _MLP_OUT)
            if len(inputs) != len(names) or output is None:
                continue
            alike = all(each.out_features == output.in_features for each in inputs)
            if alike and _holds_only(module, (*inputs, output)) and not _shares(model, module):
                return NarrowableMlp(tuple(inputs), output)
    return None


def attention_of(model: PreTrainedModel, block: nn.Module) -> NarrowableAttention | None:
    """Return the projections of a block's attention; None if it cannot be narrowed."""
    sublayer = architecture_of(model.config).attention
    if sublayer is None or model.config.model_type in _FIXED_HEADS:
        return None
    for module in parts_of(block, sublayer.modules):
        projections, output = _linears(module, _QKV), _first_linear(module, _ATTENTION_OUT)
        head_dim = getattr(module, "head_dim", None)
        if len(projections) != 3 or output is None or not isinstance(head_dim, int):
            continue
        query, key, value = projections
        groups, rest = divmod(key.out_features, head_dim)
        heads, other = divmod(query.out_features, head_dim)
        alike = value.out_features == key.out_features
        alike = alike and output.in_features == query.out_features
        if rest or other or not alike or not groups or heads % groups:
            continue
        # A norm of one head is shared by all. A norm of all heads together is not.
        own = (query, key, value, output)
        if _holds_only(module, own, head_dim) and not _shares(model, module):
            return NarrowableAttention(query, key, value, output, head_dim, heads // groups)
    return None


def width_shape_of(model: PreTrainedModel) -> WidthShape:
    """Return what can be removed of each block. The model may be on the meta device.

    Raises:
        ModelError: no block has a part that can be removed.
    """
    mlps: list[tuple[int, int, int]] = []
    attentions: list[tuple[int, int, int]] = []
    top_k: list[int] = []
    for block in blocks_of(model):
        mlp, attention = block_parts(model, block)
        top_k.append(mlp.top_k if isinstance(mlp, NarrowableExperts) else 0)
        counts = (0, 0, 0)
        if mlp is not None:
            counts = mlp.channels, mlp.channel_params, mlp.channel_weights
        mlps.append(counts)
        counts = (0, 0, 0)
        if attention is not None:
            counts = attention.groups, attention.group_params, attention.group_weights
        attentions.append(counts)
    channels, channel_params, channel_weights = zip(*mlps, strict=True)
    groups, group_params, group_weights = zip(*attentions, strict=True)
    if not any(channels) and not any(groups):
        raise ModelError(
            f"the layers of {model.config.model_type!r} models cannot be narrowed: their "
            "projections are not the ones that this version knows; drop whole blocks instead"
        )
    return WidthShape(
        channels,
        groups,
        channel_params,
        group_params,
        channel_weights,
        group_weights,
        settings_of(model.config).hidden_size,
        tuple(top_k) if any(top_k) else (),
    )


def _linears(module: nn.Module, names: Sequence[str]) -> list[nn.Linear]:
    """Return those of the named modules that are linear layers."""
    found = []
    for name in names:
        part = getattr(module, name, None)
        if type(part) is nn.Linear:
            found.append(part)
    return found


def _first_linear(module: nn.Module, names: Sequence[str]) -> nn.Linear | None:
    """Return the first of the named modules that is a linear layer."""
    found = _linears(module, names)
    if not found:
        return None
    return found[0]


def _holds_only(module: nn.Module, known: Sequence[nn.Linear], norm_size: int = 0) -> bool:
    """Return whether a module has no parameters but those of known layers, and norms of a size."""
    ids: set[int] = set()
    for layer in known:
        ids.update(id(parameter) for parameter in layer.parameters())
    for name, parameter in module.named_parameters():
        if id(parameter) in ids:
            continue
        # Sinks of attention have one number a head, and there may be as many as a head has numbers.
        if "norm" not in name or tuple(parameter.shape) != (norm_size,):
            return False
    return True


def _shares(model: PreTrainedModel, module: nn.Module) -> bool:
    """Return whether a module shares a weight with another part of the model."""
    uses = Counter(_place(p) for _, p in model.named_parameters(remove_duplicate=False))
    return any(uses[_place(parameter)] > 1 for parameter in module.parameters())


def _place(parameter: torch.Tensor) -> object:
    """Return what two parameters with the same weights have in common."""
    # Weights on the meta device have no address, so they are told apart as objects.
    if parameter.is_meta or not parameter.numel():
        return id(parameter)
    return parameter.device, parameter.data_ptr()
