"""Sublayer forms, GGUF, second verification, hub, and the same said to other programs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, RunError, VerificationError
from prunesearch.export import checkpoint, elsewhere, export, gguf_edit, hub, recheck
from prunesearch.model.loading import LoadedModel, load
from prunesearch.model.surgery import pruned
from tests.conftest import N_LAYERS

BLOCKS = LayerSubset.of(N_LAYERS, (0, 3))
SUBLAYERS = LayerSubset.of(N_LAYERS, (2,), attention=(4,), mlp=(1,))
IDS = torch.arange(1, 20)[None]


@pytest.mark.parametrize("form", ["zeroed", "deci", "remote-code"])
@torch.inference_mode()
def test_sublayers_are_exported_in_each_form(form: str, loaded: LoadedModel, tmp_path: Path) -> None:
    made = export(loaded, SUBLAYERS, tmp_path / "out", form=form)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=form != "zeroed")
    with pruned(loaded.model, SUBLAYERS) as candidate:
        torch.testing.assert_close(reloaded(IDS).logits, candidate(IDS).logits, rtol=1e-4, atol=1e-4)
    saved = loaded.sizes.params(SUBLAYERS)
    whole = loaded.sizes.params(LayerSubset.of(N_LAYERS, SUBLAYERS.dropped))
    assert made.params == whole if form == "zeroed" else saved <= made.params < whole
    if form != "zeroed":
        with pytest.raises(InputError, match="--trust-remote-code"):
            recheck(tmp_path / "out")
    recheck(tmp_path / "out", trust_remote_code=form != "zeroed")


def test_sublayers_have_no_place_in_a_plain_export(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--as"):
        export(loaded, SUBLAYERS, tmp_path / "out")
    with pytest.raises(InputError, match="vLLM needs attention in the first block"):
        export(loaded, LayerSubset.of(N_LAYERS, attention=(0,)), tmp_path / "out", form="deci")
    assert list(tmp_path.iterdir()) == []


def test_shards_are_balanced_and_indexed(loaded: LoadedModel, tmp_path: Path) -> None:
    made = export(loaded, BLOCKS, tmp_path / "out", max_shard=60_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    assert all((tmp_path / "out" / shard).stat().st_size < 80_000 for shard in shards)
    assert made.bytes == index["metadata"]["total_size"]


def test_a_second_verification_finds_what_has_changed(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(loaded, BLOCKS, out)
    found = recheck(out, loaded)
    assert found["difference"] < 1e-4
    assert found["against_base"]["prefill_difference"] < 1e-4
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(VerificationError, match="its files have changed"):
        recheck(out)
    (out / "config.json").write_text(json.dumps(config))
    weights = load_file(out / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=r"model\.norm\.weight .*is not what was written"):
        recheck(out)
    with pytest.raises(InputError, match="not an export"):
        recheck(tmp_path)


@pytest.mark.parametrize(
    ("family", "field", "stale"),
    [
        ("gemma2", "layer_types", ["full_attention"] * 4),
        ("smollm3", "no_rope_layers", [1, 1, 1, 1]),
        ("smollm3", "no_rope_layers", [0, 1, 1, 0]),
    ],
)
def test_a_stale_config_is_caught(
    family: str,
    field: str,
    stale: list[object],
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def planted(*args: object, **kwargs: object) -> PreTrainedModel:
        folder = args[0]
        assert isinstance(folder, Path)
        config = json.loads((folder / "config.json").read_text())
        assert config[field] != stale
        (folder / "config.json").write_text(json.dumps({**config, field: stale}))
        return reload(*args, **kwargs)  # type: ignore[arg-type]

    loaded = load(str(make_model(family)))
    reload = checkpoint.reload
    monkeypatch.setattr(checkpoint, "reload", planted)
    with pytest.raises(VerificationError, match="differs from the scored candidate"):
        export(loaded, BLOCKS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_llama_cpps_periods_are_kept_or_refused() -> None:
    gguf_edit.check_architecture("llama", BLOCKS)
    gguf_edit.check_architecture("gemma2", LayerSubset.of(N_LAYERS, (2, 3)))
    with pytest.raises(InputError, match="periods of 2"):
        gguf_edit.check_architecture("gemma2", LayerSubset.of(N_LAYERS, (3,)))
    with pytest.raises(InputError, match="does not know it"):
        gguf_edit.check_architecture("unheard-of", BLOCKS)


def test_other_programs_are_told_the_same() -> None:
    slices = yaml.safe_load(elsewhere.say("mergekit", "org/model", BLOCKS, "bfloat16"))["slices"]
    assert [s["sources"][0]["layer_range"] for s in slices] == [[1, 3], [4, 6]]
    assert "--prune-layers 0,3 m.gguf" in elsewhere.say("llama-quantize", "m.gguf", BLOCKS, "bfloat16")
    with pytest.raises(InputError, match="whole blocks only"):
        elsewhere.say("mergekit", "org/model", SUBLAYERS, "bfloat16")


class _Api:
    """The hub's double."""

    def __init__(self, works: bool) -> None:
        self.works, self.calls = works, []  # type: ignore[var-annotated]

    def create_repo(self, name: str, **settings: object) -> None:
        self.calls.append((name, settings["private"]))

    def upload_folder(self, **settings: object) -> str:
        if not self.works:
            raise OSError("no route to host")
        self.calls.append(settings["folder_path"])
        return "https://hub/commit"


def test_an_export_is_uploaded_to_a_private_repository(tmp_path: Path) -> None:
    api = _Api(works=True)
    assert hub.push(tmp_path, "me/model", "0,3", api) == "https://hub/commit"  # type: ignore[arg-type]
    assert api.calls == [("me/model", True), tmp_path]
    with pytest.raises(RunError, match="exported and verified, but could not be uploaded"):
        hub.push(tmp_path, "me/model", "0,3", _Api(works=False))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="OWNER/NAME"):
        hub.check_name("model")
