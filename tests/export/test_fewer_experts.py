"""Exports of layers with fewer experts: they load, compute what was scored, and are smaller."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prunesearch.errors import InputError
from prunesearch.export import export, recheck
from prunesearch.models import reordering
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.surgery import pruned
from prunesearch.models.width_shape import width_shape_of
from prunesearch.widths.layer_widths import LayerWidths
from tests.support.model_types import tiny_model
from tests.support.models import byte_tokenizer
from tests.support.widths import order_for

IDS = torch.arange(1, 25)[None]


def model_with_fewer_experts(
    architecture: str, folder: Path, biases: bool = False
) -> tuple[LoadedModel, LayerWidths]:
    """A tiny model of six blocks with four experts each, and a candidate: blocks 0 and 2 lose
    experts, block 1 loses one expert and a KV group, and block 4 is dropped.
    """
    model = tiny_model(architecture)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    loaded = load(str(folder), device="cpu")
    order = order_for(loaded.model, biases)
    reordering.reorder(loaded.model, order)
    shape = width_shape_of(loaded.model)
    channels, groups = list(shape.channels), list(shape.groups)
    for index, count in ((0, 2), (1, 3), (2, 2)):
        if shape.experts_used(index):
            channels[index] = count
    if any(groups):  # OLMoE has a norm of all heads
        groups[1], channels[4], groups[4] = 1, 0, 0
    return loaded, LayerWidths.within(shape, channels, groups, order.digest, biases)


@pytest.mark.parametrize(
    ("architecture", "biases"),
    [("mixtral", True), ("qwen2_moe", True), ("qwen3_moe", False), ("olmoe", False)],
)
@torch.inference_mode()
def test_an_export_has_fewer_experts_and_computes_what_was_scored(
    architecture: str, biases: bool, tmp_path: Path
) -> None:
    loaded, candidate = model_with_fewer_experts(architecture, tmp_path / "dense", biases)
    made = export(loaded, candidate, tmp_path / "out", export_format="widths")
    assert made.verification.cached
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    found = reloaded(IDS).logits
    with pruned(loaded.model, candidate) as model:
        wanted = model(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(found.abs().max()))
    params = sum(parameter.numel() for parameter in reloaded.parameters())
    assert params == made.params == loaded.sizes.params(candidate)
    # What was removed is not in the files.
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == params
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    name = "num_local_experts" if "num_local_experts" in config else "num_experts"
    assert config["per_layer_config"]["1"][name] == 3
    base = load(str(tmp_path / "dense"), device="cpu")
    recheck(tmp_path / "out", base, trust_remote_code=True)
    # It is saved by transformers and loaded again.
    reloaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(IDS).logits, found)


def test_experts_with_zeros_are_refused(tmp_path: Path) -> None:
    loaded, candidate = model_with_fewer_experts("mixtral", tmp_path / "dense")
    with pytest.raises(InputError, match="cannot leave out experts"):
        export(loaded, candidate, tmp_path / "out", export_format="zeroed")
    assert candidate.fewer_experts == (0, 1, 2)
