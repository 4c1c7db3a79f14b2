"""Parts of transformers' `Trainer` that are not in its public interface. Tested with 5.23.0.

`TRAINER_STATE_NAME` is the name of the file with the trainer's state in a checkpoint. The module
stands apart from `compat.transformers` because importing the `Trainer` takes long.
"""

import dataclasses
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME as TRAINER_STATE_NAME


def checkpointing_arguments(enabled: bool) -> dict[str, Any]:
    """Return the arguments of `TrainingArguments` that compute activations again.

    Older versions of transformers, such as 5.17, call it gradient checkpointing.
    """
    kind = "activation_checkpointing"
    if kind not in {field.name for field in dataclasses.fields(TrainingArguments)}:
        kind = "gradient_checkpointing"
    return {kind: enabled, f"{kind}_kwargs": {"use_reentrant": False} if enabled else None}


class CheckpointingTrainer(Trainer):
    """A `Trainer` whose way to save a checkpoint can be replaced: override `save_checkpoint`."""

    def save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401
        """Save a checkpoint as the `Trainer` does."""
        super()._save_checkpoint(model, trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401
        # The Trainer calls this method.
        self.save_checkpoint(model, trial)


def stop_checkpointing(model: nn.Module) -> None:
    """Let a model keep its activations again.

    Older versions of transformers, such as 5.17, call it gradient checkpointing.
    """
    for name in ("activation_checkpointing_disable", "gradient_checkpointing_disable"):
        disable = getattr(model, name, None)
        if disable is not None:
            disable()
            return


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Keep the `Trainer` from using several GPUs, which would change the batches.

    Stands for `arguments._n_gpu`: there is no argument for it.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
