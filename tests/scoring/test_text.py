import bz2
import gzip
import json
from pathlib import Path

import pytest
import torch

from prunesearch.errors import DataError
from prunesearch.recipe import BUILTIN_TEXT
from prunesearch.scoring.text import HELD_OUT, read_text, token_windows
from tests.conftest import byte_tokenizer


def test_builtin_text_needs_nothing_and_its_parts_are_apart() -> None:
    shown, held_out = read_text(BUILTIN_TEXT), read_text(HELD_OUT)
    assert not set(shown) & set(held_out)
    assert len(set(shown)) == len(shown)
    assert sum(map(len, shown)) > 150_000
    assert sum(map(len, held_out)) > 50_000
    assert "the" in shown[0].split()


def test_every_kind_of_file_gives_the_same_text(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "two"))
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(rows.encode()))
    (tmp_path / "a.txt").write_text("one")
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.bz2"):
        assert read_text(str(tmp_path / name)) == ["one", "two"]
    assert read_text(str(tmp_path / "a.txt")) == ["one"]


def test_a_dataset_gives_its_text(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_text(str(tmp_path / "corpus")) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '{"words": "x"}\n', "its fields are words"),
        ("a.jsonl", "{oops\n", "line 1 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", "\n", "is empty"),
        ("a.txt", "  \n", "holds no text"),
        ("a.gz", "plain text", "cannot read"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=complaint):
        read_text(str(tmp_path / name))


def test_missing_files_are_refused() -> None:
    with pytest.raises(DataError, match="no calibration file"):
        read_text("nowhere.txt")


def test_a_larger_sample_begins_with_the_smaller(prose: Path) -> None:
    small, large = (token_windows(str(prose), byte_tokenizer(), tokens, 64) for tokens in (256, 1024))
    assert small.shape == (4, 64)
    assert torch.equal(large[:4], small)
    assert len({tuple(row.tolist()) for row in large}) == 16


def test_short_text_is_refused_with_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("hello")
    with pytest.raises(DataError, match="has 5 tokens, 64 are needed"):
        token_windows(str(tmp_path / "short.txt"), byte_tokenizer(), 64, 32)
