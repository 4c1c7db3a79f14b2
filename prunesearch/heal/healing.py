"""Healing a candidate: ask the teacher, train, merge the best adapter into the weights, remember that it is done.

A run has a work folder (see `work`); when it is finished, the same run again merges its adapter without training.
"""

import hashlib
import math
import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.engine.memory import keep_freed_memory
from prunesearch.errors import InputError
from prunesearch.heal.adapter import Adapter, adapted, target_names, wide_weights
from prunesearch.heal.data import Sequences, sequences_of
from prunesearch.heal.recipe import HealRecipe
from prunesearch.heal.teacher import Teacher
from prunesearch.heal.training import (
    Curves,
    Examples,
    HealProgress,
    HealTrainer,
    Listener,
    checkpoint_at,
    held_out_losses,
    newest_checkpoint,
)
from prunesearch.heal.work import ADAPTER, WORK, Curve, Healed, finish, finished, held, keep_adapter, tidy
from prunesearch.model.anatomy import input_device
from prunesearch.model.arithmetic import wide_products, widens
from prunesearch.model.fingerprint import fingerprint
from prunesearch.model.handover import unchanged_by
from prunesearch.model.loading import LoadedModel
from prunesearch.model.surgery import pruned
from prunesearch.scoring.objectives import numerics_of, tokens_digest
from prunesearch.scoring.text import check_fits
from prunesearch.store.keys import canonical_json
from prunesearch.store.places import check_writable

HEAL_VERSION = 1
"""Raised whenever a change of this package may change a healed weight."""
_16_BIT = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Plan:
    """A run that is known to be possible.

    Attributes:
        identity: everything that determines the result, as JSON values.
        dense: the weights in memory are those that `loaded.fingerprint` names.
    """

    loaded: LoadedModel
    candidate: LayerSubset
    recipe: HealRecipe
    sequences: Sequences
    identity: dict[str, Any]
    bf16: bool
    wide: bool
    dense: bool

    @property
    def digest(self) -> str:
        """Sha256 of the identity, hexadecimal."""
        return hashlib.sha256(canonical_json(self.identity).encode()).hexdigest()


def plan(loaded: LoadedModel, candidate: LayerSubset, recipe: HealRecipe) -> Plan:
    """Check everything and read the data; nothing is written or computed.

    Raises:
        InputError: the model is streamed, the target modules match nothing, or the data do not suffice.
    """
    if loaded.layers.one_pass:
        raise InputError("training needs the weights in memory: leave --weights out")
    sequences = sequences_of(recipe, loaded.tokenizer)
    check_fits(loaded.model, sequences.train_BL)
    check_fits(loaded.model, sequences.held_out_BL)
    bf16, wide = _arithmetic(loaded.model, recipe)
    content = fingerprint(loaded.model)
    with pruned(loaded.model, candidate) as model:
        targets = target_names(model, recipe.target_modules)
    identity = {
        "version": HEAL_VERSION,
        "model": content,
        "candidate": candidate.canonical,
        "recipe": recipe.identity(),
        "targets": targets,
        "data": tokens_digest(sequences.train_BL.tolist()),
        "held_out": tokens_digest(sequences.held_out_BL.tolist()),
        "numerics": numerics_of(loaded.model)
        | {"trained in": "bfloat16" if bf16 else "float32" if wide else "as it is"},
    }
    dense = content == loaded.fingerprint
    return Plan(loaded, candidate, recipe, sequences, identity, bf16, wide, dense)


def _arithmetic(model: PreTrainedModel, recipe: HealRecipe) -> tuple[bool, bool]:
    """Whether to compute in bfloat16 (autocast), and whether to hold 16-bit weights as float32 for the time.

    A GPU trains in bfloat16 where it can; a CPU keeps float32 weights as they are, and goes to float32 where it has no
    16-bit products.

    Raises:
        InputError: bfloat16 is asked for where there is none.
    """
    device, narrow = input_device(model), model.dtype in _16_BIT
    able = torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu"
    if recipe.precision == "bfloat16" and not able:
        raise InputError(f"--precision bfloat16 cannot be used on {device}: use float32")
    fast = able and (device.type == "cuda" or (narrow and not widens()))
    bf16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and fast)
    return bf16, narrow and not bf16


def heal(
    loaded: LoadedModel,
    candidate: LayerSubset,
    recipe: HealRecipe,
    work_folder: Path | None = None,
    listener: Listener = lambda progress: None,
    *,
    references: Path | None = None,
    checkpointing: bool = False,
) -> Healed:
    """Heal a candidate: behind this, the blocks that it keeps have healed weights, in the model they belong to.

    `weights_restored` gives the dense weights back. A run that was stopped goes on where it was, and a finished one is
    not repeated.

    Args:
        loaded: the dense model.
        work_folder: of this run alone; default: `WORK`, by digest.
        listener: told of progress.
        references: folder of the dense model's answers (see `ReferenceStore`); default: in memory.
        checkpointing: compute activations again in the backward pass: less memory, a third more time.

    Raises:
        InputError: see `plan`; the folder is another run's, or in use.
        StorageError: the folder cannot be written.
        VerificationError: the merged model is not the adapted one.
    """
    return carry_out(plan(loaded, candidate, recipe), work_folder, listener, references, checkpointing)


