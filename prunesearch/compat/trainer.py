"""Parts of transformers' `Trainer` that are not in its public interface. Tested with 5.23.0.

`TRAINER_STATE_NAME` is the name of the file with the trainer's state in a checkpoint. The module
stands apart from `compat.transformers` because importing the `Trainer` takes long.
"""

from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME as TRAINER_STATE_NAME


class CheckpointingTrainer(Trainer):
    """A `Trainer` whose way to save a checkpoint can be replaced: override `save_checkpoint`."""

    def save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401
        """Save a checkpoint as the `Trainer` does."""
        super()._save_checkpoint(model, trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401
        # The Trainer calls this method.
        self.save_checkpoint(model, trial)


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Keep the `Trainer` from using several GPUs, which would change the batches.

    Stands for `arguments._n_gpu`: there is no argument for it.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
