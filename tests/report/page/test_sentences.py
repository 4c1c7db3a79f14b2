"""What a report says about unfinished and failed evaluations."""

from dataclasses import replace

import pytest

from prunesearch.report.page.sentences import notes_of
from tests.support.study_values import measurement, report_data, study_data, trial_data


@pytest.mark.parametrize(("asked", "is_finished"), [(3, True), (4, False)])
def test_failed_evaluations_count_among_those_that_were_asked_for(
    asked: int, is_finished: bool
) -> None:
    trials = [
        trial_data(0, "0,1", 0.5), trial_data(1, "0,2", state="pruned"),
        trial_data(2, "0,3", state="fail"),
    ]  # fmt: skip
    study = replace(study_data("a", trials), asked=asked)
    measured = {"a": (measurement("winner", 0.5),)}
    notes = notes_of(report_data(study, measurements=measured))
    failed = "In study a 1 evaluations failed. They are left out."
    if is_finished:
        assert notes == (failed,)
    else:
        assert notes[0].startswith("Study a is half-finished: 2 of 4 evaluations are done")
        assert notes[1:] == (failed,)
