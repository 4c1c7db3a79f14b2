"""A pruned model gets better, whatever happens on the way, and what is written is what was
trained.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import cli
from prunesearch.errors import (
    DataError,
    InputError,
    StorageError,
    VerificationError,
)
from prunesearch.events import Event, HealFinished, HealOpened, subscribed
from prunesearch.export import export
from prunesearch.models.fingerprint import fingerprint
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.surgery import pruned
from prunesearch.recovery import (
    HealRecipe,
    heal,
    losses,
    run_folder,
    training,
    weights_restored,
)
from prunesearch.recovery.healing import carry_out, plan_healing
from prunesearch.recovery.lora import adapted, target_names
from prunesearch.recovery.loss_history import LossHistory
from prunesearch.recovery.teacher import Teacher
from prunesearch.recovery.training_checkpoints import newest_checkpoint
from prunesearch.recovery.training_data import packed, sequences_of
from prunesearch.runtime.json_values import to_json
from tests.support.models import N_LAYERS, store_head_apart
from tests.support.paths import REPOSITORY

CANDIDATE = LayerSubset.of(N_LAYERS, (1, 3))

IDS = torch.arange(1, 20)[None]


def count_passes(model: PreTrainedModel) -> list[int]:
    """How many sequences each forward pass of the whole model sees from now on."""
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return seen


# Losses


def test_the_loss_falls_and_the_weights_are_healed(
    loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    healed = heal(loaded, CANDIDATE, recipe, tmp_path / "work")
    assert healed.after < healed.before - 1
    assert healed.training_loss[-1][1] < healed.training_loss[0][1] - 1  # type: ignore[operator]
    assert [step for step, _ in healed.held_out_loss] == [0, 4, 8, 12]
    assert [step for step, _ in healed.training_loss] == list(range(1, 13))
    assert healed.watched_loss == healed.held_out_loss
    assert (healed.steps, healed.tokens, healed.cached) == (12, 12 * 4 * 32, False)
    assert healed.peak_memory > 2**20
    ids_BL = sequences_of(recipe, loaded.tokenizer).held_out_BL
    with pruned(loaded.model, CANDIDATE) as model, torch.no_grad():
        loss = float(model(input_ids=ids_BL, labels=ids_BL).loss)
    assert loss == pytest.approx(healed.after, abs=1e-4)


@pytest.mark.parametrize("loss", ["distill", "mix"])
def test_distillation_falls(
    loss: str, loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    wanted = recipe.model_copy(update={"loss": loss, "steps": 24, "eval_every": 12})
    healed = heal(loaded, CANDIDATE, wanted, tmp_path / "work")
    assert healed.watched < 0.9 * healed.watched_loss[0][1]  # type: ignore[operator]
    assert healed.watched_loss != healed.held_out_loss


def test_the_kl_is_zero_for_the_teacher_itself(
    loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    wanted = recipe.model_copy(update={"loss": "distill", "steps": 1})
    healed = heal(loaded, LayerSubset.of(N_LAYERS), wanted, tmp_path / "work")
    assert abs(healed.watched_loss[0][1]) < 1e-5  # type: ignore[arg-type]


def test_gradients_of_several_passes_are_those_of_one(
    tiny_folder: Path, recipe: HealRecipe, tmp_path: Path
) -> None:
    runs = [recipe, recipe.model_copy(update={"batch_size": 2, "accumulation": 2})]
    loss_history = [
        heal(load(str(tiny_folder)), CANDIDATE, r, tmp_path / str(i)) for i, r in enumerate(runs)
    ]
    torch.testing.assert_close(
        torch.tensor(loss_history[0].training_loss),
        torch.tensor(loss_history[1].training_loss),
        rtol=0,
        atol=1e-3,
    )


def test_nothing_but_healed_weights_comes_back(
    make_model: Callable[..., Path], prose: Path, tmp_path: Path
) -> None:
    """The head is stored apart although the config says that it is the embedding;
    peft and the Trainer set fields.
    """
    folder = make_model(name="apart", tie_word_embeddings=True)
    head = store_head_apart(folder)
    loaded = load(str(folder), device="cpu")
    loaded.model.config.pretraining_tp = 2  # peft sets it to 1
    before = loaded.model.config.to_json_string(), loaded.model.generation_config.to_json_string()
    attributes = set(vars(loaded.model))
    brief = HealRecipe(data=str(prose), held_out_tokens=64, window=32, steps=2, batch_size=2)
    heal(loaded, CANDIDATE, brief, tmp_path / "work", checkpointing=True)
    assert torch.equal(loaded.model.lm_head.weight, head)
    assert torch.equal(loaded.model.model.embed_tokens.weight, head.flip(0))
    assert before == (
        loaded.model.config.to_json_string(),
        loaded.model.generation_config.to_json_string(),
    )
    assert set(vars(loaded.model)) == attributes
    assert not any(module.training or module._forward_hooks for module in loaded.model.modules())
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_activations_may_be_computed_again(
    tiny_folder: Path, recipe: HealRecipe, tmp_path: Path
) -> None:
    plain = heal(load(str(tiny_folder)), CANDIDATE, recipe, tmp_path / "plain")
    loaded = load(str(tiny_folder))
    again = heal(loaded, CANDIDATE, recipe, tmp_path / "again", checkpointing=True)
    torch.testing.assert_close(torch.tensor(plain.training_loss), torch.tensor(again.training_loss))
    assert not any(
        getattr(module, "gradient_checkpointing", False) for module in loaded.model.modules()
    )


def test_teacher_answers_are_asked_for_once(
    tiny_folder: Path, recipe: HealRecipe, tmp_path: Path
) -> None:
    loaded = load(str(tiny_folder))
    ids_BL = sequences_of(recipe, loaded.tokenizer).train_BL
    seen = count_passes(loaded.model)
    assert Teacher(loaded, 16, tmp_path / "references").prepare(
        ids_BL, lambda done, total: None
    ) == len(ids_BL)
    assert sum(seen) == len(ids_BL)
    asked_before = len(seen)
    other = Teacher(loaded, 16, tmp_path / "references", dense=False)
    assert other.prepare(ids_BL, lambda done, total: None) == 0
    assert len(seen) == asked_before
    with pytest.raises(InputError, match="weights were changed"):
        Teacher(loaded, 17, tmp_path / "references", dense=False).prepare(
            ids_BL, lambda done, total: None
        )


# Stopping


def test_training_stops_without_progress(
    loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    idle = recipe.model_copy(
        update={"learning_rate": 1e-12, "eval_every": 1, "patience": 3, "steps": 50}
    )
    healed = heal(loaded, CANDIDATE, idle, tmp_path / "work")
    assert healed.stopped_early
    assert not healed.diverged
    assert healed.steps - healed.best_step == 3


@pytest.mark.parametrize("kind", ["far above", "not finite"])
def test_divergence_is_stopped_and_the_best_is_kept(
    kind: str,
    loaded: LoadedModel,
    recipe: HealRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss itself is made to leave, since where training diverges by itself depends on the
    arithmetic.
    """
    steps = itertools.count(1)
    loss_of = losses.loss_of

    def leaving(*args: Any) -> torch.Tensor:  # noqa: ANN401 (those of `loss_of`)
        beyond = max(0, next(steps) - 6)
        return loss_of(*args) + (float("nan") if kind == "not finite" and beyond else float(beyond))

    monkeypatch.setattr(training, "loss_of", leaving)
    wild = recipe.model_copy(update={"steps": 30, "warmup": 0.5, "eval_every": 4, "patience": 100})
    healed = heal(loaded, CANDIDATE, wild, tmp_path / "work")
    assert healed.diverged
    assert healed.steps < 30
    assert healed.after <= healed.before
    assert all(bool(p.isfinite().all()) for p in loaded.model.parameters())
    json.dumps(to_json(healed), allow_nan=False)


