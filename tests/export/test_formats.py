"""Sublayer forms, GGUF, second verification, hub, and the same said to other programs."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import cli
from prunesearch.errors import InputError, RunError, VerificationError
from prunesearch.export import export, gguf_edit, hub, recheck, reloading
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.surgery import pruned
from tests.support.models import N_LAYERS

BLOCKS = LayerSubset.of(N_LAYERS, (0, 3))
SUBLAYERS = LayerSubset.of(N_LAYERS, (2,), attention=(4,), mlp=(1,))
IDS = torch.arange(1, 20)[None]


@pytest.mark.parametrize("export_format", ["zeroed", "deci", "remote-code"])
@torch.inference_mode()
def test_sublayers_are_exported_in_each_format(
    export_format: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    made = export(loaded, SUBLAYERS, tmp_path / "out", export_format=export_format)
    reloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=export_format != "zeroed"
    )
    with pruned(loaded.model, SUBLAYERS) as candidate:
        torch.testing.assert_close(
            reloaded(IDS).logits, candidate(IDS).logits, rtol=1e-4, atol=1e-4
        )
    saved = loaded.sizes.params(SUBLAYERS)
    whole = loaded.sizes.params(LayerSubset.of(N_LAYERS, SUBLAYERS.dropped))
    assert made.params == whole if export_format == "zeroed" else saved <= made.params < whole
    if export_format != "zeroed":
        said = rf"\(export format {export_format}\) runs code .* `trust_remote_code`"
        with pytest.raises(InputError, match=said):
            recheck(tmp_path / "out")
    recheck(tmp_path / "out", trust_remote_code=export_format != "zeroed")


@pytest.mark.parametrize("export_format", ["zeroed", "deci", "remote-code"])
def test_an_export_without_sublayers_can_lose_blocks(
    export_format: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    first = LayerSubset.of(N_LAYERS, attention=(4,), mlp=(1,))
    export(loaded, first, tmp_path / "first", export_format=export_format)
    trusted = export_format != "zeroed"
    assert (
        "transformers 5 or newer" in (tmp_path / "first" / "README.md").read_text() or not trusted
    )
    again = load(str(tmp_path / "first"), device="cpu", trust_remote_code=trusted)
    export(again, LayerSubset.of(N_LAYERS, (0,)), tmp_path / "second")
    recheck(tmp_path / "second", trust_remote_code=trusted)
    both = load(str(tmp_path / "second"), device="cpu", trust_remote_code=trusted)
    with (
        torch.inference_mode(),
        pruned(loaded.model, LayerSubset.of(N_LAYERS, (0,), attention=(4,), mlp=(1,))) as wanted,
    ):
        torch.testing.assert_close(both.model(IDS).logits, wanted(IDS).logits, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    if trusted:
        assert (config["dropped_attention"], config["dropped_mlp"]) == ([3], [0])
    if export_format == "deci":
        assert len(config["block_configs"]) == N_LAYERS - 1


def test_sublayers_have_no_place_in_a_plain_export(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`export_format`"):
        export(loaded, SUBLAYERS, tmp_path / "out")
    with pytest.raises(InputError, match="vLLM needs attention in the first block"):
        export(
            loaded, LayerSubset.of(N_LAYERS, attention=(0,)), tmp_path / "out", export_format="deci"
        )
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
    assert found.difference < 1e-4
    assert found.against_base is not None
    assert found.against_base.prefill_difference < 1e-4
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
    ("architecture", "field", "stale"),
    [
        ("gemma2", "layer_types", ["full_attention"] * 4),
        ("smollm3", "no_rope_layers", [1, 1, 1, 1]),
        ("smollm3", "no_rope_layers", [0, 1, 1, 0]),
    ],
)
def test_a_stale_config_is_caught(
    architecture: str,
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

    loaded = load(str(make_model(architecture)))
    reload = reloading.reload
    monkeypatch.setattr(reloading, "reload", planted)
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


class _Api:
    """The hub's double.

    Args:
        private: of the repository; None where there is none.
        fails: what its network raises, from which call on.
    """

    def __init__(
        self, private: bool | None = None, fails: Exception | None = None, at: str = ""
    ) -> None:
        self.private, self.fails, self.at = private, fails, at
        self.calls: list[object] = []
        self.role = "write"

    def _reached(self, call: str) -> None:
        self.calls.append(call)
        if self.fails is not None and self.at == call:
            raise self.fails

    def whoami(self) -> dict[str, Any]:
        self._reached("whoami")
        return {
            "name": "me",
            "orgs": [{"name": "us"}],
            "auth": {"accessToken": {"role": self.role}},
        }

    def repo_info(self, name: str, repo_type: str) -> object:
        self._reached("repo_info")
        if self.private is None:
            raise RepositoryNotFoundError("404", response=httpx_response())
        return SimpleNamespace(private=self.private)

    def create_repo(self, name: str, **settings: object) -> None:
        self._reached("create_repo")
        if self.private is None:
            self.private = bool(settings["private"])

    def upload_folder(self, **settings: object) -> str:
        self._reached("upload_folder")
        return "https://hub/commit"


def httpx_response() -> Any:  # noqa: ANN401
    return SimpleNamespace(headers={}, request=None, status_code=404)


class _NoRouteError(Exception):
    """As of an HTTP library: no OSError."""


def test_an_export_is_uploaded_to_a_private_repository(tmp_path: Path) -> None:
    for api in (_Api(), _Api(private=True)):
        hub.check_access("me/model", tmp_path, False, api)  # type: ignore[arg-type]
        assert hub.push(tmp_path, "me/model", "0,3", api) == "https://hub/commit"  # type: ignore[arg-type]
        assert api.private
    hub.check_access("us/model", tmp_path, False, api)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="who is not in 'them'"):
        hub.check_access("them/model", tmp_path, False, api)  # type: ignore[arg-type]
    api.role = "read"
    with pytest.raises(InputError, match="may read only"):
        hub.check_access("me/model", tmp_path, False, api)  # type: ignore[arg-type]
    for name in ("model", "me/", "me/a b", "me/--x", "a/b/c"):
        with pytest.raises(InputError, match="is not a repository"):
            hub.check_name(name)


def test_nothing_is_uploaded_to_a_public_repository_unasked(tmp_path: Path) -> None:
    api = _Api(private=False)
    with pytest.raises(InputError, match="add `public`"):
        hub.check_access("me/model", tmp_path, False, api)  # type: ignore[arg-type]
    with pytest.raises(
        RunError, match=r"is exported and verified, but could not be uploaded .*`public`"
    ):
        hub.push(tmp_path, "me/model", "0,3", api)  # type: ignore[arg-type]
    assert "upload_folder" not in api.calls
    hub.check_access("me/model", tmp_path, True, api)  # type: ignore[arg-type]
    hub.push(tmp_path, "me/model", "0,3", api, public=True)  # type: ignore[arg-type]
    assert api.calls[-1] == "upload_folder"


@pytest.mark.parametrize(
    "error", [OSError("no route"), _NoRouteError("no route"), RuntimeError("header hf_s3cret")]
)
def test_a_hub_that_cannot_be_reached_is_one_line_before_and_after_the_export(
    error: Exception,
) -> None:
    for at in ("whoami", "repo_info"):
        with pytest.raises(
            InputError, match=r"nothing was exported: .*hf upload --private me/model 'my out'"
        ) as told:
            hub.check_access("me/model", Path("my out"), False, _Api(fails=error, at=at))  # type: ignore[arg-type]
        assert "s3cret" not in str(told.value)
    for at in ("create_repo", "upload_folder"):
        with pytest.raises(
            RunError, match=r"is exported and verified, but .*hf upload --private me/model 'my out'"
        ):
            hub.push(Path("my out"), "me/model", "0,3", _Api(fails=error, at=at))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="hf auth login"):
        hub.check_access(
            "me/model",
            Path(),
            False,
            _Api(fails=LocalTokenNotFoundError("none"), at="whoami"),  # type: ignore[arg-type]
        )


def test_without_network_nothing_is_exported(tiny_folder: Path, tmp_path: Path) -> None:
    words = [
        "export",
        str(tiny_folder),
        "--layers",
        "3",
        "--out",
        str(tmp_path / "out"),
        "--push-to-hub",
        "me/x",
    ]
    result = CliRunner(env={"HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_x"}).invoke(cli, words)
    assert isinstance(result.exception, InputError)
    assert "nothing was exported" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{}", "[]", "null", "{", '{"form": "plain"}', "[" * 50_000])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, content: str) -> None:
    for name in ("prunesearch.json", "verification.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(VerificationError, match=r"prunesearch.json' is damaged") as caught:
        recheck(tmp_path)
    assert "\n" not in str(caught.value)
