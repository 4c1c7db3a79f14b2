"""What a study holds of the decision which of its trials is the best."""

import json
from dataclasses import replace

import optuna
import pytest

from prunesearch.report.recommendation import decided
from prunesearch.report.study import how_certain
from prunesearch.runtime.json_values import Json, to_json
from prunesearch.studies import selection, summary
from prunesearch.studies.recommendation import (
    RECOMMENDATION_ATTR,
    STANDARD_ERROR_ATTR,
    Recommendation,
    ScoredFinalist,
    confirming_documents,
    read_recommendation,
    store_recommendation,
)

CONFIRMED = ScoredFinalist(2, "4,5", 0.41, 0.40, 0.02, 401, 0.38, 0.01)
LUCKY = ScoredFinalist(1, "1,2", 0.46, 0.39, 0.02, 100, 0.35, 0.05)
MADE = Recommendation(
    trials=3, documents=100, chosen=2, naive=1, finalists=(CONFIRMED, LUCKY), budget=600,
    spent=600, further=400,
)  # fmt: skip


@pytest.fixture
def study() -> optuna.Study:
    made = optuna.create_study(direction="maximize")
    for value in (0.30, 0.46, 0.41):
        made.add_trial(optuna.trial.create_trial(value=value))
    return made


def test_a_stored_recommendation_is_read_again(study: optuna.Study) -> None:
    store_recommendation(study, MADE)
    assert selection.recommendation_of(study) == MADE


def test_the_finalists_come_before_the_other_trials(study: optuna.Study) -> None:
    assert [trial.number for trial in selection.recommended_trials(study)] == [1, 2, 0]
    store_recommendation(study, MADE)
    assert [trial.number for trial in selection.recommended_trials(study)] == [2, 1, 0]
    assert selection.choose(study, selection.SelectionCriteria()).number == 2
    assert [trial.number for trial in selection.best_trials(study, None)] == [1, 2, 0]


def test_limits_take_the_decided_order() -> None:
    study = optuna.create_study(direction="maximize")
    for value, size in ((0.30, 80), (0.46, 100), (0.41, 100)):
        study.add_trial(optuna.trial.create_trial(value=value, user_attrs={"bytes": size}))
    limit = selection.SelectionCriteria.parse(None, "100B")
    assert selection.choose(study, limit).number == 1
    store_recommendation(study, MADE)
    assert selection.choose(study, limit).number == 2
    # A smaller size leaves neither finalist.
    assert selection.choose(study, selection.SelectionCriteria.parse(None, "80B")).number == 0
    chosen = summary.chosen_trial(study, limit)
    assert (chosen.recommendation, chosen.undecided) == (MADE, None)
    smaller = summary.chosen_trial(study, selection.SelectionCriteria.parse(None, "80B"))
    assert (smaller.recommendation, smaller.undecided) == (None, None)


def test_a_noisy_study_is_undecided_before_its_recommendation() -> None:
    made = optuna.create_study(direction="maximize")
    for value in (0.30, 0.46, 0.41):
        noise = {STANDARD_ERROR_ATTR: 0.05, "dropped": "1"}
        made.add_trial(optuna.trial.create_trial(value=value, user_attrs=noise))
    chosen = summary.chosen_trial(made, selection.SelectionCriteria())
    assert (chosen.trial.number, chosen.undecided) == (1, True)
    assert "not decided yet" in how_certain(chosen)[0]
    store_recommendation(made, MADE)
    chosen = summary.chosen_trial(made, selection.SelectionCriteria())
    assert (chosen.trial.number, chosen.undecided) == (2, None)
    assert how_certain(chosen)[0].startswith("confirmed: trial 2")


@pytest.mark.parametrize(
    "stored",
    [None, "", "{", "[]", '{"trials": 3}', 7, json.dumps({**vars(MADE), "finalists": []})],
)
def test_what_is_missing_or_damaged_recommends_nothing(stored: Json) -> None:
    assert read_recommendation({RECOMMENDATION_ATTR: stored}, 3) is None


def test_it_holds_for_its_own_trials_only() -> None:
    stored = {RECOMMENDATION_ATTR: json.dumps(to_json(MADE))}
    assert read_recommendation(stored, 3) == MADE
    assert read_recommendation(stored, 4) is None


def test_documents_that_confirmed_stay_known_after_further_trials() -> None:
    stored = {RECOMMENDATION_ATTR: json.dumps(to_json(replace(MADE, further=401, tasks=2)))}
    assert confirming_documents(stored) == 201
    assert confirming_documents({}) == 0
    # Earlier versions did not store the number of tasks.
    values = to_json(MADE)
    assert isinstance(values, dict)
    del values["tasks"]
    assert confirming_documents({RECOMMENDATION_ATTR: json.dumps(values)}) == 400


def test_the_interval_is_that_of_further_documents_or_of_the_posterior() -> None:
    assert (CONFIRMED.low, CONFIRMED.high) == pytest.approx((0.36034, 0.39966), abs=1e-5)
    alone = ScoredFinalist(2, "4,5", 0.41, 0.40, 0.02)
    assert (alone.low, alone.high) == pytest.approx((0.3608, 0.4392), abs=1e-4)
    document = to_json(CONFIRMED)
    assert isinstance(document, dict)
    assert document["low"] == CONFIRMED.low


def test_people_see_the_interval_and_the_naive_best() -> None:
    assert decided(None, "acc") == []
    assert decided(MADE, "acc") == [
        "confirmed: trial 2, acc 0.3800 (95 % interval 0.3603 to 0.3997) on 401 further documents; "
        "the next best is not significantly worse",
        "naive best: trial 1, acc 0.4600 on the 100 documents of the search, 0.3500 on 100 further "
        "ones",
    ]
    alone = ScoredFinalist(1, "4,5", 0.41, 0.40, 0.02)
    only = Recommendation(
        3, 100, 1, 1, (alone,), budget=600, remark="the task has no more documents",
        equal_probability=0.4, compared=24,
    )  # fmt: skip
    assert decided(only, "acc") == [
        "recommended: trial 1, expected acc 0.4000 (95 % interval 0.3608 to 0.4392), measured "
        "0.4100; it was not confirmed on further documents",
        "it also has the best measured value, 0.4100",
        "not confirmed: the task has no more documents",
        "warning: acc of 100 documents cannot tell the first 24 trials apart: they scatter no more "
        "than equal candidates would (p = 0.4). Use more documents (--limit), or search by KL "
        "(--objective kl)",
    ]
