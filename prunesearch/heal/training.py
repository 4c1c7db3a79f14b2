"""The training loop: transformers' Trainer with our losses, our idea of when to stop, and checkpoints that are whole.

Whatever a decision needs is in the Trainer's own log, which its checkpoints carry, so that a resumed run decides as an
unbroken one. Losses are in nats per token. Shapes: B sequences of L tokens, K likeliest tokens, R rows, V vocabulary.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from prunesearch import stopping
from prunesearch.export.atomic import sync
from prunesearch.heal.data import Sequences
from prunesearch.heal.recipe import HealRecipe
from prunesearch.heal.teacher import Teacher
from prunesearch.heal.work import checkpoints
from prunesearch.scoring.reference import DenseRows

WHOLE = "whole.json"
"""Name of the file that is written last into a checkpoint: the sizes of the others."""
_KEPT = 3  # checkpoints: the best, the last, and the one before while the last is written
_FAR = 2.0  # nats above the first step's loss: the perplexity is seven times as high
_FAR_STEPS = 5  # in a row, before training counts as diverged
_CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class HealProgress:
    """Where healing stands.

    Attributes:
        phase: ``teacher`` (sequences that the dense model was asked about), ``compensation`` (of a finalist) or
            ``training`` (steps).
        done, total: of the phase.
        loss: training loss of the last step.
        watched: step and loss on the held-out text of every look so far.
    """

    phase: str
    done: int
    total: int
    loss: float | None = None
    watched: Sequence[tuple[int, float]] = ()


Listener = Callable[[HealProgress], None]
"""Told of progress; what it raises stops the training, and the checkpoints stay."""


class Curves:
    """The losses in a Trainer's log.

    Args:
        log: its ``log_history``.

    Attributes:
        training: step and loss, in order.
        watched: the same loss on the held-out text, from step 0, the pruned model, on.
        held_out: next-token cross-entropy there, whatever is trained.
        seconds: spent on the steps so far, by this process and those before it.
    """

    def __init__(self, log: Sequence[Mapping[str, float]] = ()) -> None:
        self.training: list[tuple[int, float]] = []
        self.watched: list[tuple[int, float]] = []
        self.held_out: list[tuple[int, float]] = []
        self.seconds = 0.0
        self._read = 0
        self.read(log)

    def read(self, log: Sequence[Mapping[str, float]]) -> None:
        """Take in what is new in the log."""
        for entry in log[self._read :]:
            curves = {"loss": self.training, "eval_loss": self.watched, "eval_cross_entropy": self.held_out}
            for name, curve in curves.items():
                if name in entry:
                    curve.append((int(entry["step"]), float(entry[name])))
            self.seconds = max(self.seconds, float(entry.get("seconds", 0.0)))
        self._read = len(log)

    @property
    def best(self) -> tuple[int, float]:
        """Step and value of the least watched loss; the first of equals."""
        return min(self.watched, key=lambda look: (look[1] if math.isfinite(look[1]) else math.inf, look[0]))

    @property
    def diverged(self) -> bool:
        """Whether a loss is no number, or the last few are all far above the first."""
        last = [loss for _, loss in self.training[-_FAR_STEPS:]]
        if not all(math.isfinite(loss) for loss in (*last, *(loss for _, loss in self.watched[-1:]))):
            return True
        return len(self.training) > _FAR_STEPS and min(last) > self.training[0][1] + _FAR

    def over(self, recipe: HealRecipe) -> bool:
        """Whether there is no more to train: all steps are done, the last looks brought no new best, or it diverged."""
        if not self.watched:
            return False
        best = self.best[0]
        idle = sum(step > best for step, _ in self.watched)
        return self.watched[-1][0] >= recipe.steps or idle >= recipe.patience or self.diverged


class Examples(Dataset[dict[str, torch.Tensor]]):
    """Sequences, with what the teacher says of them."""

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
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def loss_of(logits_BLV: torch.Tensor, batch: Mapping[str, torch.Tensor], recipe: HealRecipe) -> torch.Tensor:
    """The recipe's loss of a batch, in nats per token; no part of it is computed that has no weight.

    ``lm``: mean of -log q(next) over the L - 1 tokens that have a predecessor. ``distill``: mean over all L positions
    of KL(teacher || student) as the search's ``--kl-top`` takes it, over the teacher's K likeliest tokens and one lump
    of the rest; it bounds the KL over the vocabulary from below, and unlike a renormalised one it also teaches how much
    is left to other tokens. ``mix``: (1 - w) lm + w distill.
    """
    if recipe.loss == "lm":
        return _cross_entropy(logits_BLV, batch["input_ids"])
    log_q_RV = torch.log_softmax(logits_BLV.flatten(0, 1), dim=-1, dtype=torch.float32)
    log_p_RK = batch["log_p"].flatten(0, 1)
    dense = DenseRows(log_p_RK.exp(), log_p_RK, batch["index"].flatten(0, 1).long())
    kl = dense.divergence(log_q_RV).mean()
    if recipe.loss == "distill":
        return kl
    log_q_BLV = log_q_RV.view(logits_BLV.shape)
    next_BL = batch["input_ids"][:, 1:, None]
    lm = -log_q_BLV[:, :-1].gather(2, next_BL).mean()
    return (1 - recipe.distill_weight) * lm + recipe.distill_weight * kl


def _cross_entropy(logits_BLV: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
    next_BL = nn.functional.pad(ids_BL[:, 1:], (0, 1), value=-100)  # ignored; to cut off the logits would copy them
    return nn.functional.cross_entropy(logits_BLV.flatten(0, 1).float(), next_BL.flatten())


@torch.no_grad()
def held_out_losses(
    model: nn.Module, examples: Examples, recipe: HealRecipe, device: torch.device
) -> tuple[float, float]:
    """The recipe's loss of a model on held-out text, and its next-token cross-entropy; both in nats per token."""
    sums = [0.0, 0.0]
    for start in range(0, len(examples), recipe.batch_size):
        stopping.check()
        rows = [examples[i] for i in range(start, min(start + recipe.batch_size, len(examples)))]
        batch = {name: tensor.to(device) for name, tensor in _collate(rows).items()}
        logits_BLV = model(input_ids=batch["input_ids"], use_cache=False).logits
        lm = float(_cross_entropy(logits_BLV, batch["input_ids"]))
        own = lm if recipe.loss == "lm" else float(loss_of(logits_BLV, batch, recipe))
        sums = [total + value * len(rows) for total, value in zip(sums, (own, lm), strict=True)]
    return sums[0] / len(examples), sums[1] / len(examples)


