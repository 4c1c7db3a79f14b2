"""Loss curves of a training, and the decisions that follow from them."""

import math
from collections.abc import Mapping, Sequence

from prunesearch.config.recovery import HealRecipe

# Distance from the first loss that counts as divergence, in nats. The perplexity is then seven
# times as high.
_FAR = 2.0
# Number of consecutive steps at this distance that count as divergence.
_FAR_STEPS = 5


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
