from pathlib import Path

import pytest
import torch

from prunesearch.errors import RunError
from prunesearch.scoring.shelf import Shelf


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_a_limit_nothing_moves(scratch: Path) -> None:
    with Shelf() as shelf:
        tensor = torch.randn(100)
        number = shelf.put(tensor)
        assert shelf.get(number) is tensor
        assert shelf.take(number) is tensor
        assert shelf.spilled == 0
        assert list(scratch.iterdir()) == []
        with pytest.raises(KeyError):
            shelf.get(number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beyond_the_limit_tensors_go_to_files_and_come_back_equal(scratch: Path, dtype: torch.dtype) -> None:
    tensors = [torch.randn(5, 10).T.to(dtype) for _ in range(4)]
    with Shelf(2 * tensors[0].nbytes) as shelf:
        numbers = [shelf.put(tensor) for tensor in tensors]
        assert shelf.spilled == 2 * tensors[0].nbytes
        assert all(torch.equal(shelf.get(n), tensor) for n, tensor in zip(numbers, tensors, strict=True))
        (folder,) = scratch.iterdir()
        assert len(list(folder.iterdir())) == 2
        shelf.drop(numbers[2])
        assert len(list(folder.iterdir())) == 1
        assert torch.equal(shelf.take(numbers[3]), tensors[3])
        assert list(folder.iterdir()) == []
        shelf.drop(numbers[0])  # makes room
        kept = shelf.put(tensors[3])
        assert shelf.get(kept) is tensors[3]
    assert list(scratch.iterdir()) == []


def test_files_are_gone_after_a_failure(scratch: Path) -> None:
    with pytest.raises(ZeroDivisionError), Shelf(0) as shelf:
        shelf.put(torch.ones(3))
        raise ZeroDivisionError
    assert list(scratch.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with Shelf(0) as shelf, pytest.raises(RunError, match=r"put hidden states aside in .*missing.*--state-memory"):
        shelf.put(torch.ones(3))
