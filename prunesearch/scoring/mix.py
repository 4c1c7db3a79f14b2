"""Several objectives as one: a weighted sum of KL, perplexity and task metrics, each from its own data."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prunesearch.errors import InputError
from prunesearch.scoring.forward import Forward
from prunesearch.scoring.objectives import Chunk, Metrics, Objective, Scored, Work, tokens_digest


class MixObjective:
    """The sum of weight times metric, less being better; a metric of which more is better enters with its sign turned.

    Args:
        parts: objectives by name; their metrics are reported as the name alone for a calibration's, and as
            ``task metric`` for a task's.
        weights: by ``kl``, ``perplexity`` or the part's name, which stands for the metric that it searches.
    """

    metric = "mix"
    maximize = False

    def __init__(self, parts: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        self._parts = dict(parts)
        self._weights = dict(weights)
        self._first: dict[str, int] = {}  # number of each part's first chunk among all
        self.chunks: list[Chunk] = []
        for name, part in self._parts.items():
            self._first[name] = len(self.chunks)
            first = len(self.chunks)
            self.chunks += [replace(chunk, index=first + chunk.index) for chunk in part.chunks]
        self.digest = tokens_digest([[name, part.digest] for name, part in self._parts.items()])
        settings: dict[str, Any] = {}
        for name, part in self._parts.items():
            settings |= {f"{name} {setting}": value for setting, value in part.settings.items()}
        self.settings: Mapping[str, Any] = settings

    def score(self, work: Work, forward: Forward) -> Iterator[Scored]:
        """Let each part score its chunks."""
        for name, part in self._parts.items():
            first = self._first[name]
            own = [
                (part.chunks[chunk.index - first], candidates)
                for chunk, candidates in work
                if first <= chunk.index < first + len(part.chunks)
            ]
            for index, candidate, results in part.score(own, forward) if own else ():
                yield first + index, candidate, results

    def metrics(self, results: Sequence[list[Any]]) -> Metrics:
        """All parts' metrics and their weighted sum; its error takes the parts as independent."""
        values: dict[str, float] = {}
        stderr: dict[str, float] = {}
        total = variance = 0.0
        for name, part in self._parts.items():
            first = self._first[name]
            found = part.metrics(results[first : first + len(part.chunks)])
            prefix = "" if "kl" in found.values else f"{name} "
            values |= {prefix + metric: value for metric, value in found.values.items()}
            stderr |= {prefix + metric: error for metric, error in found.stderr.items()}
            for term, weight in self._weights.items():
                metric = term if not prefix and term in found.values else part.metric if term == name else None
                if metric is not None:
                    total += weight * (-1.0 if part.maximize else 1.0) * found.values[metric]
                    variance += (weight * found.stderr.get(metric, 0.0)) ** 2
        return Metrics(values | {self.metric: total}, stderr | {self.metric: math.sqrt(variance)})

    def losses(self, results: Sequence[list[Any]]) -> Sequence[float]:
        """There are none: the parts have different items.

        Raises:
            InputError: always.
        """
        raise InputError("--race compares item by item, and a mix has items of several kinds: race one objective")
