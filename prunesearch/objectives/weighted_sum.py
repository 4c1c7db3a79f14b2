"""The weighted sum of several objectives: KL, perplexity and task metrics, each on its own data."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from prunesearch.errors import InputError
from prunesearch.execution.shared_forward import Forward
from prunesearch.objectives.base import Chunk, ChunkResult, HasItems, Metrics, Objective, Row, Work
from prunesearch.objectives.identity import tokens_digest
from prunesearch.objectives.registry import (
    REGISTRY,
    ObjectiveInputs,
    TaskInputs,
    names_in_mixes,
    task_entry,
)


@dataclass(frozen=True)
class Part:
    """One objective of a weighted sum.

    Attributes:
        objective: the objective.
        weights: weights by the names of its metrics.
        prefix: text before the names of its metrics in the sum's report, such as ``hellaswag ``.
    """

    objective: Objective
    weights: Mapping[str, float]
    prefix: str = ""


class WeightedSumObjective:
    """The weighted sum of metrics. A smaller sum is better.

    The sign of a metric is turned if a larger metric is better.

    Args:
        parts: parts by name.
    """

    metric = "mix"
    maximize = False

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = list(parts.values())
        # Number the chunks of all parts from one part to the next.
        self._first: list[int] = []
        self.chunks: list[Chunk] = []
        settings: dict[str, str | int] = {}
        for name, part in parts.items():
            first = len(self.chunks)
            self._first.append(first)
            for chunk in part.objective.chunks:
                self.chunks.append(replace(chunk, index=first + chunk.index))
            for setting, value in part.objective.settings.items():
                settings[f"{name} {setting}"] = value
        self.digest = tokens_digest([[name, part.objective.digest] for name, part in parts.items()])
        self.settings: Mapping[str, str | int] = settings

    def score(self, work: Work, forward: Forward) -> Iterator[ChunkResult]:
        """Score each part's chunks with the part."""
        for first, part in zip(self._first, self._parts, strict=True):
            chunks = part.objective.chunks
            own = []
            for piece in work:
                if first <= piece.chunk.index < first + len(chunks):
                    own.append(replace(piece, chunk=chunks[piece.chunk.index - first]))
            if not own:
                continue
            for result in part.objective.score(own, forward):
                yield replace(result, chunk=self.chunks[first + result.chunk.index])

    def metrics(self, results: Sequence[Sequence[Row]]) -> Metrics:
        """Return the metrics of all parts and their weighted sum.

        The standard error of the sum is that of independent parts.
        """
        values: dict[str, float] = {}
        stderr: dict[str, float] = {}
        total = variance = 0.0
        for first, part in zip(self._first, self._parts, strict=True):
            found = part.objective.metrics(results[first : first + len(part.objective.chunks)])
            # Report the part's metrics.
            for metric, value in found.values.items():
                values[part.prefix + metric] = value
            for metric, error in found.stderr.items():
                stderr[part.prefix + metric] = error
            # Add its terms.
            sign = -1.0 if part.objective.maximize else 1.0
            for metric, weight in part.weights.items():
                total += weight * sign * found.values[metric]
                variance += (weight * found.stderr.get(metric, 0.0)) ** 2
        return Metrics(values | {self.metric: total}, stderr | {self.metric: math.sqrt(variance)})

    def items(self) -> frozenset[str]:
        """Return the digests of the items of all parts."""
        digests: frozenset[str] = frozenset()
        for part in self._parts:
            if isinstance(part.objective, HasItems):
                digests |= part.objective.items()
        return digests

    def losses(self, results: Sequence[Sequence[Row]]) -> Sequence[float]:
        """Raise an error, because the parts have different items.

        Raises:
            InputError: always.
        """
        raise InputError(
            "`race` compares item by item, and a mix has items of several kinds: race one objective"
        )


def build_mix(terms: Mapping[str, float], inputs: ObjectiveInputs) -> WeightedSumObjective:
    """Build the weighted sum of objectives and tasks.

    Args:
        terms: weights by the names of registered objectives and of lm-eval tasks.
        inputs: what the parts are built from. The settings of its task are those of all tasks.
    """
    parts: dict[str, Part] = {}
    registered = names_in_mixes(terms)
    # One part for each task.
    for task, weight in terms.items():
        if task in registered:
            continue
        settings = replace(inputs.task or TaskInputs(task), task=task)
        objective = task_entry().build(replace(inputs, task=settings))
        parts[task] = Part(objective, {objective.metric: weight}, prefix=f"{task} ")
    # One part for all objectives that are computed together.
    for name in registered:
        entry = REGISTRY.get(name)
        part = parts.get(entry.part or name)
        if part is None:
            parts[entry.part or name] = part = Part(entry.build(inputs), {})
        weights = {**part.weights, entry.metric or part.objective.metric: terms[name]}
        parts[entry.part or name] = replace(part, weights=weights)
    return WeightedSumObjective(parts)
