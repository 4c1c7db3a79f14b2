"""Events become records: one point for each trial and step, and nothing twice."""

import math
from pathlib import Path

from prunesearch.candidate import Evaluation, LayerSubset
from prunesearch.events import (
    DocumentMade,
    HealFinished,
    HealOpened,
    HealProgress,
    SearchProgress,
    StudyFinished,
    StudyOpened,
    ToldTrial,
    TuningProgress,
)
from prunesearch.tracking.recording import Recorder
from prunesearch.tracking.records import (
    Point,
    Record,
    RunDocument,
    RunEnd,
    RunPoints,
    RunStart,
    RunSummary,
    read,
    written,
)


def recorder() -> tuple[Recorder, list[Record]]:
    sent: list[Record] = []
    return Recorder(sent.append, now=lambda: 7.0), sent


def points(sent: list[Record], run: str) -> list[Point]:
    found: list[Point] = []
    for record in sent:
        if isinstance(record, RunPoints) and record.run == run:
            found += record.points
    return found


def told(done: int, trial: int, value: float, best: float) -> SearchProgress:
    evaluation = Evaluation(LayerSubset.of(6, [1]), {"kl": value}, {"kl": 0.5}, seconds=2.0)
    return SearchProgress(
        "s",
        done,
        9,
        best_value=best,
        evaluation=evaluation,
        value=value,
        trial=trial,
        costs={"bytes": 8},
    )


def test_a_study_is_a_run_and_each_trial_a_point() -> None:
    handler, sent = recorder()
    earlier = (
        ToldTrial(0, 3.0, True, 1.0, {"kl": 3.0}),
        ToldTrial(2, 1.0, False, 2.0, {"kl": 1.0}),  # pruned, so it is not the best
    )
    handler.handle(
        StudyOpened("s", "search", "r", {"a.b": 1, "bad": math.nan}, "x: 1\n", earlier=earlier)
    )
    handler.handle(SearchProgress("s", 2, 9))  # nothing was told
    handler.handle(told(3, 1, 2.0, 2.0))
    handler.handle(told(4, 3, math.inf, 2.0))
    handler.handle(StudyFinished("s", {"best_dropped": "1"}))
    handler.handle(DocumentMade("report.json", "{}"))
    handler.end("finished")
    assert sent[0] == RunStart("r", "s", "search", "s", {"a.b": 1})
    assert sent[1] == RunDocument("r", "recipe.yaml", "x: 1\n")
    assert sent[-3:] == [
        RunSummary("r", {"best_dropped": "1"}),
        RunDocument("r", "report.json", "{}"),
        RunEnd("r", "finished"),
    ]
    found = points(sent, "r")
    assert [(point.step, point.at) for point in found] == [(1, 1.0), (2, 2.0), (3, 7.0), (4, 7.0)]
    assert found[1].metrics == {"kl": 1.0, "trial": 2.0, "value": 1.0, "best_value": 3.0}
    assert found[2].metrics == {
        "kl": 2.0, "kl_stderr": 0.5, "bytes": 8.0, "seconds": 2.0, "saved_seconds": 0.0,
        "cache_hit": 0.0, "trial": 1.0, "value": 2.0, "best_value": 2.0,
    }  # fmt: skip
    assert "value" not in found[3].metrics, "trackers do not take infinity"
    assert read(written(sent)) == [*sent]


def test_a_study_that_is_not_tracked_is_not_recorded() -> None:
    handler, sent = recorder()
    handler.handle(StudyOpened("s", "search", None, {}))
    handler.handle(told(1, 0, 2.0, 2.0))
    handler.end("finished")
    assert sent == []


def test_a_tuning_is_a_run_of_its_own() -> None:
    handler, sent = recorder()
    handler.handle(StudyOpened("t", "tuning", "r", {}))
    handler.handle(TuningProgress("t", 1, 0, 2.5, {"rank": 8.0}))
    handler.handle(TuningProgress("t", 2, 1, None, {"rank": 4.0}))
    first, second = points(sent, "r")
    assert first.metrics == {"rank": 8.0, "trial": 0.0, "value": 2.5, "best_value": 2.5}
    assert second.metrics == {"rank": 4.0, "trial": 1.0, "best_value": 2.5}


def heal(handler: Recorder, step: int, loss: float, *watched: tuple[int, float]) -> None:
    held_out = [(at, value + 1) for at, value in watched]
    handler.handle(HealProgress("heal", "training", step, 9, loss, watched, held_out))


def test_a_healing_has_one_point_for_each_step(tmp_path: Path) -> None:
    handler, sent = recorder()
    handler.handle(HealOpened("heal", "d" * 64, tmp_path, {"rank": 8}))
    handler.handle(HealProgress("heal", "teacher", 1, 9))
    handler.handle(HealProgress("heal", "training", 0, 9, None, [(0, 5.0)], [(0, 6.0)]))
    heal(handler, 1, 4.0, (0, 5.0))
    heal(handler, 2, 3.0, (0, 5.0))
    heal(handler, 2, 3.0, (0, 5.0), (2, 2.0))  # the evaluation comes in an event of its own
    handler.handle(HealFinished("heal", {"best_step": 2}))
    handler.end("stopped")
    start = sent[0]
    assert isinstance(start, RunStart)
    assert [(point.step, point.metrics) for point in points(sent, start.run)] == [
        (0, {"held_out_loss": 5.0, "held_out_cross_entropy": 6.0}),
        (1, {"training_loss": 4.0}),
        (2, {"training_loss": 3.0, "held_out_loss": 2.0, "held_out_cross_entropy": 3.0}),
    ]
    assert sent[-1] == RunEnd(start.run, "stopped")
    # The same healing in the same folder is the same run; in another folder it is another one.
    again, resent = recorder()
    again.handle(HealOpened("heal", "d" * 64, tmp_path, {}))
    again.handle(HealOpened("without 3,7", "d" * 64, tmp_path / "other", {}))
    assert [isinstance(record, RunStart) and record.run == start.run for record in resent] == [
        True,
        False,
    ]


def test_secrets_are_masked() -> None:
    handler, sent = recorder()
    secret = "postgresql://me:hidden@h/d"
    handler.handle(StudyOpened("s", "search", "r", {"llm.url": secret}, f"url: {secret}\n"))
    handler.handle(StudyFinished("s", {"note": secret}))
    handler.handle(DocumentMade("report.json", secret))
    assert "hidden" not in written(sent)
