"""Training loop: the Trainer of transformers with own losses, stopping and checkpoints.

All decisions are computed from the Trainer's log, which is part of each checkpoint. A resumed run
therefore makes the same decisions as an uninterrupted one. Losses are in nats per token.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from prunesearch import events
from prunesearch.compat.trainer import (
    CheckpointingTrainer,
    checkpointing_arguments,
    use_one_gpu,
)
from prunesearch.config.recovery import HealRecipe
from prunesearch.recovery.loss_history import LossHistory
from prunesearch.recovery.losses import Examples, collate, held_out_losses, loss_of
from prunesearch.recovery.teacher import Teacher
from prunesearch.recovery.training_checkpoints import checkpoint_at, loss_history_of, mark_whole
from prunesearch.recovery.training_data import Sequences
from prunesearch.runtime import stopping

# Checkpoints that are kept: the best, the last, and the one before while the last is written.
_KEPT = 3


LossCheck = Callable[[Sequence[tuple[int, float]]], None]
"""Function that receives the steps and losses of all evaluations on the held-out text so far.

It is called after each step. An exception that it raises stops the training, and the checkpoints
stay. A pruner stops trials in this way.
"""


def keep_training(watched: Sequence[tuple[int, float]]) -> None:
    """Never stop a training. This is the default `LossCheck`."""


class HealTrainer(CheckpointingTrainer):
    """Trainer of transformers with the recipe's loss, and with complete checkpoints.

    It evaluates the losses on the held-out text.

    Args:
        model: the pruned model with its adapter.
        recipe: recipe of the healing.
        sequences: token ids for training and evaluation.
        teacher: source of the teacher logits. None if the loss does not use them.
        folder: folder of the checkpoints.
        name: name of the healing in events.
        check: called with the held-out losses; it may stop the training.
        device: device of the model's input.
        bf16: compute in bfloat16 (autocast).
        checkpointing: compute activations again in the backward pass instead of keeping them.
    """

    # The loss is the mean of a batch, so the Trainer must divide it by the number of batches of a
    # step.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        recipe: HealRecipe,
        sequences: Sequences,
        teacher: Teacher | None,
        folder: Path,
        *,
        name: str,
        check: LossCheck,
        device: torch.device,
        bf16: bool,
        checkpointing: bool,
    ) -> None:
        self._recipe, self._folder = recipe, folder
        self._held_out = Examples(sequences.held_out_BL, teacher)
        arguments = _arguments(recipe, folder, device, bf16=bf16, checkpointing=checkpointing)
        super().__init__(
            model,
            arguments,
            data_collator=collate,
            train_dataset=Examples(sequences.train_BL, teacher),
            eval_dataset=self._held_out,
            callbacks=[_Stop(recipe, name, check)],
        )
        self.remove_callback(PrinterCallback)
        self._began = time.monotonic()
        self._before = 0.0

    def heal(self, checkpoint: Path | None) -> LossHistory:
        """Train until the training has ended.

        Args:
            checkpoint: complete checkpoint to continue from. None starts a new training.

        Returns:
            All losses, including those before the checkpoint.
        """
        if checkpoint is not None:
            loss_history = loss_history_of(checkpoint)
            # The process may have been killed after the last step.
            if loss_history.over(self._recipe):
                return loss_history
            self._before = loss_history.seconds
        # A new run first evaluates the pruned model.
        self.args.eval_on_start = checkpoint is None
        self._began = time.monotonic()
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return LossHistory(self.state.log_history)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the recipe's loss of a batch."""
        outputs = model(input_ids=inputs["input_ids"], use_cache=False)
        loss = loss_of(outputs.logits, inputs, self._recipe)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ANN401
        """Compute and log the losses on the held-out text. No logits are kept."""
        model: Any = self.model
        model.eval()
        with self.compute_loss_context_manager():
            own, lm = held_out_losses(model, self._held_out, self._recipe, self.args.device)
        metrics = {"eval_loss": own, "eval_cross_entropy": lm}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log an entry together with the time so far, including the time before a resumption."""
        super().log({**logs, "seconds": self._before + time.monotonic() - self._began}, start_time)

    def floating_point_ops(self, inputs: dict[str, torch.Tensor | Any]) -> int:
        """Return 0, because the estimate would go through all parameters at every batch."""
        return 0

    def save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401
        """Save a checkpoint and mark it as complete.

        A partial checkpoint is deleted, e.g. on a full disk.
        """
        checkpoint = checkpoint_at(self._folder, self.state.global_step)
        try:
            super().save_checkpoint(model, trial)
            mark_whole(checkpoint)
        except BaseException:
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise


def _arguments(
    recipe: HealRecipe, folder: Path, device: torch.device, *, bf16: bool, checkpointing: bool
) -> TrainingArguments:
    """Return the arguments of the Trainer for a recipe."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(recipe.warmup * recipe.steps),
        weight_decay=recipe.weight_decay,
        optim="adamw_torch",
        bf16=bf16,
        **checkpointing_arguments(checkpointing),
        logging_steps=1,
        # The filter would replace a NaN loss by the mean of earlier losses.
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=recipe.eval_every,
        save_strategy="steps",
        save_steps=recipe.eval_every,
        save_total_limit=_KEPT,
        metric_for_best_model="loss",
        greater_is_better=False,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        label_names=[],
        use_cpu=device.type == "cpu",
        seed=recipe.seed,
        disable_tqdm=True,
        log_level="error",
        report_to="none",
    )
    # With several GPUs the Trainer would use DataParallel, which changes the batches.
    use_one_gpu(arguments)
    return arguments


class _Stop(TrainerCallback):
    """Decides when to evaluate, to save and to stop, and publishes the progress."""

    def __init__(self, recipe: HealRecipe, name: str, check: LossCheck) -> None:
        self._recipe, self._name, self._check = recipe, name, check
        self._curves = LossHistory()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        # An interruption raises here. The checkpoints stay.
        stopping.check()
        if state.global_step >= self._recipe.steps:
            control.should_evaluate = control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        # The last entry of the Trainer is a summary and does not belong to a step.
        if "train_runtime" in (logs or {}):
            return
        loss_history = self._curves
        loss_history.read(state.log_history)
        if loss_history.diverged or loss_history.over(self._recipe):
            control.should_training_stop = True
        # The weights of a diverged run are of no use.
        if loss_history.diverged:
            control.should_save = control.should_evaluate = False
        loss = loss_history.training[-1][1] if loss_history.training else None
        step, steps = state.global_step, self._recipe.steps
        watched, held_out = tuple(loss_history.watched), tuple(loss_history.held_out)
        events.tell(
            events.HealProgress(self._name, "training", step, steps, loss, watched, held_out)
        )
        self._check(watched)
