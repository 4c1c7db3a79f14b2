"""A study learns from another one of the same model, and from no other."""

import json
from typing import cast

import optuna
import pytest

from prunesearch.config.recipe import Recipe
from prunesearch.errors import StudyError, UnknownNameError
from prunesearch.runtime.json_values import JsonObject
from prunesearch.space import SearchSpace
from prunesearch.studies import persistence
from prunesearch.studies.study_data import read_study
from prunesearch.studies.warm_start import check_warm_start, read_warm_start
from prunesearch.studies.warm_start_source import WARM_START_ATTR, source_in
from tests.support.stored_studies import store_study, trial

SPACE = SearchSpace(4, 1)
RECIPE = Recipe(model="m", search={"drop": 1, "warm_start": "a"})


@pytest.fixture
def url(tmp_path: object) -> str:
    """A database with a study of 12 trials, where layer 3 costs most, and one of two trials."""
    url = f"sqlite:///{tmp_path}/study.db"
    trials = [trial(n, float((n % 4 == 3) + ((n + 1 + n // 4 % 3) % 4 == 3))) for n in range(12)]
    store_study(url, "a", trials)
    store_study(url, "few", trials[:2])
    store_study(
        url,
        "more is better",
        [trial(n, -t.values[0]) for n, t in enumerate(trials)],
        maximize=(True,),
    )
    for name in ("a", "more is better"):
        study = optuna.load_study(storage=url, study_name=name)
        identity = json.loads(study.user_attrs["identity"])
        study.set_user_attr("identity", json.dumps({**identity, "model content": "abc"}))
    return url


def test_the_effects_of_layers_are_read_whatever_the_direction(url: str) -> None:
    for name in ("a", "more is better"):
        known = read_warm_start(url, name, RECIPE, SPACE, "abc")
        assert (known["study"], known["trials"]) == (name, 12)
        units = known["effects"]["units"]
        assert units.index(max(units)) == 3


def test_a_study_that_cannot_inform_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(StudyError, match=r"another model .tiny, content abc, this is xyz"):
        read_warm_start(url, "a", RECIPE, SPACE, "xyz")
    with pytest.raises(StudyError, match="2 finished trials: it takes 12"):
        check_warm_start(url, "few", RECIPE)
    sublayers = RECIPE.with_changes(units="sublayers")
    with pytest.raises(StudyError, match="searched blocks, and this search drops sublayers"):
        check_warm_start(url, "a", sublayers)
    with pytest.raises(UnknownNameError, match="few"):
        check_warm_start(url, "fews", RECIPE)


def test_the_source_is_read_from_the_study(url: str) -> None:
    study = optuna.load_study(storage=url, study_name="few")
    assert source_in(study) is None
    known = read_warm_start(url, "a", RECIPE, SPACE, "abc")
    persistence.get_or_set_attr(study, WARM_START_ATTR, lambda: cast(JsonObject, known))
    source = source_in(study)
    assert source is not None
    assert source.text == "warm start: 12 trials of study a"
    assert read_study(url, "few").warm_start == source
