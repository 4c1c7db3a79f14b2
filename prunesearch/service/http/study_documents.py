"""The JSON documents of studies and of the cache. The OpenAPI document describes them."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue

from prunesearch.service.http.documents import Document


class StudyDocument(Document):
    """A study. The best trial is null for a Pareto study, and the recommended one where scores are
    noisy.
    """

    name: str
    model: str | None
    objective: str | None
    drop: str | None
    sampler: str | None
    trials: int = Field(description="Number of finished trials.")
    running: int
    failed: int
    partial_subsets: int
    best_value: float | None
    best_dropped: str | None
    best_number: int | None
    objectives: int = Field(description="Number of values of a trial.")
    started: float | None
    finished: float | None


_Recommendation = Annotated[
    dict[str, JsonValue] | None,
    Field(
        description="How the best trial of a noisy study was decided, as `prunesearch study best "
        "--json` has it; null if its value is the best."
    ),
]


class StudyDetailsDocument(StudyDocument):
    """A study and its recipe."""

    recipe: dict[str, JsonValue]
    recommendation: _Recommendation = None


class StudyPageDocument(BaseModel):
    """A page of studies, in the order of their names."""

    studies: list[StudyDocument]
    next: str | None


class TrialDocument(Document):
    """A trial."""

    number: int
    state: Literal["running", "complete", "pruned", "fail", "waiting"]
    values: list[float | None]
    dropped: str = Field(description="Dropped layers: 3,7a,12m.")
    attributes: dict[str, JsonValue]
    started: float | None
    finished: float | None


class BestTrialDocument(TrialDocument):
    """The best trial."""

    recommendation: _Recommendation = None


class TrialListDocument(BaseModel):
    """Trials."""

    trials: list[TrialDocument]


class TrialPageDocument(TrialListDocument):
    """A page of trials, in the order of their numbers."""

    next: int | None


class LayerDocument(BaseModel):
    """The importance of a layer."""

    layer: str
    dropped: float
    dropped_best: float
    with_: float | None
    without: float | None
    harm: float | None
    stderr: float | None
    rank: int | None


class LayersDocument(BaseModel):
    """The importance of every layer of a model, in its order."""

    study: str
    metric: str
    trials: int
    layers: list[LayerDocument]


class CacheGroupDocument(BaseModel):
    """Entries of one model and one objective."""

    model: str
    fingerprint: str
    objective: str
    entries: int
    bytes: int


class CacheDocument(BaseModel):
    """Entries of the evaluation cache, and their use."""

    place: str
    entries: int
    bytes: int
    groups: list[CacheGroupDocument]
    studies: list[dict[str, JsonValue]]
    incidents: dict[str, int]
    unsent: int
