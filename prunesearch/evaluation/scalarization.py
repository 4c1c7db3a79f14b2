"""The values that Optuna optimises: one weighted sum, or quality against size or time.

The sign of a metric is turned here and nowhere else.

Ratsapa et al. 2025 rank a pruned model by accuracy, size and inference time. Here, with s = (bytes
saved) / (dense bytes) and t = (predicted time saved) / (dense time):

    value = quality * metric + sign * (size * s + latency * t)

The sign is +1 if a larger metric is better (tasks), and the study maximises the value. It is -1 if
a smaller metric is better (KL, perplexity), and the study minimises the value. With the default
weights the value is the metric itself.

A Pareto study has two values instead. The first one is the metric. The second one is the remaining
bytes or the predicted milliseconds, and it is minimised.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.config.objective import ScoreWeights
from prunesearch.execution.latency import LatencyModel
from prunesearch.models.sizes import Sizes


@dataclass(frozen=True)
class TrialScalarizer:
    """Ranks evaluations of one objective on one model.

    Attributes:
        metric: the quality metric.
        maximize: True if a larger metric is better. The study's first value has the same direction.
        weights: weights of quality, size and latency in the sum.
        sizes: sizes of the model's parts.
        latency: latencies of the model's parts.
        against: ``size`` or ``latency`` for a study with two values. None: one weighted sum.
        noisy: True if candidates differ by chance, because the metric is that of documents.
    """

    metric: str
    maximize: bool
    weights: ScoreWeights
    sizes: Sizes
    latency: LatencyModel
    against: str | None = None
    noisy: bool = False

    def values(self, evaluation: Evaluation) -> list[float]:
        """Return the values of an evaluation that Optuna optimises."""
        candidate = evaluation.candidate
        # Two values: quality, and what is left of the size or the latency.
        if self.against is not None:
            size, time = (
                float(self.sizes.bytes(candidate)),
                round(self.latency.predict(candidate), 6),
            )
            return [evaluation.metrics[self.metric], size if self.against == "size" else time]
        # One value: quality, and the weighted share of the size and the latency that is saved.
        size_saved = 1 - self.sizes.bytes(candidate) / self.sizes.bytes()
        time_saved = 1 - self.latency.predict(candidate) / self.latency.predict()
        saved = self.weights.size * size_saved + self.weights.latency * time_saved
        quality = self.weights.quality * evaluation.metrics[self.metric]
        if self.maximize:
            return [quality + saved]
        return [quality - saved]

    def losses(self, values: Sequence[float]) -> tuple[float, ...]:
        """Return values with the sign that makes less better."""
        first = -values[0] if self.maximize else values[0]
        return (first, *values[1:])

    def standard_error(self, evaluation: Evaluation) -> float | None:
        """Return the standard error of the first value of a noisy objective; None for others.

        Errors that all candidates have in common do not count, so losses on calibration text, which
        is the same for all and long, have none.
        """
        error = evaluation.stderr.get(self.metric)
        if not self.noisy or self.against is not None or error is None:
            return None
        return self.weights.quality * error

    def better(self, value: float, than: float) -> bool:
        """Return True if the first value of a trial is better than another."""
        if self.maximize:
            return value > than
        return value < than

    def costs(self, candidate: LayerSubset) -> dict[str, float]:
        """Return the costs of a candidate, which are known without scoring it."""
        return {
            "params": self.sizes.params(candidate),
            "bytes": self.sizes.bytes(candidate),
            "latency_ms": round(self.latency.predict(candidate), 3),
        }


def objectives(
    metric: str, maximize: bool, weights: ScoreWeights, against: str | None
) -> tuple[Sequence[str], list[bool]]:
    """Return the names of a study's values, and for each True if a larger value is better."""
    if against is not None:
        cost = "bytes" if against == "size" else "latency_ms"
        return (metric, cost), [maximize, False]
    name = metric if weights == ScoreWeights() else f"weighted {metric}"
    return (name,), [maximize]
