"""Healing of a candidate: compute teacher logits, train, and merge the best adapter.

Each run has a folder (see `run_folder`). If a run is finished, the same run again merges its
adapter without training.
"""

import hashlib
import math
import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from prunesearch import events
from prunesearch.cache.keys import canonical_json
from prunesearch.cache.location import check_writable
from prunesearch.candidate import LayerSubset
from prunesearch.compat.trainer import stop_checkpointing
from prunesearch.config.recovery import HealRecipe
from prunesearch.errors import InputError
from prunesearch.execution.malloc import keep_freed_memory
from prunesearch.models.bf16_cpu import wide_products, widens
from prunesearch.models.handover import unchanged_by
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import input_device
from prunesearch.models.surgery import pruned
from prunesearch.objectives.calibration_data import check_fits
from prunesearch.objectives.identity import numerics_of, tokens_digest
from prunesearch.recovery.healing_events import heal_finished, heal_opened
from prunesearch.recovery.lora import Adapter, adapted, target_names, wide_weights
from prunesearch.recovery.loss_history import LossHistory
from prunesearch.recovery.losses import Examples, held_out_losses
from prunesearch.recovery.run_folder import (
    ADAPTER,
    RUN_FOLDERS,
    Curve,
    Healed,
    finish,
    finished,
    held,
    keep_adapter,
    remove_checkpoints,
)
from prunesearch.recovery.teacher import Teacher
from prunesearch.recovery.training import HealTrainer, LossCheck, keep_training
from prunesearch.recovery.training_checkpoints import checkpoint_at, newest_checkpoint
from prunesearch.recovery.training_data import Sequences, sequences_of
from prunesearch.runtime.json_values import JsonObject