def carry_out(
    planned: Plan,
    work_folder: Path | None = None,
    listener: Listener = lambda progress: None,
    references: Path | None = None,
    checkpointing: bool = False,
    merge: bool = True,
) -> Healed:
    """What `heal` does, of a plan.

    Args:
        merge: false leaves the weights as they are: the report is wanted alone.
    """
    folder = work_folder or WORK / planned.digest[:16]
    model, recipe = planned.loaded.model, planned.recipe
    check_writable(folder)
    with held(folder, planned.identity):
        healed = finished(folder)
        if healed is not None:
            tidy(folder)
            if not merge:
                return healed
        else:
            teacher = ask_teacher(planned, references, listener)
        with (
            unchanged_by("peft or transformers", model, trains=True),
            torch.random.fork_rng(),
            pruned(model, planned.candidate),
            wide_weights(model, planned.wide),
            adapted(model, recipe) as adapter,
        ):
            if healed is None:
                trained = _train(planned, adapter, teacher, folder, listener, checkpointing)
                _keep_best(trained.curves, folder, adapter)
                difference = adapter.merge(planned.sequences.held_out_BL[:1]) if merge else 0.0
                healed = _report(planned, trained, difference)
                finish(folder, healed)
            else:
                adapter.read(folder / ADAPTER)
                difference = adapter.merge(planned.sequences.held_out_BL[:1])
                healed = replace(healed, merge_difference=difference)
    return healed


@dataclass(frozen=True)
class _Trained:
    curves: Curves
    resumed_from: int


def _train(
    planned: Plan, adapter: Adapter, teacher: Teacher | None, folder: Path, listener: Listener, checkpointing: bool
) -> _Trained:
    """Train to the end."""
    model, started = planned.loaded.model, newest_checkpoint(folder)
    keep_freed_memory()
    trainer = HealTrainer(
        adapter.model,
        planned.recipe,
        planned.sequences,
        teacher,
        folder,
        listener,
        device=input_device(model),
        bf16=planned.bf16,
        checkpointing=checkpointing,
    )
    try:
        curves = trainer.heal()
    finally:
        if checkpointing:
            model.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
        model.eval()  # type: ignore[no-untyped-call]
    return _Trained(curves, int(started.name.rpartition("-")[2]) if started is not None else 0)


def _keep_best(curves: Curves, folder: Path, adapter: Adapter) -> None:
    """Put the best step's adapter on the model, and keep it beside the result."""
    step, _ = curves.best
    if step:
        adapter.read(checkpoint_at(folder, step))
    else:
        adapter.reset()
    keep_adapter(folder, lambda new: adapter.model.save_pretrained(str(new)))


def _report(planned: Plan, trained: _Trained, difference: float) -> Healed:
    curves, recipe = trained.curves, planned.recipe
    steps = curves.training[-1][0] if curves.training else 0
    return Healed(
        digest=planned.digest,
        steps=steps,
        planned=recipe.steps,
        best_step=curves.best[0],
        training_loss=_finite(curves.training),
        watched_loss=_finite(curves.watched),
        held_out_loss=_finite(curves.held_out),
        tokens=steps * recipe.batch_tokens,
        seconds=curves.seconds,
        peak_memory=_peak_memory(input_device(planned.loaded.model)),
        stopped_early=not curves.diverged and steps < recipe.steps,
        diverged=curves.diverged,
        merge_difference=difference,
        resumed_from=trained.resumed_from,
    )


def _finite(curve: list[tuple[int, float]]) -> Curve:
    return tuple((step, loss if math.isfinite(loss) else None) for step, loss in curve)


def held_out_loss(planned: Plan, candidate: LayerSubset) -> float:
    """Cross-entropy of the held-out text without a candidate's blocks, in nats per token, with weights as they are."""
    lm = planned.recipe.model_copy(update={"loss": "lm"})
    with wide_products(), pruned(planned.loaded.model, candidate) as model:
        return held_out_losses(model, Examples(planned.sequences.held_out_BL, None), lm, input_device(model))[1]


def ask_teacher(planned: Plan, references: Path | None, listener: Listener = lambda progress: None) -> Teacher | None:
    """The dense model's answers, all of them known; None where the loss does not want them.

    Raises:
        InputError: some are not, and the weights in memory are no longer the dense model's.
    """
    if planned.recipe.loss == "lm":
        return None
    teacher = Teacher(planned.loaded, planned.recipe.kl_top, references, planned.dense)
    every_BL = torch.cat([planned.sequences.train_BL, planned.sequences.held_out_BL])
    teacher.prepare(every_BL, lambda done, total: listener(HealProgress("teacher", done, total)))
    return teacher


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
