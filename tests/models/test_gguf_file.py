"""GGUF files whose header lies are refused before the reader follows it."""

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from prunesearch.compat.gguf import QuickReader, quick_reader
from prunesearch.errors import ModelError
from prunesearch.models.analyze import take_inventory
from prunesearch.models.gguf_file import GGUFTensor, open_gguf, read_header


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _file(
    settings: list[bytes],
    tensors: list[bytes],
    counts: tuple[int, int] | None = None,
    data: bytes = b"",
) -> bytes:
    numbers = counts or (len(tensors), len(settings))
    body = b"GGUF" + struct.pack("<IQQ", 3, *numbers) + b"".join(settings) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + data


def _setting(kind: int, value: bytes, name: bytes = b"general.architecture") -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


def _tensor(shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    sizes = b"".join(struct.pack("<Q", n) for n in shape)
    return (
        _text(b"blk.0.a") + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)
    )


NESTED = struct.pack("<IQ", 9, 1) * 2000 + struct.pack("<IQ", 4, 1) + bytes(4)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it has 0 bytes"),
        (b"PK\x03\x04" + bytes(60), "it does not begin as one"),
        (b"GGUF" + bytes(60), "its version 0 is none"),
        (b"GGUF\4" + bytes(60), "of version 4, which cannot be read"),
        (_file([], [], (2**40, 0)), "is said to have 1099511627776 tensors"),
        (_file([], [], (0, 2**63)), "settings, which are more bytes than the file has"),
        (_file([_setting(9, struct.pack("<IQ", 0, 2**40))], []), "1099511627776 entries of a list"),
        (_file([_setting(9, struct.pack("<IQ", 8, 2**40))], []), "1099511627776 entries of a list"),
        (_file([_setting(9, NESTED)], []), "lists in lists"),
        (_file([_setting(8, struct.pack("<Q", 2**62))], []), "bytes more than the file has"),
        (_file([_setting(99, bytes(8))], []), "unknown type 99"),
        (
            _file([_setting(4, bytes(4), b"general.alignment")], [_tensor()]),
            "alignment 0 is not a power of two",
        ),
        (_file([], [_tensor((4,), 0)]), "is cut short: 16 bytes are missing"),
        (_file([], [_tensor((2**40, 2**40))]), "is cut short"),
        (_file([], [_tensor((1,) * 9)]), "9 dimensions"),
        (_file([], [_tensor(kind=999)]), "in the type 999"),
        (_file([_setting(8, _text(b"llama"))], []), "holds no tensors"),
        (
            _file([_setting(8, _text(b"a"))] * 2, [_tensor()], data=bytes(16)),
            "it has general.architecture twice",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n",
            "git-lfs pointer",
        ),
    ],
)
def test_a_header_that_lies_is_refused_at_once(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    start = time.process_time()
    for read in (open_gguf, lambda path: take_inventory(str(path))):
        with pytest.raises(ModelError, match=complaint) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert time.process_time() - start < 2


def test_a_sound_file_is_opened(tmp_path: Path) -> None:
    for endianess in (gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG):
        path = tmp_path / f"{endianess.name}.gguf"
        writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
        writer.add_token_list(["a", "bc"])
        writer.add_key_value(
            "llama.numbers", [1, 2, 3], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32
        )
        writer.add_custom_alignment(64)
        writer.add_tensor("blk.0.a", np.ones((3, 5), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found, expected = open_gguf(path), gguf.GGUFReader(path)
        assert read_header(path) == (GGUFTensor("blk.0.a", 15, 60, "F32"),)
        [tensor] = found.tensors
        assert (tensor.name, int(tensor.n_elements)) == ("blk.0.a", 15)
        assert np.array_equal(tensor.data, expected.tensors[0].data)
        # The quick reader finds what gguf's own reader finds, also of lists of texts.
        assert [field.name for field in found.fields.values()] == list(expected.fields)
        for ours, theirs in zip(found.fields.values(), expected.fields.values(), strict=True):
            assert ours.contents() == theirs.contents()
            assert (ours.offset, ours.types, list(ours.data)) == (
                theirs.offset,
                theirs.types,
                list(theirs.data),
            )
            for part, same in zip(ours.parts, theirs.parts, strict=True):
                assert part.dtype == same.dtype and np.array_equal(part, same)


def test_an_inventory_reads_the_header_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is sparse: it takes no room, and reading it whole would take minutes."""
    path = tmp_path / "large.gguf"
    content = _file([_setting(8, _text(b"llama"))], [_tensor((2**20, 2**14))])
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(len(content) + 4 * 2**34)
    monkeypatch.setattr(gguf, "GGUFReader", None)
    found = take_inventory(str(path))
    assert (found.params, found.bytes, len(found.blocks)) == (2**34, 2**36, 1)


def test_transformers_reads_with_the_quick_reader_only_meanwhile() -> None:
    own = gguf.GGUFReader
    with quick_reader():
        assert gguf.GGUFReader is QuickReader
    assert gguf.GGUFReader is own
