"""Tiny models in a random channel order, with candidates that narrow them."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from prunesearch.models import reordering
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.permuting import indices_of_groups
from prunesearch.models.structure import blocks_of
from prunesearch.models.width_shape import attention_of, mlp_of, width_shape_of
from prunesearch.widths.layer_widths import LayerWidths
from tests.support.models import byte_tokenizer, tiny
from tests.support.widths import order_for


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
    byte_tokenizer(("t", "h"), ("th", "e")).save_pretrained(folder)
    loaded = load(str(folder), device="cpu", dtype=dtype)
    order = order_for(loaded.model, biases)
    reordering.reorder(loaded.model, order)
    shape = width_shape_of(loaded.model)
    text = "1:30/2,2:64/1,3:17/1,4,5:50/0"
    return loaded, LayerWidths.read(text, shape, order.digest, biases)


@torch.no_grad()
def masked_logits(
    model: PreTrainedModel, candidate: LayerWidths, ids_BL: torch.Tensor
) -> torch.Tensor:
    """The logits of the model in its own order, with the removed columns set to zero and the mean
    of what they gave added. Changes the model.
    """
    order = reordering.order_of(model)
    assert order is not None
    reordering.restore(model)
    for index, block in enumerate(blocks_of(model)):
        mlp, attention = mlp_of(model, block), attention_of(model, block)
        use = candidate.use(index)
        if use is None:
            block.register_forward_hook(lambda _, args, out: args[0])
            continue
        assert mlp is not None and attention is not None
        columns = indices_of_groups(
            order.groups[index][candidate.groups[index] :], attention.query_rows
        )
        for part, removed, means, adds in (
            (
                mlp.output,
                order.channels[index][candidate.channels[index] :],
                order.channel_means,
                use.mlp,
            ),
            (attention.output, columns, order.column_means, use.attention),
        ):
            if means is not None and len(removed) and adds:
                shift = part.weight[:, removed] @ means[index][removed]
                part.register_forward_hook(lambda _, __, out, shift=shift: out + shift)
            part.weight[:, removed] = 0.0
            if not adds and part.bias is not None:
                part.bias.zero_()
    logits: torch.Tensor = model(ids_BL).logits
    return logits
