"""The losses of a study's candidate on each document, for paired tests, without a model.

They come from what was measured of the candidate (see `measurements`), or from the entries of the
evaluation cache. An entry holds the numbers of one candidate on one chunk of data, and its
pre-image names both. A study does not name its chunks. They are those that several of its trials
have in common, and the mean of the losses on them must equal the metric that the trial stores.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prunesearch.analysis.paired import PairedTest, paired_test
from prunesearch.cache.backend import Readable
from prunesearch.cache.entry import Entry
from prunesearch.cache.keys import canonical_json
from prunesearch.objectives.registry import REGISTRY, StoredMeasure
from prunesearch.runtime.json_values import JsonObject
from prunesearch.studies.measurements import Badge, Measurement
from prunesearch.studies.study_data import StudyData, TrialData
from prunesearch.studies.study_recipe import CHANNEL_ORDER

Source = Literal["measured", "cache"]
_SAMPLE = 4  # number of trials, beside the winner, that show which chunks a study has
_ROUNDING = 2e-6  # largest difference of a metric, which trials store with six digits
Rows = list[list[float]]
ChunkRows = dict[str, Rows]
"""A candidate's rows by the identity of the chunk, as a canonical text."""


@dataclass(frozen=True)
class DocumentLosses:
    """Losses of one candidate on each document or sequence. Less is better.

    Attributes:
        metric: name of the metric whose mean the losses have.
        data: short name of the data.
        data_content: digest of the data. Losses of equal data, metric and source have the same
            order.
        badge: whether the search has seen the data.
        source: whether they were measured after the search, or are those of the cache.
        losses: the losses.
    """

    metric: str
    data: str
    data_content: str
    badge: Badge
    source: Source
    losses: tuple[float, ...]

    def is_comparable(self, other: "DocumentLosses") -> bool:
        """Return whether both have losses of the same documents, in the same order."""
        same = self.metric == other.metric and self.data_content == other.data_content
        return same and self.source == other.source and len(self.losses) == len(other.losses)


def loss_metric_of(metric: str) -> str:
    """Return the metric that is the mean of the losses of a searched metric.

    It is the cross-entropy for the perplexity, and for all others the metric itself.
    """
    for entry in REGISTRY.entries():
        if entry.metric == metric and entry.stored is not None:
            return entry.stored(None).loss_metric
    return metric


def measured_losses(
    measurements: Sequence[Measurement], candidate: str
) -> tuple[DocumentLosses, ...]:
    """Return the losses of a candidate that were measured, those on held-out data first.

    Args:
        measurements: measurements of a study.
        candidate: text of the candidate.
    """
    found: dict[tuple[str, str], DocumentLosses] = {}
    for one in measurements:
        # What was changed after the search is another model.
        if one.candidate != candidate or one.role in ("healed", "compensated"):
            continue
        if one.per_document:
            metric = loss_metric_of(one.metric)
            found[metric, one.data_content] = DocumentLosses(
                metric, one.data, one.data_content, one.badge, "measured", one.per_document
            )
    return tuple(sorted(found.values(), key=lambda losses: losses.badge != "held out"))


def best_pair(
    first: Sequence[DocumentLosses], second: Sequence[DocumentLosses]
) -> tuple[DocumentLosses, DocumentLosses] | None:
    """Return losses of two candidates on the same documents; None if there are none.

    The first that fit are taken, so those on held-out data come before others.
    """
    for one in first:
        for other in second:
            if one.is_comparable(other) and len(one.losses) > 1:
                return one, other
    return None


def test_of(pair: tuple[DocumentLosses, DocumentLosses]) -> PairedTest:
    """Return the paired test of two candidates on the same documents."""
    return paired_test(pair[0].losses, pair[1].losses)


def cached_losses(
    study: StudyData, trial: TrialData, backends: Sequence[Readable]
) -> DocumentLosses | None:
    """Return the losses of a trial's candidate on the study's data, from the cache.

    Args:
        study: the study.
        trial: a finished trial that was scored on all data.
        backends: backends of the cache, as `maintenance.reading` opens them.

    Returns:
        The losses. None if the cache does not hold them, or if the objective has none for each
        document that could be read without its task: tasks, and mixes.
    """
    measure = _measure_of(study)
    numerics = study.identity.get("numerics")
    if measure is None or not isinstance(numerics, Mapping) or not study.model_content:
        return None
    # 1. Read the entries of the candidate, and of some other trials of the study.
    wanted = {canonical_of(study, trial.dropped): trial.dropped}
    for other in study.complete():
        if len(wanted) > _SAMPLE:
            break
        wanted.setdefault(canonical_of(study, other.dropped), other.dropped)
    found: defaultdict[str, ChunkRows] = defaultdict(dict)
    for backend in backends:
        for entry in backend.of_candidates(study.model_content, list(wanted)):
            _keep(entry, measure.kind, numerics, found)
    own = found.pop(canonical_of(study, trial.dropped), {})
    # 2. The chunks of the study are those that all of these trials have. If the cache has lost
    # entries of some trials, the chunks may be all that the candidate has.
    common = set(own).intersection(*(rows.keys() for rows in found.values()))
    metric = measure.loss_metric
    for chunks in [*_by_version(common), *_by_version(own)]:
        losses: list[float] = []
        for chunk in chunks:
            losses += measure.losses(own[chunk])
        expected = trial.figure(metric)
        if losses and expected is not None:
            mean = math.fsum(losses) / len(losses)
            if abs(mean - expected) <= _ROUNDING + 1e-9 * abs(expected):
                return DocumentLosses(
                    metric, _data_of(study), study.data_content, "searched on", "cache",
                    tuple(losses),
                )  # fmt: skip
    return None


def _by_version(chunks: Iterable[str]) -> list[list[str]]:
    """Group chunks by the version of their numbers, the newest version first.

    A cache may hold numbers of several versions for one candidate.
    """
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for chunk in sorted(chunks):
        groups[int(json.loads(chunk).get("version", 0))].append(chunk)
    return [groups[version] for version in sorted(groups, reverse=True)]


def canonical_of(study: StudyData, dropped: str) -> str:
    """Return a candidate as the keys of the cache spell it.

    See `LayerSubset.canonical` and `LayerWidths.canonical`.
    """
    order = study.identity.get(CHANNEL_ORDER)
    if isinstance(order, str):
        return f"widths/{study.n_layers}:{order}:{dropped}"
    return f"blocks/{study.n_layers}:{dropped}"


def _measure_of(study: StudyData) -> StoredMeasure | None:
    """Return what turns the stored rows of a study's objective into losses."""
    objective = study.recipe.objective
    if objective.name not in [entry.name for entry in REGISTRY.entries()]:
        return None
    stored = REGISTRY.get(objective.name).stored
    return None if stored is None else stored(objective.kl_top)


def _data_of(study: StudyData) -> str:
    return study.recipe.portable().data.calibration


def _keep(
    entry: Entry, kind: str, numerics: Mapping[str, object], found: dict[str, ChunkRows]
) -> None:
    """Keep the rows of an entry if they are of a kind of numbers and of a class of arithmetic."""
    try:
        fields: JsonObject = json.loads(entry.key.preimage)
        chunk, candidate = fields["chunk"], fields["candidate"]
    except (ValueError, KeyError):
        return
    if not isinstance(chunk, dict) or not isinstance(candidate, str):
        return
    if chunk.get("kind") == kind and chunk.get("numerics") == numerics:
        found[candidate].setdefault(canonical_json(chunk), entry.value)
