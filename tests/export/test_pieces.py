"""Parts of stored tensors are read as they would be sliced in memory, whatever the pieces are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunesearch.export import pieces, writer
from prunesearch.export.layout import Slice, TensorEntry
from prunesearch.models.safetensors_files import tensors_in


@pytest.mark.parametrize("piece", [64, 300, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_are_those_of_memory(
    piece: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pieces, writer):
        monkeypatch.setattr(module, "PIECE", piece)
    matrix = torch.randn(12, 10).to(dtype)
    (tmp_path / "dense").mkdir()
    save_file({"matrix": matrix}, tmp_path / "dense" / "model.safetensors")
    place = tensors_in(tmp_path / "dense")["matrix"]
    kept = (4, 0, 3)
    rows, columns = [8, 9, 0, 1, 6, 7], [8, 9, 0, 1, 6, 7]
    without_rows, without_columns = matrix.clone(), matrix.clone()
    without_rows[[2, 3, 4, 5, 10, 11]] = 0
    without_columns[:, [2, 3, 4, 5]] = 0
    expected = {
        "rows": matrix[rows],
        "columns": matrix[:, columns],
        "whole": matrix,
        "without rows": without_rows,
        "without columns": without_columns,
    }
    entries = [
        TensorEntry("rows", place, Slice(0, 6, kept)),
        TensorEntry("whole", place),
        TensorEntry("columns", place, Slice(1, 5, kept)),
        TensorEntry("without rows", place, Slice(0, 6, (0, 3, 4), filled=True)),
        TensorEntry("without columns", place, Slice(1, 5, (0, 3, 4), filled=True)),
    ]
    (tmp_path / "out").mkdir()
    writer.write_shards(entries, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
