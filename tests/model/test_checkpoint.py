import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunesearch.errors import ModelError
from prunesearch.model.checkpoint import INDEX, SINGLE, Stored, read, tensors_in
from tests.conftest import tiny

TENSORS = {
    "matrix": torch.randn(3, 5),
    "half": torch.randn(7).to(torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "counts": torch.arange(4),
    "nothing": torch.empty(0, 2),
}


def test_tensors_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE, {"format": "pt"})
    found = tensors_in(tmp_path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(read(found[name]), tensor)


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path, max_shard_size="20KB")
    stored = tensors_in(tmp_path)
    whole = {name: tensor for path in tmp_path.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert stored.keys() == whole.keys()
    assert len({place.path for place in stored.values()}) > 1
    assert all(torch.equal(read(place), whole[name]) for name, place in stored.items())


def _header(**entry: object) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is no safetensors file"),
        (b"\xff" * 64, "cut short or no safetensors file"),
        ((4).to_bytes(8, "little") + b"[1,2", "is no safetensors file"),
        (_header()[:-3], "is cut short: 3 bytes are missing"),
        (_header(shape=[3]), "is damaged: a has not the size of its shape"),
        (_header(dtype="F4"), "is no safetensors file: 'F4'"),
        (_header(data_offsets="xy"), "is no safetensors file"),
    ],
    ids=["empty", "noise", "no mapping", "truncated", "shape", "type", "offsets"],
)
def test_damage_is_one_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(ModelError, match=complaint) as raised:
        tensors_in(tmp_path)
    assert "\n" not in str(raised.value)
    assert "get it again" in str(raised.value)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"weight_map": 3}', "is damaged"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "is damaged: 'metadata'"),
        (
            '{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}',
            "cannot read .*gone.safetensors.*No such file",
        ),
        ('{"metadata": {}, "weight_map": {"a": "../b.safetensors"}}', "'../b.safetensors', which is no file of its"),
        ('{"metadata": {}, "weight_map": {"a": "/b.safetensors"}}', "'/b.safetensors', which is no file of its"),
        ('{"metadata": {}, "weight_map": {"a": 3}}', "names the weight file 3"),
    ],
)
def test_a_bad_index_is_one_line(tmp_path: Path, index: str, complaint: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ModelError, match=complaint):
        tensors_in(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can be streamed from safetensors only"):
        tensors_in(tmp_path)


def _truncate(place: Stored) -> None:
    os.truncate(place.path, place.offset + 1)
    os.utime(place.path, ns=(place.modified, place.modified))


def _rewrite(place: Stored) -> None:
    save_file(TENSORS, place.path)
    os.utime(place.path, ns=(place.modified + 1, place.modified + 1))


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_truncate, "59 bytes are missing"),
        (_rewrite, "written to since it was opened"),
        (lambda place: place.path.unlink(), "No such file"),
    ],
    ids=["truncated", "rewritten", "gone"],
)
def test_a_file_that_changed_since_it_was_opened_is_noticed(
    tmp_path: Path, harm: Callable[[Stored], None], complaint: str
) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    place = tensors_in(tmp_path)["matrix"]
    harm(place)
    with pytest.raises(OSError, match=complaint):
        read(place)
