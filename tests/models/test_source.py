import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prunesearch.cli.main import cli
from prunesearch.errors import InputError, ModelError
from prunesearch.models.analyze import take_inventory
from prunesearch.models.fingerprint import fingerprint, numeric_config
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.source import resolve, with_weights
from prunesearch.models.streaming import open_streamed
from tests.support.models import byte_tokenizer, tiny

OLD, NEW = "a" * 40, "b" * 40
Loader = Callable[..., LoadedModel]
BOTH = pytest.mark.parametrize("loader", [load, open_streamed], ids=["memory", "stream"])
EMBEDDING = "model.embed_tokens.weight"


def saved(folder: Path, seed: int = 0, **how: Any) -> Path:  # noqa: ANN401 (options of save_pretrained)
    """A tiny model on disk."""
    tiny(seed=seed).save_pretrained(folder, **how)
    byte_tokenizer().save_pretrained(folder)
    return folder


def edited(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@BOTH
def test_a_revision_is_resolved_once(
    hub: Callable[..., Path], tmp_path: Path, loader: Loader
) -> None:
    hub(saved(tmp_path / "old"), "acme/tiny", OLD, "main")
    snapshot = hub(saved(tmp_path / "new", seed=1), "acme/tiny", NEW, "v1")
    for revision, commit in ((None, OLD), ("v1", NEW), (NEW, NEW)):
        source = loader("acme/tiny", revision=revision, device="cpu").source
        assert (source.from_hub, source.revision, source.commit) == (True, revision, commit)
    assert source.folder == snapshot
    assert source.weights == (snapshot / "model.safetensors",)
    with pytest.raises(
        ModelError,
        match=r"cannot get model 'acme/tiny' at revision 'v2'.*the hub cannot be reached",
    ):
        loader("acme/tiny", revision="v2", device="cpu")
    with pytest.raises(
        ModelError, match="no copy is on this machine; if this is a study, export it"
    ):
        loader("my-study", device="cpu")


def test_a_path_has_no_revision(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"`revision` 'v1' goes with a Hugging Face id"):
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
def test_the_last_file_decides_about_a_repeated_tensor(
    tmp_path: Path, loader: Loader, place: int
) -> None:
    folder = saved(tmp_path / "m", max_shard_size="20KB")
    name = "model.layers.3.mlp.up_proj.weight"
    path = sorted(folder.glob("*.safetensors"))[place]
    save_file({**load_file(path), name: torch.zeros(64, 32)}, path, {"format": "pt"})
    plain = AutoModelForCausalLM.from_pretrained(folder)
    saved(tmp_path / "same").joinpath("model.safetensors").unlink()
    plain.save_pretrained(tmp_path / "same")
    assert (
        loader(str(folder), device="cpu").fingerprint
        == load(str(tmp_path / "same"), device="cpu").fingerprint
    )


@BOTH
def test_an_index_may_leave_tensors_out(tmp_path: Path, loader: Loader) -> None:
    folder = saved(tmp_path / "m", max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"].popitem()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (
        loader(str(folder), device="cpu").fingerprint
        == load(str(saved(tmp_path / "n")), device="cpu").fingerprint
    )


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


QUANTISED = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@BOTH
def test_a_quantised_checkpoint_is_refused_before_its_weights_are_read(
    tmp_path: Path, loader: Loader
) -> None:
    folder = saved(tmp_path / "m")
    edited(folder / "config.json", quantization_config=QUANTISED)
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ModelError, match="quantised"):
        loader(str(folder), device="cpu")


@BOTH
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_numbers_that_no_config_explains_are_refused(
    tmp_path: Path, loader: Loader, dtype: torch.dtype
) -> None:
    folder = saved(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    save_file(
        {**weights, name: weights[name].to(dtype)}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match=f"holds {name} quantised"):
        loader(str(folder), device="cpu")


def test_how_weights_are_quantised_is_part_of_the_fingerprint() -> None:
    model = tiny()
    before = fingerprint(model)
    prints = {before}
    for skipped in (["lm_head"], ["lm_head", "model.layers.0"]):
        model.config.quantization_config = {
            "quant_method": "bitsandbytes",
            "llm_int8_skip_modules": skipped,
        }
        prints.add(fingerprint(model))
    assert len(prints) == 3
    model.config.quantization_config = None
    assert fingerprint(model) == before


def test_commands_that_read_headers_alone_read_the_same_files(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", max_shard_size="20KB")
    clean = take_inventory(str(folder))
    last = sorted(folder.glob("*.safetensors"))[-1]
    save_file({**load_file(last), "model.norm.weight": torch.zeros(32)}, last, {"format": "pt"})
    assert take_inventory(str(folder)) == clean, "a repeated tensor counts once"
    (folder / "adapter_config.json").write_text("{}")
    for command in (["analyze", str(folder)], ["plan", str(folder)]):
        with pytest.raises(ModelError, match=r"holds an adapter \(adapter_config.json\)"):
            CliRunner().invoke(cli, command, catch_exceptions=False)


def test_the_fingerprint_of_an_ordinary_model_stays(tiny_folder: Path) -> None:
    """Stored evaluations and studies are found by it: change it only where what it names
    changes.
    """
    model = tiny()
    plain = hashlib.sha256(json.dumps(numeric_config(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        plain.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        plain.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    assert (
        fingerprint(model) == plain.hexdigest() == load(str(tiny_folder), device="cpu").fingerprint
    )


def rewritten(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Path:
    """Change a folder's stored tensors."""
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@BOTH
def test_a_parameter_stored_under_two_names_must_be_one(tmp_path: Path, loader: Loader) -> None:
    folder = saved(tmp_path / "m")
    plain = loader(str(folder), device="cpu").fingerprint
    rewritten(folder, lambda w: {**w, "norm.weight": w["model.norm.weight"].clone()})
    assert loader(str(folder), device="cpu").fingerprint == plain
    rewritten(folder, lambda w: {**w, "norm.weight": w["model.norm.weight"] * 2})
    with pytest.raises(
        ModelError, match=r"holds model.norm.weight twice, as model.norm.weight and as norm.weight"
    ):
        loader(str(folder), device="cpu")


def test_memory_and_stream_agree_on_what_configs_leave_open(tmp_path: Path) -> None:
    tied = saved(tmp_path / "tied")
    edited(tied / "config.json", tie_word_embeddings=True)
    rewritten(tied, lambda w: {name: tensor for name, tensor in w.items() if name != EMBEDDING})
    untyped = rewritten(
        saved(tmp_path / "untyped"), lambda w: {name: tensor.half() for name, tensor in w.items()}
    )
    edited(untyped / "config.json", dtype=None)
    for folder in (tied, untyped):
        assert (
            load(str(folder), device="cpu").fingerprint
            == open_streamed(str(folder), device="cpu").fingerprint
        )
    assert load(str(untyped), device="cpu").model.dtype == torch.float16
