"""An export is complete and verified, or it is not there."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Llama4Config,
    PreTrainedModel,
)

from prunesearch.cache.files import sync_tree
from prunesearch.candidate import LayerSubset
from prunesearch.config.recipe import Recipe
from prunesearch.errors import (
    InputError,
    ModelError,
    RunError,
    StorageError,
    VerificationError,
)
from prunesearch.export import MANIFEST, checkpoint, export, recheck, reloading
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.streaming import open_streamed
from prunesearch.models.surgery import pruned
from tests.support.models import ARCHITECTURES, N_LAYERS, byte_tokenizer, store_head_apart

CANDIDATE = LayerSubset.of(N_LAYERS, (0, 3))
IDS = torch.arange(1, 20)[None]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_plain_from_pretrained_gives_the_candidate(
    architecture: str, tied: bool, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load(str(make_model(architecture, tie_word_embeddings=tied)))
    exported = export(loaded, CANDIDATE, tmp_path / "out", {"metrics": {"kl": 0.25}})
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pruned(loaded.model, CANDIDATE) as candidate:
        torch.testing.assert_close(
            reloaded(IDS).logits, candidate(IDS).logits, rtol=1e-4, atol=1e-4
        )
    assert reloaded.config.num_hidden_layers == 4
    assert sum(p.numel() for p in reloaded.parameters()) == exported.params
    found = exported.verification
    assert found.decode_difference is not None
    assert max(found.prefill_difference, found.decode_difference) < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("harbour")["input_ids"] == loaded.tokenizer("harbour")["input_ids"]


def test_the_manifest_and_card_say_what_was_done(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load(str(make_model()), device="cpu")
    recipe = Recipe(
        model="/home/me/tiny-llama", drop="2", sampler="woa", calibration="/home/me/prose.txt"
    )
    facts: dict[str, Any] = {
        "study": "s",
        "trials": 7,
        "recipe": recipe.portable().document(),
        "metrics": {"kl": 0.25, "perplexity": 30.0},
        "stderr": {"kl": 0.01},
        "dense_metrics": {"kl": 0.0, "perplexity": 20.5},
    }
    commit = "0123456789" * 4
    loaded = dataclasses.replace(
        loaded,
        source=dataclasses.replace(loaded.source, from_hub=True, revision="v1", commit=commit),
        name="me/tiny",
    )
    assert loaded.source.folder is not None
    (loaded.source.folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    export(loaded, CANDIDATE, tmp_path / "out", facts)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["dropped"] == "0,3"
    assert manifest["base_fingerprint"] == loaded.fingerprint
    assert manifest["study"] == "s"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "without layers 0,3" in card
    assert "| kl | 0.25 ± 0.01 | 0 |" in card
    assert "| perplexity | 30 | 20.5 |" in card
    assert (manifest["base_revision"], manifest["base_commit"]) == ("v1", commit)
    assert f"`prunesearch export me/tiny --revision {commit} --layers 0,3 --out NAME`" in card
    assert "`woa`, objective `kl` on `prose.txt`) in 7 trials, study `s`" in card
    assert (
        "model: tiny-llama\ndata:\n  calibration: prose.txt\nsearch:\n  drop: '2'\n  sampler: woa\n```"
        in card
    )
    assert "`prunesearch run recipe.yaml --trials 7`" in card
    assert "license: apache-2.0\n" in card
    assert "base_model: me/tiny\n" in card
    assert "applies: apache-2.0" in card
    assert str(tmp_path) not in card + json.dumps(manifest), (
        "no path of this machine travels with the model"
    )
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

    reload = reloading.reload
    monkeypatch.setattr(reloading, "reload", load_other_weights)
    with pytest.raises(VerificationError, match="differs from the scored candidate"):
        export(loaded, CANDIDATE, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync_tree", full)
    with pytest.raises(StorageError, match="No space left"):
        export(loaded, CANDIDATE, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_put_into_the_destination_meanwhile_survives(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(folder: Path) -> None:
        sync_tree(folder)
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.tex").write_text("precious")

    (tmp_path / ".out-server").mkdir()
    monkeypatch.setattr(checkpoint, "sync_tree", meanwhile)
    with pytest.raises(RunError, match=r"the finished result is '.*out-2'"):
        export(loaded, CANDIDATE, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    assert recheck(tmp_path / "out-2").dropped == CANDIDATE.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out-server", "out", "out-2"]


def test_a_second_export_to_one_destination_keeps_the_first(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(folder: Path) -> None:
        monkeypatch.setattr(checkpoint, "sync_tree", sync_tree)
        export(loaded, LayerSubset.of(N_LAYERS, (2,)), tmp_path / "out")

    monkeypatch.setattr(checkpoint, "sync_tree", meanwhile)
    with pytest.raises(RunError, match="out-2"):
        export(loaded, CANDIDATE, tmp_path / "out")
    assert recheck(tmp_path / "out").dropped == "2"
    assert recheck(tmp_path / "out-2").dropped == CANDIDATE.text


def test_an_export_with_files_of_the_users_is_not_replaced(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(loaded, CANDIDATE, out)
    (out / "notes").mkdir()
    (out / "notes" / "results.csv").write_text("mine")
    with pytest.raises(StorageError, match=r"notes/results\.csv"):
        export(loaded, CANDIDATE, out, replace=True)
    (out / "notes" / "results.csv").unlink()
    (out / "README.md").write_text("my own card")
    with pytest.raises(StorageError, match=r"README\.md"):
        export(loaded, CANDIDATE, out, replace=True)
    assert (out / "README.md").read_text() == "my own card"


def test_places_that_cannot_be_renamed_are_refused(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(StorageError, match="name a new folder inside it"):
        export(loaded, CANDIDATE, Path())
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    export(loaded, CANDIDATE, Path("link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "here" / MANIFEST).is_file()


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_exports_have_the_modes_that_the_user_wants(
    mask: int, mode: int, loaded: LoadedModel, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        export(loaded, CANDIDATE, tmp_path / "out", changed=("healed",))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {mode}


def test_weights_that_were_changed_in_memory_are_what_is_written(
    loaded: LoadedModel, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("how", ["plain", "changed", "streamed"])
def test_a_head_that_is_stored_apart_stays_apart(
    how: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model(tie_word_embeddings=True)
    head = store_head_apart(folder)
    loaded = (open_streamed if how == "streamed" else load)(str(folder), device="cpu")
    said = loaded.model.config.to_json_string()
    export(
        loaded,
        LayerSubset.of(N_LAYERS, (1,)),
        tmp_path / "out",
        changed=["healed"] if how == "changed" else [],
    )
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(found.lm_head.weight, head)
    assert torch.equal(found.model.embed_tokens.weight, head.flip(0))
    assert torch.equal(loaded.model.lm_head.weight, head)
    assert loaded.model.config.to_json_string() == said


def test_the_precision_of_changed_weights_is_kept(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = load(str(tiny_folder), dtype="bfloat16", device="cpu")
    export(loaded, CANDIDATE, tmp_path / "out", changed=("healed",))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_links_out_of_the_models_folder_are_refused_before_any_work(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model()
    (tmp_path / "secret.key").write_text("secret")
    (folder / "LICENSE").symlink_to(tmp_path / "secret.key")
    loaded = load(str(folder))
    with pytest.raises(ModelError, match=r"LICENSE.*link to a file outside the model's folder"):
        export(loaded, CANDIDATE, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.key", "tiny"]
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to("config.json")
    (tmp_path / "link").symlink_to(folder)
    export(load(str(tmp_path / "link")), CANDIDATE, tmp_path / "out")
    assert not (tmp_path / "out" / "LICENSE").is_symlink()


def test_links_into_the_blobs_of_the_same_repository_are_followed(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    repository, other = tmp_path / "models--me--x", tmp_path / "models--me--y"
    snapshot = repository / "snapshots" / ("0" * 40)
    for blobs in (repository / "blobs", other / "blobs"):
        blobs.mkdir(parents=True)
        (blobs / "abc").write_text("a licence")
    snapshot.parent.mkdir()
    make_model().rename(snapshot)
    (snapshot / "LICENSE").symlink_to("../../blobs/abc")
    export(load(str(snapshot)), CANDIDATE, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "a licence"
    (snapshot / "NOTICE").symlink_to("../../../models--me--y/blobs/abc")
    with pytest.raises(ModelError, match="NOTICE"):
        export(load(str(snapshot)), CANDIDATE, tmp_path / "other")


def test_a_model_that_also_sees_keeps_its_eyes(tmp_path: Path) -> None:
    text = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 64,
        "intermediate_size_mlp": 64,
        "head_dim": 8,
    }
    text |= {
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision |= {
        "image_size": 28,
        "vision_output_dim": 16,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
    }
    config = Llama4Config(text_config=text, vision_config=vision)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    out = export(load(str(tmp_path / "base"), device="cpu"), CANDIDATE, tmp_path / "out").folder
    reloaded: Any = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    whole, report = reloaded
    assert not report["missing_keys"]
    assert whole.config.text_config.num_hidden_layers == N_LAYERS - 2
    assert whole.config.vision_config.num_hidden_layers == 2
    part = export(
        load(str(tmp_path / "base"), device="cpu", dtype="bfloat16"), CANDIDATE, tmp_path / "part"
    ).folder
    said = json.loads((part / "config.json").read_text())
    assert (said["model_type"], said["architectures"]) == ("llama4_text", ["Llama4ForCausalLM"])
    assert said["dtype"] == "bfloat16"


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_a_streamed_model_is_written_as_it_was_scored(
    architecture: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = str(make_model(architecture))
    made = {}
    for name, loader in (("memory", load), ("stream", open_streamed)):
        export(loader(base, device="cpu", dtype="bfloat16"), CANDIDATE, tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == "bfloat16"
        made[name] = load_file(tmp_path / name / "model.safetensors")
    assert made["memory"].keys() == made["stream"].keys()
    for name, tensor in made["memory"].items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, made["stream"][name])