class HealTrainer(Trainer):
    """transformers' Trainer with the recipe's loss, held-out cross-entropy as evaluation, and whole checkpoints.

    Args:
        model: the pruned model with its adapter.
        folder: where checkpoints go.
        bf16: compute in bfloat16 (autocast).
        checkpointing: compute activations again in the backward pass instead of keeping them.
    """

    loss_is_scaled_for_ga = False  # ours is a batch's mean; the Trainer divides it by the batches of a step

    def __init__(
        self,
        model: nn.Module,
        recipe: HealRecipe,
        sequences: Sequences,
        teacher: Teacher | None,
        folder: Path,
        listener: Listener,
        *,
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
            callbacks=[_Stop(recipe, listener)],
        )
        self.remove_callback(PrinterCallback)
        self._began = time.monotonic()
        self._before = 0.0

    def heal(self) -> Curves:
        """Train, from the newest whole checkpoint where there is one, until there is no more to train.

        Returns:
            All losses, those before the checkpoint included.
        """
        checkpoint = newest_checkpoint(self._folder)
        if checkpoint is not None:
            curves = curves_of(checkpoint)
            if curves.over(self._recipe):  # killed behind the last step
                return curves
            self._before = curves.seconds
        self.args.eval_on_start = checkpoint is None
        self._began = time.monotonic()
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return Curves(self.state.log_history)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The recipe's loss of a batch."""
        outputs = model(input_ids=inputs["input_ids"], use_cache=False)
        loss = loss_of(outputs.logits, inputs, self._recipe)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ANN401 (the Trainer's own)
        """The losses on the held-out text; no logit is kept."""
        model: Any = self.model
        model.eval()
        with self.compute_loss_context_manager():
            own, lm = held_out_losses(model, self._held_out, self._recipe, self.args.device)
        metrics = {"eval_loss": own, "eval_cross_entropy": lm}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Note how long it took up to here, the time before a resumption included."""
        super().log({**logs, "seconds": self._before + time.monotonic() - self._began}, start_time)

    def floating_point_ops(self, inputs: dict[str, torch.Tensor | Any]) -> int:
        """Not counted: the estimate goes through all parameters at every batch."""
        return 0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401 (the Trainer's own)
        """Save, and mark as whole what has reached the disk; a half of it does not stay on a disk that is full."""
        checkpoint = self._folder / f"{_CHECKPOINT}{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            mark_whole(checkpoint)
        except BaseException:
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise


def _arguments(
    recipe: HealRecipe, folder: Path, device: torch.device, *, bf16: bool, checkpointing: bool
) -> TrainingArguments:
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
        logging_nan_inf_filter=False,  # or a loss that is no number is replaced by the mean of those before
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several would be DataParallel, and other batches
    return arguments


class _Stop(TrainerCallback):
    """Says when to look, to save and to stop; tells the listener."""

    def __init__(self, recipe: HealRecipe, listener: Listener) -> None:
        self._recipe, self._listener, self._curves = recipe, listener, Curves()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        stopping.check()  # the checkpoints stay
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
        if "train_runtime" in (logs or {}):
            return  # the Trainer's last word, which is no step
        curves = self._curves
        curves.read(state.log_history)
        if curves.diverged or curves.over(self._recipe):
            control.should_training_stop = True
        if curves.diverged:
            control.should_save = control.should_evaluate = False
        loss = curves.training[-1][1] if curves.training else None
        self._listener(HealProgress("training", state.global_step, self._recipe.steps, loss, tuple(curves.watched)))


def mark_whole(checkpoint: Path) -> None:
    """Bring a checkpoint to disk, and then say so in it."""
    sizes = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file():
            sizes[str(path.relative_to(checkpoint))] = path.stat().st_size
            sync(path)
    scratch = checkpoint / f".{WHOLE}"
    scratch.write_text(json.dumps(sizes), encoding="utf-8")
    sync(scratch)
    scratch.rename(checkpoint / WHOLE)
    sync(checkpoint)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those that a killed process left half written are deleted."""
    found = []
    for path in checkpoints(folder):
        if _is_whole(path):
            found.append((int(path.name.removeprefix(_CHECKPOINT)), path))
        else:
            shutil.rmtree(path)
    return max(found)[1] if found else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def curves_of(checkpoint: Path) -> Curves:
    """The losses up to a checkpoint."""
    return Curves(json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["log_history"])


def checkpoint_at(folder: Path, step: int) -> Path:
    """The checkpoint behind a step."""
    return folder / f"{_CHECKPOINT}{step}"
