"""Jobs and events, read from the JSON documents that a server sends.

A server may be newer than its client. Unknown keys and unknown kinds of events are therefore
passed over. A value of the wrong type is an error.
"""

import re
from typing import Literal, cast, get_args

from prunesearch.errors import InputError, ServerError
from prunesearch.runtime.json_values import (
    Json,
    JsonObject,
    as_bool,
    as_float,
    as_int,
    as_list,
    as_object,
    as_text,
)
from prunesearch.service.job import (
    Job,
    JobCommand,
    JobPage,
    JobProgress,
    JobState,
    StageRecord,
    StoredEvent,
)

StageState = Literal["waiting", "running", "finished", "skipped"]
_JOB_ID = re.compile(r"job-[0-9a-f]{16}")


def check_job_id(text: str) -> str:
    """Return the identifier of a job.

    Raises:
        InputError: the text is not one. It becomes part of a URL.
    """
    if not _JOB_ID.fullmatch(text):
        raise InputError(
            f"{text!r} is not a job: its name is job- and 16 hexadecimal digits, as "
            f"`prunesearch jobs` shows it"
        )
    return text


def job_of(document: Json) -> Job:
    """Read a job.

    Raises:
        ServerError: the document is not a job.
    """
    try:
        return _job(as_object(document, "job"))
    except ValueError as error:
        raise _not_understood(error) from None


def page_of(document: Json) -> JobPage:
    """Read a page of jobs.

    Raises:
        ServerError: the document is not a page of jobs.
    """
    try:
        values = as_object(document, "page")
        jobs = []
        for job in as_list(values.get("jobs"), "jobs"):
            jobs.append(_job(as_object(job, "job")))
        return JobPage(tuple(jobs), _text_or_none(values, "next"))
    except ValueError as error:
        raise _not_understood(error) from None


def event_of(seq: int, kind: str, document: Json) -> StoredEvent:
    """Read an event of a stream.

    Raises:
        ServerError: the document is not an event.
    """
    try:
        values = dict(as_object(document, "event"))
        at = as_float(values.pop("at", 0.0), "at")
    except ValueError as error:
        raise _not_understood(error) from None
    return StoredEvent(seq, at, kind, values)


def _not_understood(error: ValueError) -> ServerError:
    return ServerError(
        f"the server's answer is not understood ({error}): is it a prunesearch server, and of the "
        f"same version as this client?"
    )


def _job(values: JsonObject) -> Job:
    identifier = as_text(values.get("id"), "id")
    if not _JOB_ID.fullmatch(identifier):
        raise ValueError(f"id is not the name of a job: {identifier[:80]!r}")
    stages = []
    for stage in as_list(values.get("stages", []), "stages"):
        stages.append(_stage(as_object(stage, "stage")))
    progress = values.get("progress")
    shown = None
    if progress is not None:
        shown = _progress(as_object(progress, "progress"))
    return Job(
        id=identifier,
        study=as_text(values.get("study"), "study"),
        state=_state(values.get("state")),
        command=_command(values.get("command")),
        recipe=as_object(values.get("recipe", {}), "recipe"),
        trials=as_int(values.get("trials"), "trials"),
        submitted_by=as_text(values.get("submitted_by"), "submitted_by"),
        created=as_float(values.get("created"), "created"),
        started=_float_or_none(values, "started"),
        ended=_float_or_none(values, "ended"),
        stages=tuple(stages),
        progress=shown,
        error=_text_or_none(values, "error"),
        exported=as_bool(values.get("exported", False), "exported"),
        last_event=as_int(values.get("last_event", 0), "last_event"),
        confirm=_float_or_none(values, "confirm"),
    )


def _stage(values: JsonObject) -> StageRecord:
    state = as_text(values.get("state"), "state of a stage")
    if state not in get_args(StageState):
        raise ValueError(f"state of a stage is unknown: {state[:80]!r}")
    return StageRecord(
        as_text(values.get("name"), "name of a stage"),
        cast(StageState, state),
        _float_or_none(values, "seconds"),
    )


def _progress(values: JsonObject) -> JobProgress:
    return JobProgress(
        step=as_text(values.get("step", ""), "step"),
        done=as_int(values.get("done", 0), "done"),
        total=as_int(values.get("total", 0), "total"),
        unit=as_text(values.get("unit", ""), "unit"),
        hits=as_int(values.get("hits", 0), "hits"),
        computed=as_int(values.get("computed", 0), "computed"),
        best_value=_float_or_none(values, "best_value"),
        best_dropped=_text_or_none(values, "best_dropped"),
    )


def _state(value: Json) -> JobState:
    state = as_text(value, "state")
    if state not in get_args(JobState):
        raise ValueError(f"state is unknown: {state[:80]!r}")
    return cast(JobState, state)


def _command(value: Json) -> JobCommand:
    command = as_text(value, "command")
    if command not in get_args(JobCommand):
        raise ValueError(f"command is unknown: {command[:80]!r}")
    return cast(JobCommand, command)


def _text_or_none(values: JsonObject, name: str) -> str | None:
    value = values.get(name)
    return None if value is None else as_text(value, name)


def _float_or_none(values: JsonObject, name: str) -> float | None:
    value = values.get(name)
    return None if value is None else as_float(value, name)
