"""Random channel orders of tiny models, candidates that narrow them, and exports of these."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from prunesearch.layer_widths import LayerWidths
from prunesearch.models import narrowing
from prunesearch.models.channel_order import ChannelOrder
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.structure import blocks_of
from prunesearch.models.width_shape import attention_of, width_shape_of
from tests.support.models import byte_tokenizer, tiny


def random_order(model: PreTrainedModel, biases: bool = False, seed: int = 1) -> ChannelOrder:
    """An order of the channels and groups of a model, with means if a bias is to be added."""
    generator = torch.Generator().manual_seed(seed)
    shape = width_shape_of(model)
    columns = []
    for block in blocks_of(model):
        attention = attention_of(model, block)
        columns.append(0 if attention is None else attention.output.in_features)
    means = column_means = None
    if biases:
        means = tuple(torch.randn(count, generator=generator) for count in shape.channels)
        column_means = tuple(torch.randn(count, generator=generator) for count in columns)
    return ChannelOrder(
        "flap" if biases else "magnitude",
        tuple(torch.randperm(count, generator=generator) for count in shape.channels),
        tuple(torch.randperm(count, generator=generator) for count in shape.groups),
        means,
        column_means,
    )


def narrow_model(
    architecture: str, folder: Path, biases: bool = False, dtype: str = "auto"
) -> tuple[LoadedModel, LayerWidths]:
    """A tiny model of six blocks in a random channel order, and a candidate: block 1 loses
    channels, block 2 a KV group, block 3 both, block 4 is dropped and block 5 has no attention.
    """
    model = tiny(architecture)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    loaded = load(str(folder), device="cpu", dtype=dtype)
    order = random_order(loaded.model, biases)
    narrowing.reorder(loaded.model, order)
    shape = width_shape_of(loaded.model)
    text = "1:30/2,2:64/1,3:17/1,4,5:50/0"
    return loaded, LayerWidths.read(text, shape, order.digest, biases)
