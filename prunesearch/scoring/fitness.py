"""What Optuna optimises: one weighted sum, or quality against size or time; the one place where a sign is turned.

Ratsapa et al. 2025 rank a pruned model by accuracy, size and inference time. Here, with s = (bytes saved) / (dense
bytes) and t = (predicted time saved) / (dense time):

    value = quality * metric + sign * (size * s + latency * t)

with sign = +1 where more of the metric is better (tasks; the study maximises) and -1 where less is (KL, perplexity;
the study minimises). With the default weights the value is the metric itself. A Pareto study has two values instead:
the metric, and the bytes or the predicted milliseconds that are left, which are minimised.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.model.anatomy import Sizes
from prunesearch.recipe import Weights
from prunesearch.scoring.cost import LatencyModel


@dataclass(frozen=True)
class Fitness:
    """Ranks evaluations of one objective on one model.

    Attributes:
        metric: the quality metric.
        maximize: whether more of it is better; also the direction of the study's first value.
        against: ``size`` or ``latency`` for a second value; None for one weighted sum.
    """

    metric: str
    maximize: bool
    weights: Weights
    sizes: Sizes
    latency: LatencyModel
    against: str | None = None

    def values(self, evaluation: Evaluation) -> list[float]:
        """The numbers that Optuna optimises."""
        candidate = evaluation.candidate
        if self.against is not None:
            size, time = float(self.sizes.bytes(candidate)), round(self.latency.predict(candidate), 6)
            return [evaluation.metrics[self.metric], size if self.against == "size" else time]
        size_saved = 1 - self.sizes.bytes(candidate) / self.sizes.bytes()
        time_saved = 1 - self.latency.predict(candidate) / self.latency.predict()
        saved = self.weights.size * size_saved + self.weights.latency * time_saved
        quality = self.weights.quality * evaluation.metrics[self.metric]
        return [quality + saved if self.maximize else quality - saved]

    def better(self, value: float, than: float) -> bool:
        """Whether one first value beats another."""
        return value > than if self.maximize else value < than

    def costs(self, candidate: LayerSubset) -> dict[str, float]:
        """What is known of a candidate without scoring it."""
        return {
            "params": self.sizes.params(candidate),
            "bytes": self.sizes.bytes(candidate),
            "latency_ms": round(self.latency.predict(candidate), 3),
        }


def objectives(metric: str, maximize: bool, weights: Weights, against: str | None) -> tuple[Sequence[str], list[bool]]:
    """Names of a study's values, and for each whether more is better."""
    if against is not None:
        return (metric, "bytes" if against == "size" else "latency_ms"), [maximize, False]
    return ((metric if weights == Weights() else f"weighted {metric}"),), [maximize]
