"""Tiny models in a random channel order, with candidates that narrow them."""

from pathlib import Path

from prunesearch.layer_widths import LayerWidths
from prunesearch.models import narrowing
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.width_shape import width_shape_of
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
    narrowing.reorder(loaded.model, order)
    shape = width_shape_of(loaded.model)
    text = "1:30/2,2:64/1,3:17/1,4,5:50/0"
    return loaded, LayerWidths.read(text, shape, order.digest, biases)
