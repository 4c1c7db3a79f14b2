"""GGUF files of layers of different widths, compared in llama.cpp."""

from pathlib import Path

import gguf
import pytest

from prunesearch.errors import InputError, VerificationError
from prunesearch.export import gguf_record, gguf_widths, gguf_write
from prunesearch.export.formats.registry import REGISTRY
from prunesearch.export.results import LlamaCppCheck
from prunesearch.models.loading import load
from prunesearch.widths.layer_widths import LayerWidths
from tests.support.narrow_models import narrow_model


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_llama_cpp_computes_what_was_scored(architecture: str, tmp_path: Path) -> None:
    loaded, candidate = narrow_model(architecture, tmp_path / "dense", biases=True)
    made = REGISTRY.get("gguf").write_file(loaded, candidate, tmp_path / "out.gguf")
    assert made.check is not None
    assert made.check.difference < made.check.allowed
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["deci.feed_forward_length"].contents() == [64, 30, 64, 17, 50]
    assert fields["deci.attention.head_count_kv"].contents() == [2, 2, 1, 1, 0]
    # The file says what it was made from.
    base = load(str(tmp_path / "dense"), device="cpu")
    found = gguf_record.recheck(tmp_path / "out.gguf", base)
    assert found.dropped == candidate.text
    assert isinstance(found.llama_cpp, LlamaCppCheck)


def test_sizes_of_another_layer_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The biases of the last layers are left out, which llama.cpp does not need."""
    loaded, candidate = narrow_model("llama", tmp_path / "dense", biases=True)
    names = frozenset(f"model.layers.{index}.mlp.down_proj.bias" for index in (1, 3))
    monkeypatch.setattr(gguf_widths, "gone_parameters", lambda *_: names)
    candidate = LayerWidths.read("1:30/2,3:17/1", candidate.shape, candidate.order, True)
    with pytest.raises(VerificationError, match="predicts something else"):
        gguf_write.write(loaded, candidate, tmp_path / "out.gguf", compare=True)
    assert not (tmp_path / "out.gguf").exists()


def test_models_that_are_not_decilm_are_refused(tmp_path: Path) -> None:
    for architecture in ("qwen3", "smollm3"):
        loaded, candidate = narrow_model(architecture, tmp_path / architecture)
        with pytest.raises(InputError, match=f"one width for all layers of {architecture}"):
            gguf_write.write(loaded, candidate, tmp_path / "out.gguf", compare=True)
    loaded, candidate = narrow_model("llama", tmp_path / "dense")
    first = LayerWidths.read("0:50/0,1:30/2", candidate.shape, candidate.order)
    with pytest.raises(InputError, match="layer 0 has no attention"):
        gguf_write.write(loaded, first, tmp_path / "out.gguf", compare=True)
    assert not (tmp_path / "out.gguf").exists()
