"""Selection of a trial by the loss of quality."""

import json
from typing import Literal

import optuna
import pytest

from prunesearch.errors import InputError, StudyError
from prunesearch.report.tables import example_loss
from prunesearch.studies.selection import DENSE_ATTR, SelectionCriteria, choose


def study_of(
    metric: str,
    dense: dict[str, float],
    *trials: dict[str, float],
    direction: Literal["minimize", "maximize"] = "minimize",
) -> optuna.Study:
    """A study whose trials have these metrics. The later trials are larger models."""
    study = optuna.create_study(study_name="s", direction=direction)
    study.set_user_attr(DENSE_ATTR, json.dumps({"metric": metric, "metrics": dense}))
    for number, metrics in enumerate(trials):
        study.add_trial(
            optuna.trial.create_trial(
                value=metrics[metric], user_attrs={**metrics, "bytes": 100 + number}
            )
        )
    return study


def test_a_share_of_a_metric_that_is_0_is_refused() -> None:
    metrics = [{"hidden_cosine": value} for value in (0.3, 0.04, 0.01)]
    study = study_of("hidden_cosine", {"hidden_cosine": 0.0}, *metrics)
    with pytest.raises(InputError, match="hidden_cosine of the dense model is 0; give `max_loss`"):
        choose(study, SelectionCriteria.parse("2%", None))
    assert choose(study, SelectionCriteria.parse("0.05", None)).number == 1
    # The examples of commands give a difference too.
    assert example_loss(["hidden_cosine"]) == "0.05"


def test_a_share_of_a_kl_study_is_a_share_of_perplexity() -> None:
    dense = {"kl": 0.0, "cross_entropy": 3.0, "perplexity": 20.0}
    trials = [{"kl": 0.9, "perplexity": 30.0}, {"kl": 0.1, "perplexity": 20.3}]
    study = study_of("kl", dense, *trials)
    assert choose(study, SelectionCriteria.parse("2%", None)).number == 1
    assert choose(study, SelectionCriteria.parse("50%", None)).number == 0
    assert choose(study, SelectionCriteria.parse("0.9", None)).number == 0
    assert example_loss(dense) == example_loss({"acc": 0.5}) == "10%"


def test_a_share_of_an_accuracy_is_its_own_also_beside_a_perplexity() -> None:
    dense = {"acc": 0.5, "perplexity": 20.0}
    trials = [{"acc": 0.3, "perplexity": 90.0}, {"acc": 0.49, "perplexity": 21.0}]
    study = study_of("acc", dense, *trials, direction="maximize")
    assert choose(study, SelectionCriteria.parse("3%", None)).number == 1
    assert choose(study, SelectionCriteria.parse("40%", None)).number == 0


def test_a_trial_without_a_size_is_not_chosen_by_size() -> None:
    study = study_of("kl", {"kl": 0.0, "perplexity": 20.0}, {"kl": 0.2, "perplexity": 21.0})
    study.add_trial(
        optuna.trial.create_trial(value=0.1, user_attrs={"kl": 0.1, "perplexity": 20.5})
    )
    assert choose(study, SelectionCriteria.parse("10%", None)).number == 0
    assert choose(study, SelectionCriteria.parse(None, "1KiB")).number == 0
    assert choose(study, SelectionCriteria()).number == 1
    bare = optuna.create_study(study_name="bare")
    bare.add_trial(optuna.trial.create_trial(value=0.1))
    with pytest.raises(StudyError, match="'bare' does not say how large its models are"):
        choose(bare, SelectionCriteria.parse(None, "1KiB"))


def test_a_share_of_an_accuracy_of_0_is_refused() -> None:
    study = study_of("acc", {"acc": 0.0}, {"acc": 0.0})
    with pytest.raises(InputError, match="acc of the dense model is 0"):
        choose(study, SelectionCriteria.parse("2%", None))


@pytest.mark.parametrize("dense", ["[1]", "x", 5, None, '{"metric": "kl", "metrics": 1}'])
def test_a_damaged_study_is_told_and_breaks_nothing(dense: object) -> None:
    study = study_of("kl", {"kl": 0.0, "perplexity": 20.0}, {"kl": 0.1, "perplexity": 21.0})
    study.set_user_attr(DENSE_ATTR, dense)
    with pytest.raises(StudyError, match="damaged"):
        choose(study, SelectionCriteria.parse("2%", None))


def test_a_damaged_trial_is_told() -> None:
    study = study_of("kl", {"kl": 0.0}, {"kl": 0.1})
    trial = optuna.trial.create_trial(value=0.2, user_attrs={"kl": "<b>", "bytes": 300})
    study.add_trial(trial)
    with pytest.raises(StudyError, match="'kl' is not a number"):
        choose(study, SelectionCriteria.parse("0.05", None))
