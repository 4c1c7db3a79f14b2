"""Narrow layers are healed as whole ones are: trained, merged, resumed, exported, restored."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunesearch.config.recovery import Tuning
from prunesearch.errors import InputError
from prunesearch.events import Event, HealProgress, subscribed
from prunesearch.export import export, recheck
from prunesearch.models import reordering
from prunesearch.models.fingerprint import fingerprint
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.surgery import pruned
from prunesearch.models.width_shape import width_shape_of
from prunesearch.recovery import HealRecipe, finalists, heal, weights_restored
from prunesearch.recovery.compensation import compensate, fit_and_held_out
from prunesearch.recovery.finalists import diverse, rerank_by_healing
from prunesearch.recovery.training_checkpoints import newest_checkpoint
from prunesearch.recovery.training_data import sequences_of
from prunesearch.recovery.tuning import tune
from prunesearch.widths.layer_widths import LayerWidths
from tests.support.widths import order_for, random_widths

TEXT = "0:40/2,1:64/1,2:24/1,4,5:50/2"
IDS = torch.arange(1, 20)[None]


def candidate_of(loaded: LoadedModel, biases: bool = True, text: str = TEXT) -> LayerWidths:
    """A candidate, whose order the model's channels are put in."""
    order = order_for(loaded.model, biases)
    reordering.reorder(loaded.model, order)
    return LayerWidths.read(text, width_shape_of(loaded.model), order.digest, biases)


@torch.inference_mode()
def logits(loaded: LoadedModel, candidate: LayerWidths) -> torch.Tensor:
    with pruned(loaded.model, candidate) as model:
        found: torch.Tensor = model(IDS, use_cache=False).logits
        return found


