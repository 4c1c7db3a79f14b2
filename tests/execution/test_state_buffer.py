from pathlib import Path

import pytest
import torch

from prunesearch.errors import RunError
from prunesearch.execution.state_buffer import StateBuffer


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_a_limit_nothing_moves(scratch: Path) -> None:
    with StateBuffer() as state_buffer:
        tensor = torch.randn(100)
        number = state_buffer.put(tensor)
        assert state_buffer.get(number) is tensor
        assert state_buffer.take(number) is tensor
        assert state_buffer.spilled == 0
        assert list(scratch.iterdir()) == []
        with pytest.raises(KeyError):
            state_buffer.get(number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beyond_the_limit_tensors_go_to_files_and_come_back_equal(
    scratch: Path, dtype: torch.dtype
) -> None:
    tensors = [torch.randn(5, 10).T.to(dtype) for _ in range(4)]
    with StateBuffer(2 * tensors[0].nbytes) as state_buffer:
        numbers = [state_buffer.put(tensor) for tensor in tensors]
        assert state_buffer.spilled == 2 * tensors[0].nbytes
        assert all(
            torch.equal(state_buffer.get(n), tensor)
            for n, tensor in zip(numbers, tensors, strict=True)
        )
        (folder,) = scratch.iterdir()
        assert len(list(folder.iterdir())) == 2
        state_buffer.drop(numbers[2])
        assert len(list(folder.iterdir())) == 1
        assert torch.equal(state_buffer.take(numbers[3]), tensors[3])
        assert list(folder.iterdir()) == []
        state_buffer.drop(numbers[0])  # makes room
        kept = state_buffer.put(tensors[3])
        assert state_buffer.get(kept) is tensors[3]
    assert list(scratch.iterdir()) == []


def test_files_are_gone_after_a_failure(scratch: Path) -> None:
    with pytest.raises(ZeroDivisionError), StateBuffer(0) as state_buffer:
        state_buffer.put(torch.ones(3))
        raise ZeroDivisionError
    assert list(scratch.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with (
        StateBuffer(0) as state_buffer,
        pytest.raises(RunError, match=r"put hidden states aside in .*missing.*`state_memory`"),
    ):
        state_buffer.put(torch.ones(3))
