"""Training loop: the Trainer of transformers with own losses, stopping and checkpoints.

All decisions are computed from the Trainer's log, which is part of each checkpoint. A resumed run
therefore makes the same decisions as an uninterrupted one. Losses are in nats per token.

Shapes: B sequences of L tokens, K likeliest tokens, R rows, V vocabulary.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from prunesearch import events
from prunesearch.compat.trainer import TRAINER_STATE_NAME, CheckpointingTrainer, use_one_gpu
from prunesearch.config.recovery import HealRecipe
from prunesearch.export.atomic import sync
from prunesearch.objectives.reference_logits import DenseRows
from prunesearch.recovery.run_folder import checkpoints
from prunesearch.recovery.teacher import Teacher
from prunesearch.recovery.training_data import Sequences
from prunesearch.runtime import stopping

WHOLE = "whole.json"
"""Name of the file that is written last into a checkpoint.

It holds the sizes of the other files.
"""
# Checkpoints that are kept: the best, the last, and the one before while the last is written.
_KEPT = 3
# Distance from the first loss that counts as divergence, in nats. The perplexity is then seven
# times as high.
_FAR = 2.0
# Number of consecutive steps at this distance that count as divergence.
_FAR_STEPS = 5
_CHECKPOINT = "checkpoint-"


LossCheck = Callable[[Sequence[tuple[int, float]]], None]
"""Function that receives the steps and losses of all evaluations on the held-out text so far.

It is called after each step. An exception that it raises stops the training, and the checkpoints
stay. A pruner stops trials in this way.
"""


def keep_training(watched: Sequence[tuple[int, float]]) -> None:
    """Never stop a training. This is the default `LossCheck`."""


class LossHistory:
    """Loss curves from the log of a Trainer.

    Args:
        log: ``log_history`` of the Trainer.

    Attributes:
        training: steps and training losses, in order.
        watched: steps and losses of the recipe on the held-out text. Step 0 is the pruned model.
        held_out: steps and next-token cross-entropies on the held-out text.
        seconds: time of all steps, including those before a resumption.
    """

    def __init__(self, log: Sequence[Mapping[str, float]] = ()) -> None:
        self.training: list[tuple[int, float]] = []
        self.watched: list[tuple[int, float]] = []
        self.held_out: list[tuple[int, float]] = []
        self.seconds = 0.0
        self._read = 0
        self.read(log)

    def read(self, log: Sequence[Mapping[str, float]]) -> None:
        """Read the entries that are new in the log."""
        loss_history = {
            "loss": self.training,
            "eval_loss": self.watched,
            "eval_cross_entropy": self.held_out,
        }
        for entry in log[self._read :]:
            for name, curve in loss_history.items():
                if name in entry:
                    curve.append((int(entry["step"]), float(entry[name])))
            self.seconds = max(self.seconds, float(entry.get("seconds", 0.0)))
        self._read = len(log)

    @property
    def best(self) -> tuple[int, float]:
        """Step and value of the lowest watched loss. The first of equal losses counts."""

        def order(look: tuple[int, float]) -> tuple[float, int]:
            step, loss = look
            return (loss if math.isfinite(loss) else math.inf, step)

        return min(self.watched, key=order)

    @property
    def diverged(self) -> bool:
        """True if a loss is not finite, or the last few losses are all far above the first."""
        last = [loss for _, loss in self.training[-_FAR_STEPS:]]
        recent = last + [loss for _, loss in self.watched[-1:]]
        if not all(math.isfinite(loss) for loss in recent):
            return True
        return len(self.training) > _FAR_STEPS and min(last) > self.training[0][1] + _FAR

    def over(self, recipe: HealRecipe) -> bool:
        """Return whether the training has ended.

        It ends if all steps are done, if the last evaluations brought no new best, or if it
        diverged.
        """
        if not self.watched:
            return False
        best = self.best[0]
        idle = sum(step > best for step, _ in self.watched)
        return self.watched[-1][0] >= recipe.steps or idle >= recipe.patience or self.diverged


class Examples(Dataset[dict[str, torch.Tensor]]):
    """Sequences, with their teacher logits if there is a teacher."""

    def __init__(self, ids_BL: torch.Tensor, teacher: Teacher | None) -> None:
        self._ids_BL, self._teacher = ids_BL, teacher

    def __len__(self) -> int:
        return len(self._ids_BL)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids_L = self._ids_BL[index]
        if self._teacher is None:
            return {"input_ids": ids_L}
        answers = self._teacher.answers(ids_L)
        assert answers.log_p_RK is not None and answers.index_RK is not None
        return {"input_ids": ids_L, "log_p": answers.log_p_RK, "index": answers.index_RK}


def _collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack the tensors of examples into a batch."""
    batch = {}
    for name in examples[0]:
        batch[name] = torch.stack([example[name] for example in examples])
    return batch


