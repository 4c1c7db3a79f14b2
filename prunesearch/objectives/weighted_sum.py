"""The weighted sum of several objectives: KL, perplexity and task metrics, each on its own data."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from prunesearch.errors import InputError
from prunesearch.execution.shared_forward import Forward
from prunesearch.objectives.base import Chunk, ChunkResult, Metrics, Objective, Row, Work
from prunesearch.objectives.identity import tokens_digest


class WeightedSumObjective:
    """The weighted sum of metrics. A smaller sum is better.

    The sign of a metric is turned if a larger metric is better.

    Args:
        parts: objectives by name. The metrics of a calibration objective are reported by their own
            names, and those of a task as ``task metric``.
        weights: weights by ``kl``, ``perplexity`` or the name of a part. The name of a part stands
            for its searched metric.
    """

    metric = "mix"
    maximize = False

    def __init__(self, parts: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        self._parts = dict(parts)
        self._weights = dict(weights)
        # Number the chunks of all parts from one part to the next.
        self._first: dict[str, int] = {}
        self.chunks: list[Chunk] = []
        for name, part in self._parts.items():
            first = len(self.chunks)
            self._first[name] = first
            self.chunks += [replace(chunk, index=first + chunk.index) for chunk in part.chunks]
        self.digest = tokens_digest([[name, part.digest] for name, part in self._parts.items()])
        settings: dict[str, str | int] = {}
        for name, part in self._parts.items():
            for setting, value in part.settings.items():
                settings[f"{name} {setting}"] = value
        self.settings: Mapping[str, str | int] = settings

    def score(self, work: Work, forward: Forward) -> Iterator[ChunkResult]:
        """Score each part's chunks with the part."""
        for name, part in self._parts.items():
            first = self._first[name]
            own = []
            for piece in work:
                if first <= piece.chunk.index < first + len(part.chunks):
                    own.append(replace(piece, chunk=part.chunks[piece.chunk.index - first]))
            if not own:
                continue
            for result in part.score(own, forward):
                yield replace(result, chunk=self.chunks[first + result.chunk.index])

    def metrics(self, results: Sequence[Sequence[Row]]) -> Metrics:
        """Return the metrics of all parts and their weighted sum.

        The standard error of the sum is that of independent parts.
        """
        values: dict[str, float] = {}
        stderr: dict[str, float] = {}
        total = variance = 0.0
        for name, part in self._parts.items():
            first = self._first[name]
            found = part.metrics(results[first : first + len(part.chunks)])
            # Report the part's metrics. Those of a task are prefixed with its name.
            prefix = "" if "kl" in found.values else f"{name} "
            for metric, value in found.values.items():
                values[prefix + metric] = value
            for metric, error in found.stderr.items():
                stderr[prefix + metric] = error
            # Add the terms that name a metric of the calibration, or the part itself.
            sign = -1.0 if part.maximize else 1.0
            for term, weight in self._weights.items():
                if not prefix and term in found.values:
                    metric = term
                elif term == name:
                    metric = part.metric
                else:
                    continue
                total += weight * sign * found.values[metric]
                variance += (weight * found.stderr.get(metric, 0.0)) ** 2
        return Metrics(values | {self.metric: total}, stderr | {self.metric: math.sqrt(variance)})

    def losses(self, results: Sequence[Sequence[Row]]) -> Sequence[float]:
        """Raise an error, because the parts have different items.

        Raises:
            InputError: always.
        """
        raise InputError(
            "--race compares item by item, and a mix has items of several kinds: race one objective"
        )
