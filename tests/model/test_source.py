import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prunesearch.errors import InputError, ModelError
from prunesearch.model.loading import LoadedModel, load
from prunesearch.model.source import resolve, with_weights
from prunesearch.model.streaming import open_streamed
from tests.conftest import byte_tokenizer, tiny

OLD, NEW = "a" * 40, "b" * 40
Loader = Callable[..., LoadedModel]
BOTH = pytest.mark.parametrize("loader", [load, open_streamed], ids=["memory", "stream"])
EMBEDDING = "model.embed_tokens.weight"


def saved(folder: Path, seed: int = 0, **how: str) -> Path:
    """A tiny model on disk."""
    tiny(seed=seed).save_pretrained(folder, **how)
    byte_tokenizer().save_pretrained(folder)
    return folder


def edited(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@BOTH
def test_a_revision_is_resolved_once(hub: Callable[..., Path], tmp_path: Path, loader: Loader) -> None:
    hub(saved(tmp_path / "old"), "acme/tiny", OLD, "main")
    snapshot = hub(saved(tmp_path / "new", seed=1), "acme/tiny", NEW, "v1")
    for revision, commit in ((None, OLD), ("v1", NEW), (NEW, NEW)):
        source = loader("acme/tiny", revision=revision, device="cpu").source
        assert (source.from_hub, source.revision, source.commit) == (True, revision, commit)
    assert source.folder == snapshot
    assert source.weights == (snapshot / "model.safetensors",)
    with pytest.raises(ModelError, match=r"cannot get model 'acme/tiny' at revision 'v2'"):
        loader("acme/tiny", revision="v2", device="cpu")


def test_a_path_has_no_revision(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"--revision 'v1' goes with a Hugging Face id"):
        load(str(tiny_folder), revision="v1")


@BOTH
def test_other_formats_and_stale_indexes_are_not_read(tmp_path: Path, loader: Loader) -> None:
    folder = saved(tmp_path / "m", max_shard_size="20KB")
    shards = {path: path.read_bytes() for path in folder.glob("model*")}
    for path in shards:
        path.unlink()
    saved(folder, seed=1)
    for path, content in shards.items():
        path.write_bytes(content)
    torch.save(tiny(seed=2).state_dict(), folder / "pytorch_model.bin")
    loaded = loader(str(folder), device="cpu")
    assert loaded.source.weights == (folder / "model.safetensors",)
    assert torch.equal(loaded.model.get_parameter(EMBEDDING), tiny(seed=1).get_parameter(EMBEDDING))


@BOTH
@pytest.mark.parametrize("place", [0, -1])
def test_the_last_file_decides_about_a_repeated_tensor(tmp_path: Path, loader: Loader, place: int) -> None:
    folder = saved(tmp_path / "m", max_shard_size="20KB")
    name = "model.layers.3.mlp.up_proj.weight"
    path = sorted(folder.glob("*.safetensors"))[place]
    save_file({**load_file(path), name: torch.zeros(64, 32)}, path, {"format": "pt"})
    plain = AutoModelForCausalLM.from_pretrained(folder)
    saved(tmp_path / "same").joinpath("model.safetensors").unlink()
    plain.save_pretrained(tmp_path / "same")
    assert loader(str(folder), device="cpu").fingerprint == load(str(tmp_path / "same"), device="cpu").fingerprint


@BOTH
def test_an_index_may_leave_tensors_out(tmp_path: Path, loader: Loader) -> None:
    folder = saved(tmp_path / "m", max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"].popitem()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert loader(str(folder), device="cpu").fingerprint == load(str(saved(tmp_path / "n")), device="cpu").fingerprint


@BOTH
def test_weights_that_the_config_names_are_read(tmp_path: Path, loader: Loader) -> None:
    folder = saved(tmp_path / "m", seed=1)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    saved(folder)
    edited(folder / "config.json", transformers_weights="other.safetensors")
    loaded = loader(str(folder), device="cpu")
    assert torch.equal(loaded.model.get_parameter(EMBEDDING), tiny(seed=1).get_parameter(EMBEDDING))
    edited(folder / "config.json", transformers_weights="../other.safetensors")
    with pytest.raises(ModelError, match=r"names the weight file '\.\./other.safetensors'"):
        loader(str(folder), device="cpu")


@BOTH
def test_a_missing_shard_is_named(tmp_path: Path, loader: Loader) -> None:
    folder = saved(tmp_path / "m", max_shard_size="20KB")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=f"is not complete: {gone.name} is missing"):
        loader(str(folder), device="cpu")


@BOTH
def test_an_adapter_is_refused(tmp_path: Path, loader: Loader) -> None:
    folder = saved(tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds an adapter \(adapter_config.json\): merge it"):
        loader(str(folder), device="cpu")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds an adapter \(adapter_config.json\)"):
        loader(str(folder), device="cpu")


def test_a_hub_model_without_weights_is_refused(hub: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    hub(folder, "acme/tiny", OLD, "main")
    with pytest.raises(ModelError, match="cannot find the weights of model 'acme/tiny'"):
        with_weights(resolve("acme/tiny"))
