from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from prunesearch.models.layers import ResidentLayers, StreamedLayers
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.streaming import open_streamed
from prunesearch.models.structure import blocks_of
from tests.support.models import N_LAYERS


@pytest.fixture
def streamed(tiny_folder: Path) -> LoadedModel:
    return open_streamed(str(tiny_folder), device="cpu")


def layers_of(loaded: LoadedModel) -> StreamedLayers:
    assert isinstance(loaded.layers, StreamedLayers)
    return loaded.layers


def all_meta(loaded: LoadedModel) -> bool:
    return all(p.is_meta for block in blocks_of(loaded.model) for p in block.parameters())


def test_resident_blocks_are_the_models_own(loaded: LoadedModel) -> None:
    blocks = blocks_of(loaded.model)
    assert not ResidentLayers(blocks).streamed_once
    assert [(i, b) for i, b in ResidentLayers(blocks).walk([1, 4])] == [
        (1, blocks[1]),
        (4, blocks[4]),
    ]


def test_a_block_has_its_weights_while_it_is_there_and_only_then(
    streamed: LoadedModel, tiny_folder: Path
) -> None:
    whole = blocks_of(load(str(tiny_folder), device="cpu").model)
    assert all_meta(streamed)
    for index, block in layers_of(streamed).walk([0, 2, 3, 5]):
        assert all(
            torch.equal(a, b)
            for a, b in zip(block.parameters(), whole[index].parameters(), strict=True)
        )
        others = [b for i, b in enumerate(blocks_of(streamed.model)) if i != index]
        assert all(p.is_meta for other in others for p in other.parameters())
    assert all_meta(streamed)


def test_two_blocks_are_in_memory(streamed: LoadedModel) -> None:
    layers = layers_of(streamed)
    location = {next(block.parameters()).data_ptr() for _, block in layers.walk(range(N_LAYERS))}
    assert len(location) == 2


def test_converting_takes_one_tensor_more(tiny_folder: Path) -> None:
    layers = layers_of(open_streamed(str(tiny_folder), device="cpu", dtype="bfloat16"))
    blocks = list(layers.walk(range(N_LAYERS)))
    assert len(blocks) == N_LAYERS
    assert layers._staging.nbytes == 4 * 32 * 64  # the largest: an MLP matrix, as stored
    assert [slot.nbytes for slot in layers._slots if slot is not None] == [layers._slot_bytes] * 2


def test_host_weights_of_the_right_type_are_used_where_they_are(tiny_folder: Path) -> None:
    layers = layers_of(open_streamed(str(tiny_folder), device="cpu", host=True))
    first, second = (
        [next(b.parameters()).data_ptr() for _, b in layers.walk([0, 1, 2])] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == 3
    assert layers._slots == [None, None]


def test_a_pass_that_is_interrupted_leaves_no_weights(streamed: LoadedModel) -> None:
    walk = layers_of(streamed).walk(range(N_LAYERS))
    next(walk)
    next(walk)
    assert isinstance(walk, Generator)
    walk.close()
    assert all_meta(streamed)
    assert [index for index, _ in layers_of(streamed).walk([3])] == [3]
    assert list(layers_of(streamed).walk([])) == []