def loss_of(
    logits_BLV: torch.Tensor, batch: Mapping[str, torch.Tensor], recipe: HealRecipe
) -> torch.Tensor:
    """Compute the recipe's loss of a batch, in nats per token.

    * ``lm``: mean of -log q(next) over the L - 1 tokens that have a predecessor.
    * ``distill``: mean over all L positions of KL(teacher || student), over the teacher's K
      likeliest tokens and one tail bucket, as with `kl_top` in the search. It is a lower bound
      of the KL over the vocabulary. Unlike a renormalised KL it also teaches the total probability
      of the other tokens.
    * ``mix``: (1 - w) lm + w distill.

    Parts without a weight in the loss are not computed.
    """
    if recipe.loss == "lm":
        return _cross_entropy(logits_BLV, batch["input_ids"])
    # KL to the teacher. The log-probabilities of the student are computed once for both parts.
    log_q_RV = torch.log_softmax(logits_BLV.flatten(0, 1), dim=-1, dtype=torch.float32)
    log_p_RK = batch["log_p"].flatten(0, 1)
    dense = DenseRows(log_p_RK.exp(), log_p_RK, batch["index"].flatten(0, 1).long())
    kl = dense.divergence(log_q_RV).mean()
    if recipe.loss == "distill":
        return kl
    # Next-token cross-entropy.
    log_q_BLV = log_q_RV.view(logits_BLV.shape)
    next_BL = batch["input_ids"][:, 1:, None]
    lm = -log_q_BLV[:, :-1].gather(2, next_BL).mean()
    return (1 - recipe.distill_weight) * lm + recipe.distill_weight * kl


def _cross_entropy(logits_BLV: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of a batch."""
    # The last position has no next token. It is marked as ignored, because slicing the logits would
    # copy them.
    next_BL = nn.functional.pad(ids_BL[:, 1:], (0, 1), value=-100)
    return nn.functional.cross_entropy(logits_BLV.flatten(0, 1).float(), next_BL.flatten())


@torch.no_grad()
def held_out_losses(
    model: nn.Module, examples: Examples, recipe: HealRecipe, device: torch.device
) -> tuple[float, float]:
    """Compute the losses of a model on held-out text.

    Returns:
        The recipe's loss and the next-token cross-entropy, both in nats per token.
    """
    sums = [0.0, 0.0]
    for start in range(0, len(examples), recipe.batch_size):
        stopping.check()
        end = min(start + recipe.batch_size, len(examples))
        rows = [examples[i] for i in range(start, end)]
        batch = {name: tensor.to(device) for name, tensor in _collate(rows).items()}
        logits_BLV = model(input_ids=batch["input_ids"], use_cache=False).logits
        lm = float(_cross_entropy(logits_BLV, batch["input_ids"]))
        own = lm if recipe.loss == "lm" else float(loss_of(logits_BLV, batch, recipe))
        # Weight by the number of sequences, because the last batch may be smaller.
        sums[0] += own * len(rows)
        sums[1] += lm * len(rows)
    return sums[0] / len(examples), sums[1] / len(examples)


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
            data_collator=_collate,
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
        checkpoint = self._folder / f"{_CHECKPOINT}{self.state.global_step}"
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
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
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
        watched = tuple(loss_history.watched)
        events.tell(events.HealProgress(self._name, "training", step, steps, loss, watched))
        self._check(watched)


def mark_whole(checkpoint: Path) -> None:
    """Sync a checkpoint to disk, and then mark it as complete."""
    # Sync all files, and note their sizes.
    sizes = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file():
            sizes[str(path.relative_to(checkpoint))] = path.stat().st_size
            sync(path)
    # The mark appears under its name only after its content is on disk.
    scratch = checkpoint / f".{WHOLE}"
    scratch.write_text(json.dumps(sizes), encoding="utf-8")
    sync(scratch)
    scratch.rename(checkpoint / WHOLE)
    sync(checkpoint)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None.

    Partial checkpoints of killed processes are deleted.
    """
    found = []
    for path in checkpoints(folder):
        if _is_whole(path):
            found.append((int(path.name.removeprefix(_CHECKPOINT)), path))
        else:
            shutil.rmtree(path)
    if not found:
        return None
    return max(found)[1]


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint has its mark, and its files have the noted sizes."""
    try:
        sizes = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def loss_history_of(checkpoint: Path) -> LossHistory:
    """Read the loss curves up to a checkpoint."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return LossHistory(state["log_history"])


def checkpoint_at(folder: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return folder / f"{_CHECKPOINT}{step}"
