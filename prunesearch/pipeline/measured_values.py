"""Measurements of evaluations: what is stored in a study of one evaluated model."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.errors import InputError
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.execution.latency import machine
from prunesearch.execution.speed import MeasuredSpeed
from prunesearch.models.loading import LoadedModel
from prunesearch.studies.measurements import Badge, Measurement


@dataclass(frozen=True)
class MeasuredModel:
    """A model that was evaluated, and the data that it was evaluated on.

    Attributes:
        dropped: what the model lacks; see `Measurement.candidate`.
        role: see `Measurement.role`.
        data: short name of the data.
        badge: whether the search has seen the data.
        checkpoint: digest of its manifest; empty for a candidate.
    """

    dropped: str
    role: str
    data: str
    badge: Badge
    checkpoint: str = ""


def losses_of(
    engine: LocalEngine, candidates: Iterable[LayerSubset]
) -> dict[LayerSubset, tuple[float, ...]]:
    """Return the losses of each candidate on the items of the data; they are in the cache.

    A mix and some metrics of tasks have no value for each item. Nothing is returned then.
    """
    chosen = list(candidates)
    try:
        losses = engine.losses(chosen)
    except InputError:
        return {}
    found: dict[LayerSubset, tuple[float, ...]] = {}
    for candidate, own in zip(chosen, losses, strict=True):
        found[candidate] = tuple(own)
    return found


def measurements_of(
    loaded: LoadedModel,
    engine: LocalEngine,
    measured: MeasuredModel,
    evaluation: Evaluation,
    losses: tuple[float, ...],
    names: Iterable[str],
) -> list[Measurement]:
    """Return a measurement for each metric that has a finite value.

    Args:
        loaded: the model.
        engine: what evaluated it.
        measured: what was evaluated, on which data.
        evaluation: its metrics.
        losses: losses of the items, by the metric of the engine's objective.
        names: names of the metrics.
    """
    found = []
    for name in dict.fromkeys(names):
        value, error = evaluation.metrics.get(name), evaluation.stderr.get(name)
        if value is None or not math.isfinite(value):
            continue
        if error is not None and not math.isfinite(error):
            error = None
        found.append(
            Measurement(
                candidate=measured.dropped,
                role=measured.role,
                data=measured.data,
                data_content=engine.objective.digest,
                badge=measured.badge,
                metric=name,
                value=value,
                stderr=error,
                n=len(losses),
                per_document=losses if name == engine.objective.metric else (),
                params=loaded.sizes.params(evaluation.candidate),
                bytes=loaded.sizes.bytes(evaluation.candidate),
                made=time.time(),
                machine=machine(loaded.model),
                checkpoint=measured.checkpoint,
            )
        )
    return found


def with_speed(
    measurement: Measurement,
    speed: MeasuredSpeed | None,
    texts: Sequence[tuple[str, str]],
) -> Measurement:
    """Return a measurement with latencies and texts."""
    measurement = replace(measurement, texts=tuple(texts))
    if speed is None:
        return measurement
    return replace(
        measurement,
        prefill_ms=speed.prefill_ms,
        prefill_error_ms=speed.prefill_error_ms,
        decode_ms=speed.decode_ms,
        decode_error_ms=speed.decode_error_ms,
        latency_runs=speed.runs,
    )
