"""What the pages of jobs show of a job."""

from dataclasses import replace

import pytest

from prunesearch.service.access.roles import User
from prunesearch.service.job import Job, JobProgress, JobState, StageRecord, StoredEvent, stage_rows
from prunesearch.service.web import views

JOB = Job("job-1", "s", "running", "run", {"model": {"path": "m"}}, 40, "ada", 1.0)
STAGES = (
    StageRecord("search", "finished", 2.0),
    StageRecord("export", "running"),
    StageRecord("report", "waiting"),
)


def names(job: Job, user: User) -> list[str]:
    return [verb.name for verb in views.verbs(job, user)]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("queued", ["pause", "cancel"]),
        ("running", ["pause", "stop", "cancel"]),
        ("paused", ["resume", "cancel", "delete"]),
        ("finished", ["delete"]),
        ("failed", ["delete"]),
        ("cancelled", ["delete"]),
    ],
)
def test_verbs_depend_on_the_state_and_on_the_user(state: JobState, expected: list[str]) -> None:
    job = replace(JOB, state=state)
    assert names(job, User("ada", "submitter")) == expected
    assert names(job, User("eve", "admin")) == expected
    assert names(job, User("eve", "submitter")) == []
    assert names(job, User("ada", "viewer")) == []


def test_only_a_search_can_be_stopped() -> None:
    assert "stop" not in names(replace(JOB, stages=STAGES), User("ada", "submitter"))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("running", ["finished", "running", "waiting"]),
        ("paused", ["finished", "paused", "waiting"]),
        ("failed", ["finished", "interrupted", "not reached"]),
    ],
)
def test_in_a_job_that_has_ended_no_stage_runs(state: JobState, expected: list[str]) -> None:
    rows = stage_rows(replace(JOB, state=state, stages=STAGES))
    assert [row.state for row in rows] == expected


def test_a_search_is_shown_in_trials_and_not_in_steps_of_a_generation() -> None:
    step = JobProgress("scoring 6 candidates", 3, 12, "pieces", 1, 9, 0.5, "3")
    job = replace(JOB, stages=(StageRecord("search", "running"),), progress=step)
    shown = views.search_progress(job, 10)
    assert shown == JobProgress("search", 10, 40, "trials", 1, 9, 0.5, "3")
    assert views.job_row(job, 10).progress == shown
    # A study may have more trials than this job asks for.
    more = views.search_progress(job, 90)
    assert more is not None
    assert more.done == 40
    assert views.search_progress(job, 0) is None
    assert views.search_progress(replace(job, stages=STAGES), 10) is None
    assert views.search_progress(replace(job, state="finished"), 10) is None


def test_a_log_has_lines_messages_stages_and_states() -> None:
    events = [
        StoredEvent(1, 0.0, "state", {"state": "running"}),
        StoredEvent(2, 0.0, "stage", {"name": "search", "state": "running"}),
        StoredEvent(3, 0.0, "stage", {"name": "tune", "state": "skipped"}),
        StoredEvent(4, 0.0, "search", {"done": 1}),
        StoredEvent(5, 0.0, "log", {"line": "from stderr"}),
        StoredEvent(6, 0.0, "message", {"text": "said"}),
    ]
    assert views.log_lines(events) == [
        "[the job is running]",
        "[search: running]",
        "from stderr",
        "said",
    ]
    many = [StoredEvent(seq, 0.0, "log", {"line": str(seq)}) for seq in range(1000)]
    assert views.log_lines(many)[0] == str(1000 - views.LOG_LINES)
