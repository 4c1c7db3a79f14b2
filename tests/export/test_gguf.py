"""GGUF files: written from a checkpoint, edited block by block, exported as safetensors."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError, VerificationError
from prunesearch.export import export, gguf_edit, gguf_write
from prunesearch.model.loading import LoadedModel, load
from prunesearch.model.surgery import pruned
from tests.conftest import N_LAYERS, byte_tokenizer, tiny

DENSE, BLOCKS = LayerSubset.of(N_LAYERS), LayerSubset.of(N_LAYERS, (0, 3))
IDS = torch.arange(1, 20)[None]


@pytest.fixture
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny Llama that speaks ASCII: llama.cpp holds back the bytes of an unfinished character."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer(("t", "h"), ascii_only=True)  # without a merge llama.cpp takes no tokeniser
    tiny(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(str(folder), device="cpu")


@pytest.fixture
def dense_file(loaded: LoadedModel, tmp_path: Path) -> Path:
    path = tmp_path / "dense.gguf"
    gguf_write.write(loaded, DENSE, path, compare=False)
    return path


def contents(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.") and k != "general.name"}
    return fields, {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}


def test_an_edited_file_is_the_one_that_is_written(loaded: LoadedModel, dense_file: Path, tmp_path: Path) -> None:
    written, edited = tmp_path / "written.gguf", tmp_path / "edited.gguf"
    check = gguf_write.write(loaded, BLOCKS, written, compare=True)
    assert check is not None
    assert check.difference <= check.allowed
    assert gguf_edit.edit(dense_file, BLOCKS, edited, loaded) is not None
    (fields, tensors), (edited_fields, edited_tensors) = contents(written), contents(edited)
    assert fields == edited_fields
    assert fields["llama.block_count"] == 4
    assert tensors.keys() == edited_tensors.keys()
    assert all(np.array_equal(tensors[name], edited_tensors[name]) for name in tensors)


def test_llama_cpp_finds_the_wrong_blocks(loaded: LoadedModel, dense_file: Path, tmp_path: Path) -> None:
    other = LayerSubset.of(N_LAYERS, (1, 4))
    with pytest.raises(VerificationError, match=r"llama\.cpp predicts something else"):
        gguf_edit.llama_cpp.check(dense_file, loaded, other, "F32")
    assert [path.name for path in tmp_path.iterdir()] == ["dense.gguf"]


@torch.inference_mode()
def test_a_gguf_is_exported_as_safetensors(loaded: LoadedModel, dense_file: Path, tmp_path: Path) -> None:
    from_file = load(str(dense_file), dtype="float32")
    export(from_file, BLOCKS, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pruned(loaded.model, BLOCKS) as candidate:
        torch.testing.assert_close(reloaded(IDS).logits, candidate(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_damaged_file_is_refused(dense_file: Path, tmp_path: Path) -> None:
    dense_file.write_bytes(dense_file.read_bytes()[:100])
    with pytest.raises(ModelError, match="as GGUF"):
        gguf_edit.edit(dense_file, BLOCKS, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["dense.gguf"]
