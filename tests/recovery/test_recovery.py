"""Finalists, and the whole way from a recipe to an evaluated, healed checkpoint."""

import json
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import cli
from prunesearch.config.recovery import Recovery
from prunesearch.errors import InputError, StorageError
from prunesearch.export import MANIFEST
from prunesearch.models.loading import LoadedModel, load
from prunesearch.pipeline import session
from prunesearch.recovery import HealRecipe, finalists
from prunesearch.recovery.finalists import diverse, rerank_by_healing
from tests.support.cli import run, run_json
from tests.support.models import N_LAYERS

SHORT: dict[str, Any] = {
    "loss": "distill", "steps": 4, "eval_every": 2, "batch_size": 2, "window": 32, "held_out_tokens": 128,
    "learning_rate": 1e-2,
}  # fmt: skip


def subset(*dropped: int) -> LayerSubset:
    return LayerSubset.of(N_LAYERS, dropped)


def test_finalists_differ_from_all_that_are_better() -> None:
    ranked = [subset(1, 2), subset(1, 3), subset(3, 4), subset(0, 5), subset(2, 3)]
    assert diverse(ranked, 3) == [subset(1, 2), subset(3, 4), subset(0, 5)]
    assert diverse(ranked, 9, distance=1) == ranked


def test_a_final_is_fair_and_leaves_the_dense_model(
    loaded: LoadedModel, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finalists, "FIT_TOKENS", 512)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    recipe = HealRecipe(data=str(prose), **SHORT)
    candidates = [subset(1), subset(3)]
    final = rerank_by_healing(loaded, candidates, recipe, references=tmp_path / "references")
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items()
    )
    assert {f.candidate for f in final} == set(candidates)
    assert final[0].healed <= final[1].healed
    assert {f.candidate: f.place for f in final} == {subset(1): 1, subset(3): 2}
    alone = rerank_by_healing(loaded, [subset(3)], recipe, references=tmp_path / "references")
    expected = next(f for f in final if f.candidate == subset(3))
    assert alone[0].healed == expected.healed, "who came before does not matter"


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"finalists": 3, "heal": None}, "told apart by healing"),
        ({"compensate": False, "heal": None}, "nothing is recovered"),
        ({"finalist": 3}, "finalists"),
    ],
)
def test_sections_that_make_no_sense_are_refused(section: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Recovery(**section)


@dataclass(frozen=True)
class Recovered:
    """What a recipe with recovery gave, then again, then as text; and `heal` of its study.

    Attributes:
        loads: how many models were loaded for the first run.
        blocks: of the healed checkpoint, as transformers loads it.
    """

    loads: int
    document: Any
    manifest: Any
    blocks: int
    repeated: Any
    shown_text: str
    chosen: Any


@pytest.fixture(scope="module")
def recovered(
    tiny_folder: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recovered]:
    models: list[weakref.ref[torch.nn.Module]] = []

    def load_and_count(name: str, **options: Any) -> LoadedModel:  # noqa: ANN401
        assert all(model() is None for model in models), "a model is held while another is loaded"
        found = load(name, **options)
        models.append(weakref.ref(found.model))
        return found

    folder = tmp_path_factory.mktemp("recovered")
    heal = "\n".join(f"    {name}: {value}" for name, value in {**SHORT, "data": prose}.items())
    (folder / "recipe.yaml").write_text(
        f"model: {tiny_folder}\nsearch: {{drop: 2}}\n"
        f"data: {{calibration: {prose}, tokens: 128, window: 32}}\n"
        f"recover:\n  finalists: 2\n  finalist_steps: 2\n  heal:\n{heal}\n"
        f"  evaluate:\n    calibration: {prose}\n    tokens: 64\n"
    )
    words = ["run", "recipe.yaml", "--out", "healed", "--trials", "8", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(finalists, "FIT_TOKENS", 512)
        with pytest.MonkeyPatch.context() as counted:
            counted.setattr(session, "load", load_and_count)
            document = run_json(*words)
        final = "--finalists 2 --finalist-steps 2 --compensate --loss distill --lr 1e-2"
        small = "--steps 4 --eval-every 2 --batch-size 2 --window 32 --held-out-tokens 128"
        small += " --out other --device cpu"
        yield Recovered(
            loads=len(models),
            document=document,
            manifest=json.loads(Path("healed", MANIFEST).read_text()),
            blocks=AutoModelForCausalLM.from_pretrained("healed").config.num_hidden_layers,
            repeated=run_json(*words),
            shown_text=run(*words).stdout,
            chosen=run_json(
                "heal", document["study"], "--data", prose, *final.split(), *small.split()
            ),
        )


def test_the_dense_and_the_healed_model_are_loaded_once(recovered: Recovered) -> None:
    assert recovered.loads == 2


def test_the_first_of_the_finalists_is_healed(recovered: Recovered) -> None:
    document = recovered.document
    assert len(document["finalists"]) == 2
    assert document["dropped"] == document["finalists"][0]["candidate"]
    assert document["healed"]["steps"] == 4


def test_the_healed_checkpoint_is_evaluated(recovered: Recovered) -> None:
    assert recovered.document["evaluation"]["metrics"]["perplexity"] > 1


def test_the_manifest_tells_of_healing_and_names_no_folder(recovered: Recovered) -> None:
    assert recovered.manifest["changed"][-1] == "healed"
    assert "work" not in recovered.manifest["recovery"]


def test_the_healed_checkpoint_loads_without_the_dropped_blocks(recovered: Recovered) -> None:
    assert recovered.blocks == N_LAYERS - 2


def test_a_recipe_that_runs_again_computes_nothing(recovered: Recovered) -> None:
    repeated = recovered.repeated
    assert repeated["export"] is None
    assert repeated["computed"] == 0
    assert repeated["evaluation"]["cached"]


def test_finalists_and_the_export_that_is_kept_are_shown(recovered: Recovered) -> None:
    assert "Finalists" in recovered.shown_text
    assert "holds this very export already" in recovered.shown_text


def test_heal_knows_the_finalists_that_a_recipe_healed(recovered: Recovered) -> None:
    assert recovered.chosen["finalists"] == recovered.document["finalists"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--finalists 3 --layers 1", "are a study's best: give STUDY"),
        ("--finalist-steps 3 --layers 1", "goes with --finalists N"),
        ("--tune-steps 30 --layers 1", "goes with --tune N"),
        ("--finalists 0", "finalists"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    words: str, complaint: str, tiny_folder: Path
) -> None:
    with pytest.raises(InputError, match=complaint):
        CliRunner().invoke(
            cli, ["heal", str(tiny_folder), "--out", "out", *words.split()], catch_exceptions=False
        )


def test_what_cannot_be_compensated_is_healed(
    tiny_folder: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finalists, "FIT_TOKENS", 512)
    small = "--steps 2 --eval-every 2 --batch-size 2 --window 32 --held-out-tokens 128 --device cpu"
    words = f"heal {tiny_folder} --layers 0 --compensate --data {prose} --out out {small}"
    result = CliRunner().invoke(cli, words.split())
    assert result.exit_code == 0, result.output
    assert "not compensated: dropping layer 0 leaves no gap" in result.stderr
    assert json.loads(Path("out", MANIFEST).read_text())["changed"] == ["healed"]
    (tmp_path / "taken").write_text("no folder")
    other = words.replace("--layers 0", "--layers 1").replace(
        "--out out", "--out two --cache taken/cache"
    )
    assert isinstance(CliRunner().invoke(cli, other.split()).exception, StorageError)
