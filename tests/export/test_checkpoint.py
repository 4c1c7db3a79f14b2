"""An export is complete and verified, or it is not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, StorageError, VerificationError
from prunesearch.export import MANIFEST, checkpoint, export, recheck
from prunesearch.export.atomic import scratch_beside
from prunesearch.model.loading import LoadedModel, load
from prunesearch.model.surgery import pruned
from tests.conftest import FAMILIES, N_LAYERS

CANDIDATE = LayerSubset.of(N_LAYERS, (0, 3))
IDS = torch.arange(1, 20)[None]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_plain_from_pretrained_gives_the_candidate(
    family: str, tied: bool, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load(str(make_model(family, tie_word_embeddings=tied)))
    exported = export(loaded, CANDIDATE, tmp_path / "out", {"metrics": {"kl": 0.25}})
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pruned(loaded.model, CANDIDATE) as candidate:
        torch.testing.assert_close(reloaded(IDS).logits, candidate(IDS).logits, rtol=1e-4, atol=1e-4)
    assert reloaded.config.num_hidden_layers == 4
    assert sum(p.numel() for p in reloaded.parameters()) == exported.params
    assert max(exported.verification.prefill_difference, exported.verification.decode_difference) < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("harbour")["input_ids"] == loaded.tokenizer("harbour")["input_ids"]


def test_the_manifest_and_card_say_what_was_done(loaded: LoadedModel, tmp_path: Path) -> None:
    export(loaded, CANDIDATE, tmp_path / "out", {"study": "s", "metrics": {"kl": 0.25}})
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["dropped"] == "0,3"
    assert manifest["base_fingerprint"] == loaded.fingerprint
    assert manifest["study"] == "s"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "without layers 0,3" in card
    assert "| kl | 0.25 |" in card
    assert str(tmp_path) not in card + json.dumps(manifest), "no path of this machine travels with the model"
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in (tmp_path / "out").iterdir())


def test_an_occupied_destination_is_left_alone(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    for place, complaint in {"full": "is not empty", "file": "cannot write"}.items():
        for replace in (False, True):
            with pytest.raises(StorageError, match=complaint):
                export(loaded, CANDIDATE, tmp_path / place, replace=replace)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    (tmp_path / "empty").mkdir()
    assert export(loaded, CANDIDATE, tmp_path / "empty").folder == tmp_path / "empty"


def test_an_earlier_export_gives_way_when_asked(loaded: LoadedModel, tmp_path: Path) -> None:
    export(loaded, CANDIDATE, tmp_path / "out")
    with pytest.raises(StorageError, match="is not empty"):
        export(loaded, CANDIDATE, tmp_path / "out")
    other = LayerSubset.of(N_LAYERS, (2,))
    export(loaded, other, tmp_path / "out", replace=True)
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["dropped"] == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_verification_leaves_nothing(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_other_weights(*args: Any, **kwargs: Any) -> PreTrainedModel:  # noqa: ANN401
        model = reload(*args, **kwargs)
        with torch.no_grad():
            model.get_parameter("model.norm.weight").mul_(1.1)
        return model

    reload = checkpoint.reload
    monkeypatch.setattr(checkpoint, "reload", load_other_weights)
    with pytest.raises(VerificationError, match="differs from the scored candidate"):
        export(loaded, CANDIDATE, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync_all", full)
    with pytest.raises(StorageError, match="No space left"):
        export(loaded, CANDIDATE, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_swept_by_the_next(loaded: LoadedModel, tmp_path: Path) -> None:
    left, other = tmp_path / ".out-abandoned", tmp_path / ".other-abandoned"
    for folder in (left, other):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    with scratch_beside(tmp_path / "out") as busy:
        export(loaded, CANDIDATE, tmp_path / "out")
        assert busy.is_dir(), "another process is at work in it"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other-abandoned", "out"]


def test_weights_that_were_changed_in_memory_are_what_is_written(loaded: LoadedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        loaded.model.get_parameter("model.layers.2.mlp.down_proj.weight").mul_(1.5)
    with pytest.raises(VerificationError):
        export(loaded, CANDIDATE, tmp_path / "stored")
    made = export(loaded, CANDIDATE, tmp_path / "out", changed=("compensated",))
    assert made.verification.prefill_difference < 1e-4
    assert "were compensated" in (tmp_path / "out" / "README.md").read_text()
    recheck(tmp_path / "out")
    with pytest.raises(InputError, match="no longer the base model's"):
        recheck(tmp_path / "out", loaded)


def test_the_precision_of_changed_weights_is_kept(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = load(str(tiny_folder), dtype="bfloat16", device="cpu")
    export(loaded, CANDIDATE, tmp_path / "out", changed=("healed",))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
