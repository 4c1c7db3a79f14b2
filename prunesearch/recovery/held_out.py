"""Scores of a candidate on held-out tokens while its weights are changed."""

import math
from collections.abc import Mapping, Sequence

import torch

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ScoringError
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import ChunkResult, ChunkWork
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.metrics.perplexity import Perplexity
from prunesearch.recovery.output_projections import Edit, applied
from prunesearch.runtime import stopping

# Number of the dense model's likeliest tokens in the KL. Few are enough, and they need little
# memory.
_KL_TOP = 512


class HeldOut:
    """Scores a candidate on the held-out tokens while its weights are changed."""

    def __init__(
        self, loaded: LoadedModel, candidate: LayerSubset, held_out_BL: torch.Tensor
    ) -> None:
        self._forward = Forward(loaded.model, loaded.layers)
        self._objective = CalibrationObjective(loaded, held_out_BL, Perplexity(_KL_TOP))
        self._candidate = candidate
        # Score the dense model and the pruned model before any weight is changed.
        metrics = []
        for found in self._score([LayerSubset.of(loaded.n_layers), candidate]):
            if isinstance(found, ScoringError):
                raise found
            metrics.append(found)
        self.dense, self.pruned = metrics

    def metrics(self, edit: Edit) -> Mapping[str, float]:
        """Score the candidate with an edit applied.

        The loss is infinite if its output is not finite.
        """
        with applied(edit):
            [found] = self._score([self._candidate])
        if isinstance(found, ScoringError):
            return {"cross_entropy": math.inf}
        return found

    def _score(self, candidates: Sequence[LayerSubset]) -> list[Mapping[str, float] | ScoringError]:
        """Score candidates on all chunks.

        The result of a candidate that failed is its first error.
        """
        results: dict[LayerSubset, list[ChunkResult]] = {}
        for candidate in candidates:
            results[candidate] = []
        # Score one chunk at a time, so that the results arrive in the order of the chunks.
        for chunk in self._objective.chunks:
            stopping.check()
            pieces = [ChunkWork(chunk, candidates)]
            for result in self._objective.score(pieces, self._forward):
                results[result.candidate].append(result)
        # Combine the chunks of each candidate, unless one of them failed.
        scores: list[Mapping[str, float] | ScoringError] = []
        for candidate in candidates:
            failure = _first_error(results[candidate])
            if failure is None:
                rows = [result.rows for result in results[candidate]]
                scores.append(self._objective.metrics(rows).values)
            else:
                scores.append(failure)
        return scores


def _first_error(results: Sequence[ChunkResult]) -> ScoringError | None:
    for result in results:
        if result.error is not None:
            return result.error
    return None