HEAL_VERSION = 1
"""Version of healing.

Increase it with every change of this package that may change a healed weight.
"""
_16_BIT = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class HealPlan:
    """A healing run whose inputs were checked.

    Attributes:
        loaded: the model.
        candidate: the candidate that is healed.
        recipe: recipe of the healing.
        sequences: token ids for training and evaluation.
        identity: everything that determines the result, as JSON values.
        bf16: compute in bfloat16 (autocast).
        wide: hold 16-bit weights as float32 during training.
        name: name of the healing in events.
    """

    loaded: LoadedModel
    candidate: LayerSubset
    recipe: HealRecipe
    sequences: Sequences
    identity: JsonObject
    bf16: bool
    wide: bool
    name: str

    @property
    def content(self) -> str:
        """Digest of the weights that the plan was made for."""
        return str(self.identity["model"])

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the identity."""
        return hashlib.sha256(canonical_json(self.identity).encode()).hexdigest()


def plan_healing(
    loaded: LoadedModel, candidate: LayerSubset, recipe: HealRecipe, name: str = "heal"
) -> HealPlan:
    """Check the inputs of a healing run and read its data. Nothing is written or trained.

    Args:
        loaded: the model, dense or compensated.
        candidate: the candidate that is healed.
        recipe: recipe of the healing.
        name: name of the healing in events.

    Raises:
        InputError: the model is streamed, the target modules match nothing, or the data do not
            suffice.
    """
    if loaded.layers.streamed_once:
        raise InputError("training needs the weights in memory: leave `offload` out")
    sequences = sequences_of(recipe, loaded.tokenizer)
    check_fits(loaded.model, sequences.train_BL)
    check_fits(loaded.model, sequences.held_out_BL)
    # Name the arithmetic of the training.
    bf16, wide = _arithmetic(loaded.model, recipe)
    trained_in = "as it is"
    if bf16:
        trained_in = "bfloat16"
    elif wide:
        trained_in = "float32"
    with pruned(loaded.model, candidate) as model:
        targets = target_names(model, recipe.target_modules)
    identity: JsonObject = {
        "version": HEAL_VERSION,
        "model": loaded.content,
        "candidate": candidate.canonical,
        "recipe": recipe.identity(),
        "targets": targets,
        "data": tokens_digest(sequences.train_BL.tolist()),
        "held_out": tokens_digest(sequences.held_out_BL.tolist()),
        "numerics": numerics_of(loaded.model) | {"trained in": trained_in},
    }
    return HealPlan(loaded, candidate, recipe, sequences, identity, bf16, wide, name)


def _arithmetic(model: PreTrainedModel, recipe: HealRecipe) -> tuple[bool, bool]:
    """Decide in which arithmetic to train.

    A GPU trains in bfloat16 if it supports it. A CPU keeps float32 weights as they are. It trains
    16-bit weights in float32 if it has no fast 16-bit products.

    Returns:
        Whether to compute in bfloat16 (autocast), and whether to hold 16-bit weights as float32
        during the training.

    Raises:
        InputError: the recipe asks for bfloat16, and the device does not support it.
    """
    device, narrow = input_device(model), model.dtype in _16_BIT
    able = torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu"
    if recipe.precision == "bfloat16" and not able:
        raise InputError(f"`precision` bfloat16 cannot be used on {device}: use float32")
    fast = able and (device.type == "cuda" or (narrow and not widens()))
    bf16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and fast)
    return bf16, narrow and not bf16


def heal(
    loaded: LoadedModel,
    candidate: LayerSubset,
    recipe: HealRecipe,
    run_folder: Path | None = None,
    *,
    references: Path | None = None,
    checkpointing: bool = False,
    name: str = "heal",
) -> Healed:
    """Heal a candidate in place.

    On return the kept blocks of `loaded.model` have the healed weights.

    `weights_restored` restores the dense weights. A run that was stopped continues from its newest
    checkpoint, and a finished run is not repeated.

    Args:
        loaded: the dense model.
        candidate: the candidate that is healed.
        recipe: recipe of the healing.
        run_folder: run folder of this run. Default: a folder in `RUN_FOLDERS`, named by digest.
        references: folder of the dense model's logits (see `ReferenceCache`). Default: in
            memory.
        checkpointing: compute activations again in the backward pass. This needs less memory and a
            third more time.
        name: name of the healing in events.

    Raises:
        InputError: see `plan_healing`; the folder belongs to another run, or is in use.
        StorageError: the folder cannot be written.
        VerificationError: the logits of the merged model differ from those of the adapted one.
    """
    return carry_out(
        plan_healing(loaded, candidate, recipe, name), run_folder, references, checkpointing
    )


def carry_out(
    planned: HealPlan,
    run_folder: Path | None = None,
    references: Path | None = None,
    checkpointing: bool = False,
    merge: bool = True,
    check: LossCheck = keep_training,
) -> Healed:
    """Run a plan, as `heal` does.

    Args:
        planned: plan of the run.
        run_folder: see `heal`.
        references: see `heal`.
        checkpointing: see `heal`.
        merge: False leaves the weights as they are and only returns the report.
        check: called with the held-out losses after each step; it may stop the training.
    """
    folder = run_folder or RUN_FOLDERS / planned.digest[:16]
    model, recipe = planned.loaded.model, planned.recipe
    check_writable(folder)
    with held(folder, planned.identity):
        # Find the result of a finished run, or compute the teacher logits.
        healed = finished(folder)
        if healed is not None:
            remove_checkpoints(folder)
            if not merge:
                return healed
        else:
            teacher = ask_teacher(planned, references)
        with (
            unchanged_by("peft or transformers", model, trains=True),
            torch.random.fork_rng(),
            pruned(model, planned.candidate),
            wide_weights(model, planned.wide),
            adapted(model, recipe) as adapter,
        ):
            # Train, and keep the best adapter and the report.
            if healed is None:
                events.tell(
                    heal_opened(
                        planned.name,
                        planned.digest,
                        folder,
                        planned.loaded.name,
                        planned.candidate,
                        recipe,
                    )
                )
                trained = _train(planned, adapter, teacher, folder, checkpointing, check)
                _keep_best(trained.loss_history, folder, adapter)
                difference = adapter.merge(planned.sequences.held_out_BL[:1]) if merge else 0.0
                healed = _report(planned, trained, difference)
                finish(folder, healed)
                events.tell(heal_finished(planned.name, healed))
            # Merge the adapter of a finished run.
            else:
                adapter.read(folder / ADAPTER)
                difference = adapter.merge(planned.sequences.held_out_BL[:1])
                healed = replace(healed, merge_difference=difference)
    if merge:
        planned.loaded.weights.add(planned.digest)
    return healed


@dataclass(frozen=True)
class _Trained:
    """Loss curves of a training, and the step at which this process resumed it."""

    loss_history: LossHistory
    resumed_from: int


def _train(
    planned: HealPlan,
    adapter: Adapter,
    teacher: Teacher | None,
    folder: Path,
    checkpointing: bool,
    check: LossCheck,
) -> _Trained:
    """Train until there is nothing left to train."""
    model = planned.loaded.model
    # Note the step of the checkpoint that the trainer will resume from.
    checkpoint = newest_checkpoint(folder)
    resumed_from = 0
    if checkpoint is not None:
        resumed_from = int(checkpoint.name.rpartition("-")[2])
    keep_freed_memory()
    trainer = HealTrainer(
        adapter.model,
        planned.recipe,
        planned.sequences,
        teacher,
        folder,
        name=planned.name,
        check=check,
        device=input_device(model),
        bf16=planned.bf16,
        checkpointing=checkpointing,
    )
    try:
        loss_history = trainer.heal(checkpoint)
    finally:
        if checkpointing:
            stop_checkpointing(model)
        model.eval()  # type: ignore[no-untyped-call]
    return _Trained(loss_history, resumed_from)


def _keep_best(loss_history: LossHistory, folder: Path, adapter: Adapter) -> None:
    """Load the adapter of the best step into the model, and keep it in the run folder."""
    step, _ = loss_history.best
    # Step 0 is the pruned model, which has no checkpoint.
    if step:
        adapter.read(checkpoint_at(folder, step))
    else:
        adapter.reset()
    keep_adapter(folder, lambda new: adapter.model.save_pretrained(str(new)))


def _report(planned: HealPlan, trained: _Trained, difference: float) -> Healed:
    """Return the report of a run that this process finished."""
    loss_history, recipe = trained.loss_history, planned.recipe
    steps = loss_history.training[-1][0] if loss_history.training else 0
    return Healed(
        digest=planned.digest,
        steps=steps,
        planned=recipe.steps,
        best_step=loss_history.best[0],
        training_loss=_finite(loss_history.training),
        watched_loss=_finite(loss_history.watched),
        held_out_loss=_finite(loss_history.held_out),
        tokens=steps * recipe.batch_tokens,
        seconds=loss_history.seconds,
        peak_memory=_peak_memory(input_device(planned.loaded.model)),
        stopped_early=not loss_history.diverged and steps < recipe.steps,
        diverged=loss_history.diverged,
        merge_difference=difference,
        resumed_from=trained.resumed_from,
    )


def _finite(curve: list[tuple[int, float]]) -> Curve:
    """Replace losses that are not finite by None, because JSON has no NaN."""
    finite: list[tuple[int, float | None]] = []
    for step, loss in curve:
        finite.append((step, loss if math.isfinite(loss) else None))
    return tuple(finite)


def held_out_loss(planned: HealPlan, candidate: LayerSubset) -> float:
    """Cross-entropy of a candidate on the held-out text, in nats per token.

    The candidate is measured with the weights that are in memory.
    """
    lm = planned.recipe.model_copy(update={"loss": "lm"})
    examples = Examples(planned.sequences.held_out_BL, None)
    with wide_products(), pruned(planned.loaded.model, candidate) as model:
        _, cross_entropy = held_out_losses(model, examples, lm, input_device(model))
    return cross_entropy


def ask_teacher(planned: HealPlan, references: Path | None) -> Teacher | None:
    """Compute the teacher logits of a run that are not stored yet.

    Returns:
        The teacher, or None if the loss does not use it.

    Raises:
        InputError: logits are missing, and the weights in memory are not the dense model's.
    """
    if planned.recipe.loss == "lm":
        return None
    teacher = Teacher(
        planned.loaded, planned.recipe.kl_top, references, planned.loaded.weights.dense
    )
    every_BL = torch.cat([planned.sequences.train_BL, planned.sequences.held_out_BL])

    def progress(done: int, total: int) -> None:
        events.tell(events.HealProgress(planned.name, "teacher", done, total))

    teacher.prepare(every_BL, progress)
    return teacher


def _peak_memory(device: torch.device) -> int:
    """Peak memory in bytes, of the GPU or else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # ru_maxrss is in bytes on macOS and in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
