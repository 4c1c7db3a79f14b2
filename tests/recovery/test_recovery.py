"""Finalists, and the whole way from a recipe to an evaluated, healed checkpoint."""

import json
import weakref
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


def test_one_recipe_does_all_of_it_once(
    tiny_folder: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finalists, "FIT_TOKENS", 512)
    recipe = tmp_path / "recipe.yaml"
    heal = "\n".join(f"    {name}: {value}" for name, value in {**SHORT, "data": prose}.items())
    recipe.write_text(
        f"model: {tiny_folder}\nsearch: {{drop: 2}}\n"
        f"data: {{calibration: {prose}, tokens: 128, window: 32}}\n"
        f"recover:\n  finalists: 2\n  finalist_steps: 2\n  heal:\n{heal}\n"
        f"  evaluate:\n    calibration: {prose}\n    tokens: 64\n"
    )
    models: list[weakref.ref[torch.nn.Module]] = []

    def load_and_count(name: str, **options: Any) -> LoadedModel:  # noqa: ANN401
        assert all(model() is None for model in models), "a model is held while another is loaded"
        found = load(name, **options)
        models.append(weakref.ref(found.model))
        return found

    monkeypatch.setattr(session, "load", load_and_count)
    words = ["run", str(recipe), "--out", "healed", "--trials", "8", "--device", "cpu", "--json"]
    first = CliRunner().invoke(cli, words)
    assert first.exit_code == 0, (first.output, first.exception)
    assert len(models) == 2, "the dense model once, and the healed one for its evaluation"
    document = json.loads(first.stdout)
    assert len(document["finalists"]) == 2
    assert document["dropped"] == document["finalists"][0]["candidate"]
    assert document["healed"]["steps"] == 4
    assert document["evaluation"]["metrics"]["perplexity"] > 1
    told = json.loads((tmp_path / "healed" / MANIFEST).read_text())
    assert told["changed"][-1] == "healed"
    assert "work" not in told["recovery"], "no folder of this machine travels"
    assert AutoModelForCausalLM.from_pretrained("healed").config.num_hidden_layers == N_LAYERS - 2
    monkeypatch.setattr(session, "load", load)
    again = CliRunner().invoke(cli, words)
    assert again.exit_code == 0, again.output
    repeated = json.loads(again.stdout)
    assert repeated["export"] is None
    assert repeated["computed"] == 0
    assert repeated["evaluation"]["cached"]
    shown = CliRunner().invoke(cli, words[:-1])
    assert "Finalists" in shown.stdout
    assert "holds this very export already" in shown.stdout
    final = f"heal {document['study']} --finalists 2 --finalist-steps 2 --compensate --data {prose} --loss distill"
    small = "--steps 4 --eval-every 2 --batch-size 2 --window 32 --held-out-tokens 128 --lr 1e-2"
    small += " --out other --device cpu"
    chosen = CliRunner().invoke(cli, [*final.split(), *small.split(), "--json"])
    assert chosen.exit_code == 0, chosen.output
    assert json.loads(chosen.stdout)["finalists"] == document["finalists"], (
        "what was healed is known"
    )


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
    assert "not compensated: dropping layers 0 leaves no gap" in result.stderr
    assert json.loads(Path("out", MANIFEST).read_text())["changed"] == ["healed"]
    (tmp_path / "taken").write_text("no folder")
    other = words.replace("--layers 0", "--layers 1").replace(
        "--out out", "--out two --cache taken/cache"
    )
    assert isinstance(CliRunner().invoke(cli, other.split()).exception, StorageError)