# Resuming


_SCRIPT = """
import sys, time, torch
from pathlib import Path
from types import SimpleNamespace
from prunesearch.candidate import LayerSubset
from prunesearch.events import HealProgress, subscribed
from prunesearch.recovery import HealRecipe, heal
from prunesearch.models.loading import load
torch.set_num_threads(1)
folder, work, recipe = sys.argv[1:]
def show(event):
    if isinstance(event, HealProgress) and event.done == 7:
        print("seven", flush=True)
        time.sleep(60)
with subscribed(show):
    heal(load(folder, device="cpu"), LayerSubset.of(6, (1, 3)), HealRecipe.model_validate_json(recipe), Path(work))
"""


def test_a_killed_run_goes_on_exactly(
    tiny_folder: Path, recipe: HealRecipe, tmp_path: Path
) -> None:
    shaken = recipe.model_copy(
        update={"dropout": 0.2, "eval_every": 2, "accumulation": 2, "batch_size": 8}
    )
    whole = heal(load(str(tiny_folder), device="cpu"), CANDIDATE, shaken, tmp_path / "whole")
    command = [
        sys.executable,
        "-c",
        _SCRIPT,
        str(tiny_folder),
        str(tmp_path / "killed"),
        shaken.model_dump_json(),
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "seven\n"
        run.send_signal(signal.SIGKILL)
    last = newest_checkpoint(tmp_path / "killed")
    assert last is not None
    assert last.name == "checkpoint-6"
    torn = last.with_name("checkpoint-8")  # the next one, half written
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    loaded = load(str(tiny_folder), device="cpu")
    resumed = heal(loaded, CANDIDATE, shaken, tmp_path / "killed")
    assert resumed.resumed_from == 6
    for name in ("training_loss", "held_out_loss"):
        torch.testing.assert_close(
            torch.tensor(getattr(resumed, name)),
            torch.tensor(getattr(whole, name)),
            rtol=0,
            atol=1e-4,
        )
    assert resumed.best_step == whole.best_step


def test_a_run_that_was_killed_after_its_last_step_trains_no_more(
    tiny_folder: Path, recipe: HealRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunesearch.recovery import healing

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(healing, "_keep_best", killed)
        heal(load(str(tiny_folder)), CANDIDATE, recipe, tmp_path / "work")
    seen: list[Event] = []
    loaded = load(str(tiny_folder))
    with subscribed(seen.append):
        healed = heal(loaded, CANDIDATE, recipe, tmp_path / "work")
    assert (healed.steps, healed.resumed_from) == (12, 12)
    # Nothing is trained between the beginning and the end.
    assert [type(event) for event in seen] == [HealOpened, HealFinished]
    assert healed.after < healed.before


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_the_same_run_again_trains_nothing(
    architecture: str, make_model: Callable[..., Path], recipe: HealRecipe, tmp_path: Path
) -> None:
    folder = make_model(architecture)
    loaded = load(str(folder))
    first = heal(loaded, CANDIDATE, recipe, tmp_path / "work")
    seen: list[Event] = []
    other = load(str(folder))
    with subscribed(seen.append):
        second = heal(other, CANDIDATE, recipe, tmp_path / "work")
    assert second.cached
    assert seen == []
    assert second.training_loss == first.training_loss
    assert fingerprint(other.model) == fingerprint(loaded.model)
    assert not list((tmp_path / "work").glob("checkpoint-*"))


# Weights


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_moe"])
def test_merged_equals_adapted_and_merging_twice_is_refused(
    architecture: str, recipe: HealRecipe, make_model: Callable[..., Path]
) -> None:
    model = load(str(make_model(architecture))).model
    before = model(IDS).logits
    with adapted(model, recipe) as adapter:
        for name, parameter in adapter.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        logits = adapter.model(input_ids=IDS).logits
        assert adapter.merge(IDS) < 1e-3
        torch.testing.assert_close(
            adapter.model(input_ids=IDS).logits, logits, rtol=1e-4, atol=1e-3
        )
        with pytest.raises(InputError, match="merged already"):
            adapter.merge(IDS)
    torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(logits, before, atol=1e-2)
    assert not any("lora" in name for name, _ in model.named_modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_one_logit_of_a_16_bit_model_may_change_much(
    loaded: LoadedModel, recipe: HealRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding moves single logits far, and the predictions hardly."""
    loaded.model.bfloat16()
    with adapted(loaded.model, recipe) as adapter:
        logits = adapter._logits
        moved = iter((0.0, 0.0, -20.0))

        def with_rounding(ids_BL: torch.Tensor) -> torch.Tensor:
            found_BLV = logits(ids_BL)
            unlikely = found_BLV[0, 0].argmin()
            found_BLV[0, 0, unlikely] += next(moved)
            return found_BLV

        monkeypatch.setattr(adapter, "_logits", with_rounding)
        assert adapter.merge(IDS) >= 19


def test_a_merge_that_changes_predictions_is_undone(
    loaded: LoadedModel, recipe: HealRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(loaded.model)
    with adapted(loaded.model, recipe) as adapter:
        logits = adapter._logits
        scaled = iter((1.0, 1.0, 2.0))
        monkeypatch.setattr(adapter, "_logits", lambda ids_BL: logits(ids_BL) * next(scaled))
        with pytest.raises(VerificationError, match="merging the adapter changes the predictions"):
            adapter.merge(IDS)
    assert fingerprint(loaded.model) == before


@pytest.mark.parametrize(("trained", "is_kept"), [(4.0, True), (0.5, False)])
def test_rounding_may_lose_a_small_share_of_what_training_changed(
    loaded: LoadedModel,
    recipe: HealRecipe,
    monkeypatch: pytest.MonkeyPatch,
    trained: float,
    is_kept: bool,
) -> None:
    loaded.model.bfloat16()
    # One of eight tokens is likely. Training made it so, and merging weakens that a little.
    likely_8 = torch.eye(8)[0]
    logits = {"adapted": 4.0 * likely_8, "pruned": (4.0 - trained) * likely_8}
    logits["merged"] = 3.0 * likely_8
    with adapted(loaded.model, recipe) as adapter:
        given = iter((logits["adapted"], logits["pruned"], logits["merged"]))
        monkeypatch.setattr(adapter, "_logits", lambda ids_BL: next(given).view(1, 1, 8))
        if is_kept:
            assert adapter.merge(IDS) == pytest.approx(1.0)
        else:
            with pytest.raises(VerificationError, match="load the model in float32"):
                adapter.merge(IDS)


def test_the_dense_weights_come_back(
    loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    few = recipe.model_copy(update={"target_modules": "q_proj,mlp.down_proj"})
    other = LayerSubset.of(N_LAYERS, (0,))
    reports = []
    for candidate in (CANDIDATE, other):
        with weights_restored(loaded, [candidate], few.target_modules):
            reports.append(heal(loaded, candidate, few, tmp_path / candidate.text))
            assert fingerprint(loaded.model) != loaded.fingerprint
        assert fingerprint(loaded.model) == loaded.fingerprint
    assert all(report.after < report.before for report in reports)


def test_a_healed_model_cannot_be_asked_for_the_dense_answers(
    loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    distilled = recipe.model_copy(update={"loss": "distill"})
    with weights_restored(loaded, [CANDIDATE]):
        heal(loaded, CANDIDATE, distilled, tmp_path / "work")
        with pytest.raises(InputError, match="its weights were changed in memory"):
            heal(loaded, CANDIDATE, distilled, tmp_path / "other")
    assert loaded.weights.dense


def test_16_bit_weights_are_trained_wide_and_come_back(
    make_model: Callable[..., Path], recipe: HealRecipe, tmp_path: Path
) -> None:
    loaded = load(str(make_model()), dtype="bfloat16", device="cpu")
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    buffers = {name: b.clone() for name, b in loaded.model.named_buffers()}
    wide = recipe.model_copy(update={"precision": "float32"})
    healed = heal(loaded, CANDIDATE, wide, tmp_path / "work")
    assert healed.after < healed.before
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(loaded.model.get_parameter(name), before[name])
    for name, buffer in loaded.model.named_buffers():
        assert torch.equal(buffer, buffers[name])


@pytest.mark.parametrize(
    "changes", [{"precision": "bfloat16"}, {"data": "builtin", "held_out_tokens": 64}]
)
def test_sublayers_stay_silent_while_the_rest_is_trained(
    changes: dict[str, Any], loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    silent = LayerSubset.of(N_LAYERS, (1,), attention=(2,), mlp=(4,))
    kept = {
        n: p.detach().clone()
        for n, p in loaded.model.named_parameters()
        if "2.self_attn" in n or "4.mlp" in n
    }
    healed = heal(loaded, silent, recipe.model_copy(update=changes), tmp_path / "work")
    assert healed.after < healed.before
    for name, weight in kept.items():
        assert torch.equal(loaded.model.get_parameter(name), weight)


def test_the_export_loads_as_any_model_and_is_the_healed_one(
    loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    heal(loaded, CANDIDATE, recipe, tmp_path / "work")
    export(loaded, CANDIDATE, tmp_path / "out", changed=("healed",))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pruned(loaded.model, CANDIDATE) as model:
        torch.testing.assert_close(reloaded(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


# Data


def test_sequences_are_packed_and_disjoint(loaded: LoadedModel, tmp_path: Path) -> None:
    source = tmp_path / "documents.jsonl"
    texts = [f"document number {i} " * 3 for i in range(20)]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    packed_BL, tokens = packed(str(source), loaded.tokenizer, 16, 1000)
    assert tokens == sum(len(text) + 1 for text in texts)
    assert packed_BL.shape == (tokens // 16, 16)
    assert int((packed_BL == 0).sum()) >= 19, "each document is ended"
    fewer_BL, _ = packed(str(source), loaded.tokenizer, 16, 5)
    assert torch.equal(fewer_BL, packed_BL[:5])
    recipe = HealRecipe(data=str(source), held_out_tokens=64, window=16, batch_size=4, steps=100)
    found = sequences_of(recipe, loaded.tokenizer)
    assert torch.equal(found.held_out_BL, packed_BL[:4])
    assert torch.equal(found.train_BL, packed_BL[4 : 4 + len(found.train_BL)])
    assert len(found.train_BL) % 4 == 0


def test_builtin_text_is_watched_on_its_held_out_part(loaded: LoadedModel) -> None:
    recipe = HealRecipe(window=64, held_out_tokens=128, batch_size=2, steps=2)
    found = sequences_of(recipe, loaded.tokenizer)
    held_out_BL, _ = packed("builtin-held-out", loaded.tokenizer, 64, 2)
    assert torch.equal(found.held_out_BL, held_out_BL)


def test_the_identity_is_of_what_counts(recipe: HealRecipe) -> None:
    assert (
        recipe.identity() == recipe.model_copy(update={"kl_top": 7, "data": "elsewhere"}).identity()
    )
    distilled = recipe.model_copy(update={"loss": "distill"})
    assert distilled.identity() != distilled.model_copy(update={"kl_top": 7}).identity()


# Bad input


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_below_one_is_refused(rank: int) -> None:
    with pytest.raises(InputError, match=rf"rank = {rank}: an adapter needs a rank of at least 1"):
        HealRecipe(rank=rank)


def test_training_data_are_not_held_out() -> None:
    with pytest.raises(InputError, match="is what is trained on"):
        HealRecipe(data="a.txt", held_out="a.txt")


def test_data_that_do_not_suffice_are_refused(
    loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    cases: dict[str, tuple[str, str, str | None]] = {
        "empty.txt": (" \n", "holds no text", None),
        "short.txt": (
            "x" * 200,
            r"it has 201 tokens, 384 are needed, 256 of them for watching",
            None,
        ),
        "nofield.jsonl": ('{"words": "x"}\n', "has no field 'text'", None),
        "held.txt": (
            "x" * 200,
            r"it has 201 tokens, 256 are needed; .* smaller `held_out_tokens`",
            "held",
        ),
    }
    for name, (text, complaint, held) in cases.items():
        (tmp_path / name).write_text(text)
        place = {"held_out": str(tmp_path / name)} if held else {"data": str(tmp_path / name)}
        with pytest.raises(DataError, match=complaint):
            plan_healing(loaded, CANDIDATE, recipe.model_copy(update=place))


def test_target_modules_that_match_nothing_are_named(loaded: LoadedModel) -> None:
    with pytest.raises(
        InputError, match=r"'proj_q' matches no linear layer .*; there are q_proj, k_proj, v_proj"
    ):
        target_names(loaded.model, "v_proj,proj_q")
    assert len(target_names(loaded.model, "self_attn.q_proj")) == N_LAYERS
    assert len(target_names(loaded.model, "all-linear")) == 7 * N_LAYERS


def test_a_work_folder_of_another_run_is_refused(
    loaded: LoadedModel, recipe: HealRecipe, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    planned = plan_healing(
        loaded, CANDIDATE, recipe.model_copy(update={"steps": 1, "eval_every": 1})
    )
    carry_out(planned, work, merge=False)
    for candidate, changes, complaint in (
        (CANDIDATE, {"rank": 4}, "rank: 8 there, 4 now"),
        (LayerSubset.of(N_LAYERS, (2,)), {}, "candidate: blocks/6:1,3 there, blocks/6:2 now"),
    ):
        with pytest.raises(InputError, match=complaint):
            heal(loaded, candidate, planned.recipe.model_copy(update=changes), work)
    with torch.no_grad():
        loaded.model.get_parameter("model.norm.weight").mul_(2)
    loaded.weights.add("a doubled norm")
    with pytest.raises(InputError, match=r"belongs to another run \(it differs in the model\)"):
        heal(loaded, CANDIDATE, planned.recipe, work)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        heal(loaded, CANDIDATE, recipe, tmp_path / "other")


def test_a_damaged_adapter_is_refused(
    tiny_folder: Path, recipe: HealRecipe, tmp_path: Path
) -> None:
    brief = recipe.model_copy(update={"steps": 1})
    heal(load(str(tiny_folder)), CANDIDATE, brief, tmp_path / "work")
    (tmp_path / "work" / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(StorageError, match="is damaged or another model's"):
        heal(load(str(tiny_folder)), CANDIDATE, brief, tmp_path / "work")


def test_divergence_is_told_from_noise() -> None:
    def loss_history(*losses: float) -> LossHistory:
        return LossHistory([{"step": i + 1, "loss": loss} for i, loss in enumerate(losses)])

    assert loss_history(3.0, float("nan")).diverged
    assert loss_history(3.0, 5.1, 5.1, 5.1, 5.1, 5.1).diverged
    assert not loss_history(3.0, 5.1, 5.1, 4.9, 5.1, 5.1).diverged
    assert not loss_history(3.0, 5.1, 5.1).diverged


# The command


def test_the_command_heals_exports_and_repeats_nothing(
    tiny_folder: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = f"heal {tiny_folder} --layers 1,3 --out out --data {prose} --held-out-tokens 256 --window 32 --steps 6"
    words += " --batch-size 4 --lr 1e-2 --eval-every 3 --loss distill --json"

    def run(text: str) -> dict[str, Any]:
        result = CliRunner().invoke(cli, text.split(), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    first = run(words)
    assert first["export"]["verification"]["prefill_difference"] < 1e-3
    manifest = json.loads(Path("out/prunesearch.json").read_text())
    assert manifest["changed"] == ["healed"]
    assert manifest["recovery"]["healed"]["digest"] == first["healed"]["digest"]
    assert manifest["metrics"] == {"held-out cross-entropy": first["healed"]["after"]}
    assert str(tmp_path) not in json.dumps(manifest)
    began = time.time()
    again = run(words)
    assert again["healed"]["cached"]
    assert again["export"] is None
    assert Path("out/prunesearch.json").stat().st_mtime < began
    elsewhere = run(words.replace("--out out", "--out other"))
    assert elsewhere["healed"]["cached"]
    assert elsewhere["export"]["folder"] == "other"
    text = (
        CliRunner().invoke(cli, words.replace(" --json", "").split(), catch_exceptions=False).stdout
    )
    assert "nothing was trained" in text
    assert "left as it is" in text
    with pytest.raises(StorageError, match="is not empty"):
        run(words.replace("--steps 6", "--steps 3"))


def test_a_result_is_on_disk_before_checkpoints_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def goes(path: Path) -> None:
        assert {"adapter.safetensors", "adapter", "work", "file"} <= set(synced)
        assert (tmp_path / "work" / "result.json").is_file()
        path.rmdir()

    for name in ("checkpoint-2", "checkpoint-mine"):
        (tmp_path / "work" / name).mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", noted)
    run_folder.keep_adapter(tmp_path / "work", lambda new: (new / "adapter.safetensors").touch())
    run_folder.keep_adapter(
        tmp_path / "work", lambda new: (new / "adapter.safetensors").touch()
    )  # a second try
    monkeypatch.setattr(run_folder, "shutil", SimpleNamespace(rmtree=goes))
    curve = ((0, 1.0),)
    run_folder.finish(
        tmp_path / "work",
        run_folder.Healed("d", 0, 0, 0, curve, curve, curve, 0, 0.0, 0, False, False, 0.0),
    )
    assert {path.name for path in (tmp_path / "work").iterdir()} == {
        "adapter",
        "checkpoint-mine",
        "result.json",
    }
