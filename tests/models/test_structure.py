import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from transformers import CTRLConfig

from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import cli
from prunesearch.models.analyze import take_inventory
from prunesearch.models.model_configs import meta_model
from prunesearch.models.sizes import sizes_of
from prunesearch.models.structure import architecture_of, blocks_of
from prunesearch.models.surgery import remove
from tests.support.models import ARCHITECTURES, LLAMA_70B, N_LAYERS, tiny


def test_llama_70b_from_its_bare_config(tmp_path: Path) -> None:
    LLAMA_70B.architectures = ["LlamaForCausalLM"]
    LLAMA_70B.save_pretrained(tmp_path)
    inventory = take_inventory(str(tmp_path / "config.json"))
    assert len(inventory.blocks) == 80
    assert {block.params for block in inventory.blocks} == {855_654_400}
    assert inventory.params == 70_553_706_496
    assert inventory.bytes == 2 * 70_553_706_496
    shown = CliRunner().invoke(cli, ["analyze", str(tmp_path / "config.json")]).output
    assert all(
        number in shown
        for number in ("80 blocks", "0-79", "855,654,400", "70,553,706,496", "131.42 GiB")
    )
    document = json.loads(CliRunner().invoke(cli, ["analyze", str(tmp_path), "--json"]).output)
    assert document["blocks"][79] == {
        "index": 79,
        "params": 855_654_400,
        "attention": 150_994_944,
        "mlp": 704_643_072,
        "bytes": 1_711_308_800,
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_of_a_candidate_are_those_of_the_smaller_model(architecture: str) -> None:
    model = tiny(architecture)
    sizes = sizes_of(model)
    candidate = LayerSubset.of(N_LAYERS, [1, 4])
    smaller = remove(tiny(architecture), candidate)
    assert sizes.params(candidate) == sum(p.numel() for p in smaller.parameters())
    assert sizes.bytes() == 4 * sizes.params()
    assert len(sizes.block_params) == len(blocks_of(model)) == N_LAYERS


def test_tied_weights_count_once() -> None:
    tied, untied = (
        sizes_of(meta_model(tiny(tie_word_embeddings=tie).config)).params() for tie in (True, False)
    )
    assert untied - tied == 264 * 32


def test_headers_and_config_agree(tiny_folder: Path) -> None:
    by_weights, by_config = (
        take_inventory(str(tiny_folder)),
        take_inventory(str(tiny_folder / "config.json")),
    )
    assert by_weights.source == "safetensors"
    assert by_config.source == "config"
    assert by_weights.blocks == by_config.blocks
    assert by_weights.params == by_config.params


def test_only_the_weights_that_transformers_loads_are_counted(
    make_model: Callable[..., Path],
) -> None:
    folder = make_model()
    alone = take_inventory(str(folder))
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert take_inventory(str(folder)) == alone
    sharded = folder.parent / "sharded"
    tiny().save_pretrained(sharded, max_shard_size="20KB")
    assert take_inventory(str(sharded)) == alone


def test_a_type_outside_the_table_is_looked_at() -> None:
    config = CTRLConfig(vocab_size=264, n_embd=32, n_layer=6, n_head=4, dff=64, n_positions=64)
    architecture = architecture_of(config)
    assert (architecture.blocks, architecture.known, architecture.attention) == (
        "transformer.h",
        False,
        None,
    )