@pytest.mark.parametrize(("loss", "biases"), [("lm", False), ("distill", True)])
def test_the_loss_falls_and_the_weights_are_healed(
    loss: str, biases: bool, loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    candidate = candidate_of(loaded, biases)
    before = loaded.model.state_dict()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    dense = logits(loaded, candidate)
    wanted = recipe.model_copy(update={"loss": loss, "steps": 24, "eval_every": 12})
    with weights_restored(loaded, [candidate]):
        healed = heal(loaded, candidate, wanted, tmp_path / "work")
        assert healed.watched < 0.95 * healed.watched_loss[0][1]  # type: ignore[operator]
        assert healed.merge_difference < 1e-3
        ids_BL = sequences_of(wanted, loaded.tokenizer).held_out_BL
        with pruned(loaded.model, candidate) as model, torch.no_grad():
            loss_now = float(model(input_ids=ids_BL, labels=ids_BL).loss)
        assert loss_now == pytest.approx(healed.after, abs=1e-4)
        # Columns that the candidate removes, and blocks that it drops, are not trained.
        for name, first in (("0.mlp.down_proj", 40), ("4.mlp.down_proj", 0)):
            name = f"model.layers.{name}.weight"
            assert torch.equal(loaded.model.get_parameter(name)[:, first:], kept[name][:, first:])
        assert loaded.content != loaded.fingerprint
        # A finished run is merged again into the dense weights, without training.
        found = logits(loaded, candidate)
    assert torch.equal(logits(loaded, candidate), dense)
    assert all(torch.equal(kept[name], now) for name, now in loaded.model.state_dict().items())
    again = heal(loaded, candidate, wanted, tmp_path / "work")
    assert again.cached
    assert torch.equal(logits(loaded, candidate), found)


def test_16_bit_weights_are_trained_wide(
    tiny_folder: Path, recipe: HealRecipe, tmp_path: Path
) -> None:
    loaded = load(str(tiny_folder), dtype="bfloat16", device="cpu")
    candidate = candidate_of(loaded)
    before = logits(loaded, candidate)
    wide = recipe.model_copy(update={"precision": "float32"})
    healed = heal(loaded, candidate, wide, tmp_path / "work")
    assert healed.after < healed.before
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert (logits(loaded, candidate) - before).abs().max() > 0.1
    ids_BL = sequences_of(wide, loaded.tokenizer).held_out_BL
    with pruned(loaded.model, candidate) as model, torch.no_grad():
        loss = float(model(input_ids=ids_BL, labels=ids_BL).loss)
    assert loss == pytest.approx(healed.after, abs=0.05)


def test_an_interrupted_run_goes_on_exactly(
    tiny_folder: Path, recipe: HealRecipe, tmp_path: Path
) -> None:
    shaken = recipe.model_copy(update={"dropout": 0.2, "eval_every": 2, "accumulation": 2})

    def interrupt(event: Event) -> None:
        if isinstance(event, HealProgress) and event.done == 7:
            raise KeyboardInterrupt

    loaded = load(str(tiny_folder), device="cpu")
    with pytest.raises(KeyboardInterrupt), subscribed(interrupt):
        heal(loaded, candidate_of(loaded), shaken, tmp_path / "stopped")
    last = newest_checkpoint(tmp_path / "stopped")
    assert last is not None and last.name == "checkpoint-6"
    runs = []
    for folder in ("stopped", "whole"):
        loaded = load(str(tiny_folder), device="cpu")
        runs.append(heal(loaded, candidate_of(loaded), shaken, tmp_path / folder))
    resumed, whole = runs
    assert (resumed.resumed_from, whole.resumed_from) == (6, 0)
    for name in ("training_loss", "held_out_loss"):
        torch.testing.assert_close(
            torch.tensor(getattr(resumed, name)),
            torch.tensor(getattr(whole, name)),
            rtol=0,
            atol=1e-4,
        )


def test_a_run_of_another_order_is_another_run(
    loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    heal(loaded, candidate_of(loaded), recipe, tmp_path / "work")
    with pytest.raises(InputError, match="belongs to another run"):
        heal(loaded, candidate_of(loaded, biases=False), recipe, tmp_path / "work")


@pytest.mark.parametrize("export_format", ["widths", "zeroed"])
def test_what_is_exported_is_compensated_and_healed(
    export_format: str, loaded: LoadedModel, recipe: HealRecipe, prose: Path, tmp_path: Path
) -> None:
    candidate = candidate_of(loaded, biases=export_format == "widths")
    text = fit_and_held_out(loaded.tokenizer, str(prose), 1024, 64, None, 256)
    before = logits(loaded, candidate)
    done = compensate(loaded, candidate, *text)
    assert done.helped
    heal(loaded, candidate, recipe, tmp_path / "work")
    expected = logits(loaded, candidate)
    assert (expected - before).abs().max() > 0.1
    out = tmp_path / "out"
    changed = ("compensated", "healed")
    export(loaded, candidate, out, export_format=export_format, changed=changed)
    found = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(found(IDS).logits, expected, rtol=0, atol=1e-4)
    assert recheck(out, None, trust_remote_code=True).folder == out


def test_finalists_that_narrow_layers_differ_in_what_they_remove(loaded: LoadedModel) -> None:
    first = candidate_of(loaded, text="0:40/2,1:40/2")
    near = candidate_of(loaded, text="0:39/2,1:41/2")
    far = candidate_of(loaded, text="2:40/2,3:40/2")
    assert diverse([first, near, far], 3) == [first, far]


def test_a_final_of_widths_is_fair_and_leaves_the_dense_model(
    loaded: LoadedModel, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finalists, "FIT_TOKENS", 512)
    order = order_for(loaded.model, True)
    reordering.reorder(loaded.model, order)
    candidates = [random_widths(loaded.model, order, seed) for seed in (1, 2)]
    recipe = HealRecipe(
        data=str(prose), loss="distill", steps=4, eval_every=2, batch_size=2, window=32,
        held_out_tokens=128, learning_rate=1e-2,
    )  # fmt: skip
    references = tmp_path / "references"
    final = rerank_by_healing(loaded, candidates, recipe, references=references)
    assert {found.candidate for found in final} == set(candidates)
    assert all(found.compensated is not None for found in final)
    alone = rerank_by_healing(loaded, candidates[1:], recipe, references=references)
    expected = next(found for found in final if found.candidate == candidates[1])
    assert alone[0].healed == expected.healed, "who came before does not matter"
    with reordering.in_own_order(loaded.model):
        assert fingerprint(loaded.model) == loaded.fingerprint


def test_hyper_parameters_of_narrow_layers_are_searched(
    loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    candidate = candidate_of(loaded)
    wanted = Tuning(trials=2, steps=4, batch_size=(2, 4), rank=(2, 4), learning_rate=(1e-4, 3e-2))
    storage, folder = f"sqlite:///{tmp_path}/study.db", tmp_path / "work"
    found = tune(loaded, candidate, recipe, wanted, storage, run_folders=folder)
    assert found.computed == 2
    with reordering.in_own_order(loaded.model):
        assert fingerprint(loaded.model) == loaded.fingerprint
