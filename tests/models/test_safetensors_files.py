import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunesearch.errors import ModelError
from prunesearch.models.safetensors_files import (
    Stored,
    misplaced,
    read,
    tensors_in,
)
from prunesearch.models.weight_files import INDEX, SINGLE
from tests.support.models import tiny

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
    whole = {
        name: tensor
        for path in tmp_path.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    assert stored.keys() == whole.keys()
    assert len({place.path for place in stored.values()}) > 1
    assert all(torch.equal(read(place), whole[name]) for name, place in stored.items())


def _file(header: object, data: int = 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def _header(**entry: object) -> bytes:
    return _file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}})


def _two(first: list[int], second: list[int], data: int = 12) -> bytes:
    entries = {"a": {"dtype": "U8", "shape": [6], "data_offsets": first}}
    return _file(entries | {"b": {"dtype": "U8", "shape": [6], "data_offsets": second}}, data)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cut short or not a safetensors file"),
        (b"\xff" * 64, "cut short or not a safetensors file"),
        ((20).to_bytes(8, "little") + b"{}", "cut short or not a safetensors file"),
        (_file(b"[1,2", 0), "is not a safetensors file"),
        (_file([1], 0), "its header is not a JSON object"),
        (_file(b"[" * 50_000, 0), "is not a safetensors file: maximum recursion"),
        (_file(b'{"\xff": 1}', 0), "is not UTF-8"),
        (_file({"a": 3}), "a is 3"),
        (_header()[:-3], "is cut short: 3 bytes are missing"),
        (_header() + b"xy", "2 bytes after its tensors belong to none of them"),
        (_header(shape=[3]), "is damaged: a has not the size of its shape"),
        (_header(shape=[-2]), "a has the shape .-2."),
        (_header(shape=[2.0]), "a has the shape .2.0."),
        (_header(shape=[True, 2]), "a has the shape .True"),
        (_header(shape=None), "a has the shape None"),
        (_header(dtype="F4"), "in the type 'F4', which this version does not know"),
        (_header(dtype=[]), "in the type .., which"),
        (_header(data_offsets="xy"), "lies at 'xy'"),
        (_header(data_offsets=[8, 0]), "has not the size"),
        (_header(data_offsets=[-8, 0]), "lies at .-8, 0."),
        (_header(data_offsets=[0, 8, 9]), "lies at"),
        (_header(data_offsets=[0, 2**70]), "has not the size"),
        (_two([0, 6], [3, 9]), "b overlaps another tensor"),
        (_two([0, 6], [8, 14], 14), "b does not follow the tensor before it"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(ModelError, match=complaint) as raised:
        tensors_in(tmp_path)
    assert "\n" not in str(raised.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(ModelError, match=r"model.safetensors' is a folder"):
        tensors_in(tmp_path)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ("{", "is damaged"),
        ("[" * 50_000, "is damaged: maximum recursion"),
        ("[]", "is damaged"),
        ('{"weight_map": 3}', "is damaged"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "is damaged: 'metadata'"),
        (
            '{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}',
            "cannot read .*gone.safetensors.*No such file",
        ),
        (
            '{"metadata": {}, "weight_map": {"a": "../b.safetensors"}}',
            "'../b.safetensors', which is not a file of its",
        ),
        (
            '{"metadata": {}, "weight_map": {"a": "/b.safetensors"}}',
            "'/b.safetensors', which is not a file of its",
        ),
        ('{"metadata": {}, "weight_map": {"a": 3}}', "names the weight file 3"),
    ],
)
def test_a_bad_index_is_one_line(tmp_path: Path, index: str, complaint: str) -> None:
    (tmp_path / INDEX).write_text(index)
    for read_index in (tensors_in, misplaced):
        with pytest.raises(ModelError, match=complaint):
            read_index(tmp_path)


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
