"""The JSON documents of the HTTP interface. The OpenAPI document describes them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from prunesearch.service.access.roles import Role
from prunesearch.service.job import JobCommand, JobState

Times = "Time in seconds since 1970."


class Document(BaseModel):
    """A document that is made from an object with the same attributes."""

    model_config = ConfigDict(from_attributes=True)


class Submission(BaseModel):
    """A job to submit."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "recipe": {"model": "SmolLM2", "search": {"drop": "25%", "sampler": "pso"}},
                    "command": "run",
                    "trials": 40,
                },
                {"recipe": "model: SmolLM2\nsearch:\n  drop: 4\n", "command": "search"},
            ]
        },
    )

    recipe: Annotated[
        dict[str, JsonValue] | Annotated[str, Field(max_length=200_000)],
        Field(description="The recipe, as an object or as the text of a YAML file."),
    ]
    command: JobCommand = Field(
        default="run", description="Only the search, or everything that follows it too."
    )
    trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Total number of trials; null for the default."
    )
    study: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None, description="Name of the study; null to make it from the recipe."
    )
    confirm: Annotated[float, Field(ge=0, le=0.9)] | None = Field(
        default=None,
        description="Share of the scored documents that confirms the best trials; null for the "
        "default.",
    )


class StageDocument(Document):
    """A stage of a job."""

    name: str
    state: Literal["waiting", "running", "finished", "skipped"]
    seconds: float | None


class ProgressDocument(Document):
    """The latest progress of a job."""

    step: str
    done: int
    total: int
    unit: str
    hits: int
    computed: int
    best_value: float | None
    best_dropped: str | None


class JobDocument(Document):
    """A job."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "job-0123456789abcdef",
                    "study": "smollm2-drop4-kl-pso-1a2b3c4d",
                    "state": "running",
                    "command": "run",
                    "recipe": {"model": {"path": "SmolLM2"}, "search": {"drop": "4"}},
                    "trials": 40,
                    "submitted_by": "ada",
                    "created": 1790000000.0,
                    "started": 1790000001.5,
                    "ended": None,
                    "stages": [{"name": "search", "state": "running", "seconds": None}],
                    "progress": None,
                    "error": None,
                    "exported": False,
                    "last_event": 12,
                    "confirm": None,
                }
            ]
        },
    )

    id: str
    study: str
    state: JobState
    command: JobCommand
    recipe: dict[str, JsonValue]
    trials: int
    submitted_by: str = Field(description="Name of the token that submitted the job.")
    created: float = Field(description=Times)
    started: float | None
    ended: float | None
    stages: list[StageDocument]
    progress: ProgressDocument | None
    error: str | None = Field(description="Why the job failed, in one line.")
    exported: bool = Field(description="Whether there is a verified export to download.")
    last_event: int = Field(description="Sequence number of the last event.")
    confirm: float | None = Field(
        description="Share of the scored documents that confirms the best trials; null for the "
        "default."
    )


class JobPageDocument(Document):
    """A page of jobs, the newest first."""

    jobs: list[JobDocument]
    next: str | None = Field(description="Cursor of the next page; null on the last one.")


class CheckedRecipe(BaseModel):
    """What a job would do."""

    study: str
    recipe: dict[str, JsonValue]
    trials: int
    confirm: float | None


class EventDocument(Document):
    """An event of a job."""

    seq: int = Field(description="Sequence number in the job: from 1, without gaps.")
    at: float = Field(description=Times)
    kind: str
    data: dict[str, JsonValue]


class EventPageDocument(BaseModel):
    """Events of a job, in order."""

    events: list[EventDocument]
    next: int = Field(description="Send it as `after` to get the events that follow.")


class FileDocument(Document):
    """A file of an export."""

    path: str
    bytes: int
    sha256: str


class ExportDocument(Document):
    """The files of an export."""

    job: str
    bytes: int
    files: list[FileDocument]


class UserDocument(Document):
    """Who a token belongs to."""

    name: str
    role: Role


class TokenRequest(BaseModel):
    """A token to make."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "ada", "role": "submitter", "expires": "30d"}]},
    )

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
    role: Role
    expires: str | None = Field(
        default=None, max_length=20, description="When it expires: 30d, 12h; null for never."
    )


class TokenDocument(Document):
    """A token, without its secret."""

    name: str
    role: Role
    created: float
    expires: float | None
    revoked: float | None
    last_used: float | None


class NewTokenDocument(TokenDocument):
    """A new token. Its secret is shown this once."""

    secret: str


class TokenListDocument(BaseModel):
    """All tokens, also revoked and expired ones."""

    tokens: list[TokenDocument]


class ChangeDocument(Document):
    """A change that a user made."""

    id: int
    at: float
    who: str
    action: str
    target: str
    detail: str
    address: str


class ChangePageDocument(BaseModel):
    """A page of changes, the newest first."""

    changes: list[ChangeDocument]
    next: str | None


class Health(BaseModel):
    """Whether the process works."""

    status: Literal["ok"] = "ok"


class RunnerDocument(BaseModel):
    """A runner."""

    id: str
    host: str
    seen_seconds: float = Field(description="Time since the runner was seen.")


class Readiness(BaseModel):
    """Whether the service can take jobs."""

    ready: bool
    database: bool = Field(description="Whether the database answers.")
    runner: bool = Field(description="Whether a runner was seen in the last seconds.")
    runners: int
