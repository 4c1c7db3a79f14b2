"""What was measured of a study's candidates after the search: figures on other data, latencies and
generated texts.

They are stored in the study, as system attributes of their own, because optuna-dashboard lists the
user attributes. No sampler reads them, so they do not change the trials of a study, and `study
copy` copies them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

from optuna.study import Study
from sqlalchemy import Connection

from prunesearch.errors import InputError
from prunesearch.runtime.json_values import (
    Json,
    JsonObject,
    as_float,
    as_int,
    as_list,
    as_object,
    as_text,
)
from prunesearch.studies import persistence, study_columns
from prunesearch.studies.optuna_internals.access import set_system_attribute, system_attributes
from prunesearch.studies.study_data import find_study

MEASURED_ATTR = "prunesearch:measured:"
"""Start of the names of the system attributes of a study that hold measurements."""
DENSE = "none"
"""Text of the candidate that drops nothing."""
Badge = Literal["searched on", "held out"]
"""Whether the search has seen the data of a figure."""
BADGES: tuple[Badge, ...] = get_args(Badge)
ROLES = ("dense", "winner", "naive-best", "healed", "compensated", "exported")
BASELINE = "baseline:"
"""Start of the roles of candidates that the winner is compared with: ``baseline:magnitude``."""
_DIGITS = 9  # of a stored loss


@dataclass(frozen=True)
class Measurement:
    """What was measured of one candidate on some data.

    Attributes:
        candidate: what the candidate drops, as ``3,7a``; ``none`` is the dense model.
        role: why it was measured: one of `ROLES`, or a baseline, as in ``baseline:magnitude``.
        data: short name of the data, such as ``hellaswag docs 200-2199``.
        data_content: digest of what was scored. Values are comparable if it is equal.
        badge: whether the search has seen the data.
        metric: name of the metric.
        value: its value.
        stderr: standard error of the value; None if it has none.
        n: number of documents or sequences.
        per_document: losses of the documents, where less is better. Measurements with equal
            `data_content` and metric have them in the same order. May be empty.
        params, bytes: size of the candidate.
        prefill_ms, decode_ms: median latency of a prefill, and of one decoded token.
        prefill_error_ms, decode_error_ms: standard errors of the latencies over the runs.
        latency_runs: number of runs that each latency is the median of.
        texts: prompts and the texts that were generated greedily after them.
        made: time of the measurement, in seconds since 1970.
        machine: name of the hardware.
        checkpoint: digest of the manifest of the checkpoint that was measured; empty for a
            candidate, and if it is not known.

    Raises:
        InputError: the role or the badge is not known.
    """

    candidate: str
    role: str
    data: str
    data_content: str
    badge: Badge
    metric: str
    value: float
    stderr: float | None
    n: int
    per_document: tuple[float, ...] = ()
    params: int | None = None
    bytes: int | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    prefill_error_ms: float | None = None
    decode_error_ms: float | None = None
    latency_runs: int = 0
    texts: tuple[tuple[str, str], ...] = ()
    made: float = 0.0
    machine: str = ""
    checkpoint: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES and not self.role.startswith(BASELINE):
            raise InputError(
                f"role {self.role!r} of a measurement is not known: give one of "
                f"{', '.join(ROLES)}, or {BASELINE}NAME"
            )
        if self.badge not in BADGES:
            raise InputError(
                f"badge {self.badge!r} of a measurement is not known: give one of "
                f"{', '.join(BADGES)}"
            )

    @property
    def digest(self) -> str:
        """Digest of what was measured. A later measurement of the same replaces the earlier."""
        parts = [self.candidate, self.role, self.data_content, self.metric]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def repeats(self, other: "Measurement | None") -> bool:
        """Return whether another measurement is of the same model on the same data."""
        if other is None or self.digest != other.digest:
            return False
        return self.checkpoint == other.checkpoint

    def is_comparable(self, other: "Measurement") -> bool:
        """Return whether two measurements have losses of the same documents."""
        if not self.per_document or len(self.per_document) != len(other.per_document):
            return False
        return self.data_content == other.data_content and self.metric == other.metric

    def stored(self) -> JsonObject:
        """Return the measurement as JSON values."""
        values: JsonObject = dict(vars(self))
        values["per_document"] = [float(f"{loss:.{_DIGITS}g}") for loss in self.per_document]
        values["texts"] = [list(pair) for pair in self.texts]
        return values

    @classmethod
    def from_stored(cls, stored: JsonObject) -> Self:
        """Build the measurement from the values that `stored` returned.

        Raises:
            ValueError: a value is missing or of another kind.
        """

        def text(name: str) -> str:
            return as_text(stored.get(name), name)

        def number(name: str) -> float | None:
            return None if stored.get(name) is None else as_float(stored[name], name)

        def count(name: str) -> int | None:
            return None if stored.get(name) is None else as_int(stored[name], name)

        losses = as_list(stored.get("per_document"), "per_document")
        return cls(
            candidate=text("candidate"),
            role=text("role"),
            data=text("data"),
            data_content=text("data_content"),
            badge=cast(Badge, text("badge")),
            metric=text("metric"),
            value=as_float(stored.get("value"), "value"),
            stderr=number("stderr"),
            n=as_int(stored.get("n"), "n"),
            per_document=tuple(as_float(loss, "per_document") for loss in losses),
            params=count("params"),
            bytes=count("bytes"),
            prefill_ms=number("prefill_ms"),
            decode_ms=number("decode_ms"),
            prefill_error_ms=number("prefill_error_ms"),
            decode_error_ms=number("decode_error_ms"),
            latency_runs=as_int(stored.get("latency_runs"), "latency_runs"),
            texts=_texts(stored.get("texts")),
            made=as_float(stored.get("made"), "made"),
            machine=text("machine"),
            # Earlier versions did not store it.
            checkpoint=as_text(stored.get("checkpoint", ""), "checkpoint"),
        )


def _texts(stored: Json) -> tuple[tuple[str, str], ...]:
    pairs = []
    for pair in as_list(stored, "texts"):
        prompt, text = as_list(pair, "texts")
        pairs.append((as_text(prompt, "texts"), as_text(text, "texts")))
    return tuple(pairs)


def add(study: Study, measurement: Measurement) -> None:
    """Store a measurement in a study.

    An earlier measurement of the same candidate, role, data and metric is replaced.
    """
    name = MEASURED_ATTR + measurement.digest
    set_system_attribute(study, name, json.dumps(measurement.stored()))


def has(study: Study, measurement: Measurement) -> bool:
    """Return whether a study has a measurement of the same model, role, data and metric."""
    stored = system_attributes(study).get(MEASURED_ATTR + measurement.digest)
    if not isinstance(stored, str):
        return False
    found = _parsed(stored)
    return found is not None and measurement.repeats(found)


def read(storage: str | Connection, name: str) -> tuple[Measurement, ...]:
    """Read the measurements of a study, the earliest first.

    Those that another version of prunesearch wrote in another way are left out.

    Args:
        storage: URL of the database of studies, or a connection to it.
        name: name of the study.

    Raises:
        UnknownNameError: there is no study of this name.
        StudyError: prunesearch did not make the study.
        StorageError: see `persistence.open_storage`.
    """
    if isinstance(storage, Connection):
        return _read(storage, name)
    with (
        persistence.opened_briefly(storage) as opened,
        opened.engine.connect() as connection,
        connection.begin(),
    ):
        return _read(connection, name)


def _read(connection: Connection, name: str) -> tuple[Measurement, ...]:
    key = find_study(connection, name)
    attributes = study_columns.study_system_attributes(connection, key.id, MEASURED_ATTR)
    found: list[Measurement] = []
    # Each attribute holds one measurement.
    for text in attributes.values():
        measurement = _parsed(text)
        if measurement is not None:
            found.append(measurement)
    return tuple(sorted(found, key=lambda made: (made.made, made.digest)))


def _parsed(text: Json) -> Measurement | None:
    """Return a stored measurement; None if another version has written it in another way."""
    try:
        stored = as_object(json.loads(as_text(text, "measurement")), "measurement")
        return Measurement.from_stored(stored)
    except (ValueError, RecursionError):
        return None


def of_role(measurements: Sequence[Measurement], role: str) -> tuple[Measurement, ...]:
    """Return the measurements of a role, such as ``winner``."""
    return tuple(found for found in measurements if found.role == role)
