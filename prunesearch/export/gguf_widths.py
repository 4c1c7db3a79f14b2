"""GGUF files with layers of different widths.

llama.cpp's Llama and Qwen have one width for all layers. Its DeciLM is the same model with the
sizes of each layer in arrays, with a place for a bias of each projection, and for layers without
attention or MLP. So narrow Llama, Mistral and Qwen2 models are written as DeciLM.
"""

import gguf
from torch import nn
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.models.structure import architecture_of, blocks_of, parts_of
from prunesearch.models.width_shape import attention_of, mlp_of
from prunesearch.widths.layer_widths import LayerWidths

ARCHITECTURE = gguf.MODEL_ARCH.DECI
_TYPES = ("llama", "mistral", "qwen2")


def check(model: PreTrainedModel, candidate: LayerSubset) -> None:
    """Refuse a candidate that llama.cpp's DeciLM cannot compute.

    Raises:
        InputError: see above.
    """
    kind = model.config.model_type
    if kind not in _TYPES:
        raise InputError(
            f"llama.cpp has one width for all layers of {kind} models, and {candidate.text} "
            f"narrows some: narrow {', '.join(_TYPES)} models are written as its DeciLM, which "
            "does not compute what others do; export a checkpoint with `export_format` widths"
        )
    first = candidate.kept[0]
    if first in candidate.attention:
        raise InputError(
            f"llama.cpp takes the size of a head from the first layer, and layer {first} has no "
            f"attention: `protect` it, or export a checkpoint"
        )


def add_sizes(writer: gguf.GGUFWriter, model: PreTrainedModel, candidate: LayerWidths) -> None:
    """Write the sizes of each layer. A sublayer that is gone has the size 0.

    Args:
        writer: writer of the file.
        model: candidate, in memory.
        candidate: the same.
    """
    channels: list[int] = []
    groups: list[int] = []
    heads: list[int] = []
    for index, block in zip(candidate.kept, blocks_of(model), strict=True):
        mlp, attention = mlp_of(model, block), attention_of(model, block)
        use = candidate.use(index)
        assert mlp is not None and attention is not None and use is not None
        channels.append(mlp.channels if use.mlp else 0)
        groups.append(attention.groups if use.attention else 0)
        heads.append(groups[-1] * attention.heads_per_group)
    writer.add_feed_forward_length(channels)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)


def gone_parameters(model: PreTrainedModel, candidate: LayerWidths) -> frozenset[str]:
    """Return the parameters of sublayers that are gone, with those of the norms before them.

    Args:
        model: candidate, in memory.
        candidate: the same.
    """
    architecture = architecture_of(model.config)
    gone: set[str] = set()
    for number, (index, block) in enumerate(zip(candidate.kept, blocks_of(model), strict=True)):
        use = candidate.use(index)
        assert use is not None
        for sublayer, stays in (
            (architecture.attention, use.attention),
            (architecture.mlp, use.mlp),
        ):
            if stays or sublayer is None:
                continue
            for part in sublayer.parts:
                for module in parts_of(block, (part,)):
                    gone |= _names(module, f"{architecture.blocks}.{number}.{part}")
    return frozenset(gone)


def _names(module: nn.Module, path: str) -> set[str]:
    """Return the names of the parameters of a module."""
    return {f"{path}.{name}" for name, _ in module.named_parameters()}
