"""Code that ships with a model runs, and goes along, only if the user trusts it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import cli
from prunesearch.cli.recipe_files import read_recipe
from prunesearch.errors import InputError, ModelError
from prunesearch.export import export, recheck
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.streaming import open_streamed
from tests.support.models import N_LAYERS, byte_tokenizer, tiny

SUBSET = LayerSubset.of(N_LAYERS, (1, 4))
CONFIG_CODE = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODEL_CODE = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.logits = found.logits * FACTOR
        return found
"""


def edited(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A stock Llama whose configs name code, and the file that this code makes when it runs."""
    folder = tmp_path_factory.mktemp("marked") / "model"
    tiny().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    mark = folder.parent / "ran"
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nraise AttributeError('too old')\n"
    )
    edited(
        folder / "config.json",
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "stranger/code--evil.M"},
        custom_pipelines={"text-generation": {"impl": "evil.P", "pt": ["AutoModelForCausalLM"]}},
        of_the_maker={"auto_map": {"AutoConfig": "evil.C"}},
    )
    edited(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.T"]})
    return folder, mark


SMALL = "--tokens 256 --window 64 --held-out-tokens 128"
TRAINING = "--steps 1 --batch-size 1 --window 32 --held-out-tokens 64 --run-folder work"


@pytest.mark.parametrize(
    "words",
    [
        "export MODEL --layers 1 --out out",
        "export MODEL --layers 1 --out out --offload disk",
        "export MODEL --layers 1a --as zeroed --out out",
        "export MODEL --layers 1a --as remote-code --out out",
        f"compensate MODEL --layers 1 --out out --calibration TEXT {SMALL} --cache cache",
        f"heal MODEL --layers 1 --out out --data TEXT {TRAINING} --cache cache",
        "run RECIPE --trials 1 --out out --cache cache",
    ],
    ids="export stream zeroed remote-code compensate heal run".split(),
)
def test_code_that_is_not_trusted_neither_runs_nor_goes_along(
    words: str,
    marked: tuple[Path, Path],
    prose: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, mark = marked
    recipe = f"model: {folder}\ndrop: 1\ncalibration: {prose}\ntokens: 128\nwindow: 64\nsampler: random\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    names = {"MODEL": str(folder), "TEXT": str(prose), "RECIPE": "recipe.yaml"}
    done = CliRunner().invoke(
        cli, [*(names.get(word, word) for word in words.split()), "--device", "cpu"]
    )
    assert not mark.exists()
    assert done.exit_code == 0, done.output
    assert [path.name for path in Path("out").rglob("*.py")] == (
        ["modeling_pruned.py"] if "remote" in words else []
    )
    assert "evil" not in "".join(path.read_text() for path in Path("out").glob("*.json"))


def test_a_recipe_file_cannot_trust_for_the_user(
    marked: tuple[Path, Path], prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, mark = marked
    recipe = f"model: {folder}\ndrop: 1\ncalibration: {prose}\ntrust_remote_code: yes\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    done = CliRunner().invoke(cli, ["run", "recipe.yaml", "--out", "out", "--cache", "cache"])
    assert isinstance(done.exception, InputError)
    assert "add --trust-remote-code" in str(done.exception)
    assert not mark.exists()
    assert (
        read_recipe(Path("recipe.yaml"), {"trust_remote_code": True}, ())
        .recipes[0]
        .model.trust_remote_code
    )


def test_verification_trusts_nothing_by_itself(marked: tuple[Path, Path], tmp_path: Path) -> None:
    folder, mark = marked
    out = tmp_path / "out"
    export(load(str(folder), device="cpu"), SUBSET, out)
    (out / "evil.py").write_bytes((folder / "evil.py").read_bytes())
    edited(out / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    recheck(out)
    assert not mark.exists()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a type that only its own code knows."""
    folder = tmp_path_factory.mktemp("own") / "model"
    tiny().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "configuration_own.py").write_text(CONFIG_CODE)
    (folder / "modeling_own.py").write_text(MODEL_CODE.replace("FACTOR", "2"))
    (folder / "tools").mkdir()
    (folder / "tools" / "nested.py").write_text("")
    code = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
    }
    edited(folder / "config.json", auto_map=code, model_type="own", architectures=["OwnModel"])
    return folder


@pytest.mark.parametrize("loader", [load, open_streamed], ids=["memory", "stream"])
def test_trusted_code_goes_along_and_is_named(
    loader: Callable[..., LoadedModel], own: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(loader(str(own), device="cpu", trust_remote_code=True), SUBSET, out)
    assert {"configuration_own.py", "modeling_own.py", "nested.py"} == {
        path.name for path in out.rglob("*.py")
    }
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    with pytest.raises(InputError, match="`trust_remote_code`"):
        recheck(out)
    recheck(out, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert model.config.num_hidden_layers == N_LAYERS - 2


@pytest.mark.parametrize("loader", [load, open_streamed], ids=["memory", "stream"])
def test_a_type_of_its_own_is_refused_without_trust(
    loader: Callable[..., LoadedModel], own: Path
) -> None:
    with pytest.raises(ModelError, match="read that code, then add `trust_remote_code`") as raised:
        loader(str(own), device="cpu")
    assert "\n" not in str(raised.value)


def test_own_code_cannot_be_built_upon(own: Path, tmp_path: Path) -> None:
    trusted = load(str(own), device="cpu", trust_remote_code=True)
    with pytest.raises(InputError, match="runs code of its own"):
        export(
            trusted,
            LayerSubset.of(N_LAYERS, attention=(2,)),
            tmp_path / "out",
            export_format="remote-code",
        )


@pytest.mark.parametrize("words", [["--print", "mergekit"], ["--gguf", "--out", "own.gguf"]])
def test_other_programs_do_not_know_own_code(words: list[str], own: Path) -> None:
    given = ["export", str(own), "--layers", "1", "--device", "cpu", "--trust-remote-code", *words]
    with pytest.raises(InputError, match="runs code of its own, which other programs do not know"):
        CliRunner().invoke(cli, given, catch_exceptions=False)


def test_the_fingerprint_sees_code_that_computes(own: Path, tmp_path: Path) -> None:
    def copied(name: str, factor: str) -> LoadedModel:
        folder = tmp_path / name
        folder.mkdir()
        for path in own.iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        (folder / "modeling_own.py").write_text(MODEL_CODE.replace("FACTOR", factor))
        return load(str(folder), device="cpu", trust_remote_code=True)

    first = load(str(own), device="cpu", trust_remote_code=True)
    same, other = copied("same", "2"), copied("other", "3")
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert (
        open_streamed(str(own), device="cpu", trust_remote_code=True).fingerprint
        == first.fingerprint
    )
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        assert torch.allclose(first.model(ids).logits * 1.5, other.model(ids).logits)
