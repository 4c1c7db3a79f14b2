"""A study read whole."""

import json
import math
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from prunesearch.config.recipe import Recipe
from prunesearch.errors import StorageError, StudyError, UnknownNameError
from prunesearch.studies import persistence
from prunesearch.studies.stored_facts import BlockLatencies
from prunesearch.studies.study_data import TrialData, read_study
from tests.support.stored_studies import CHOICE, store_study, trial


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def test_a_study_is_read_whole(url: str) -> None:
    trials = [
        trial(0, 0.5, kl=0.5, seconds=1.5),
        trial(1, 0.2, kl=0.2, cache="hit", saved_seconds=3.0),
        trial(2, math.inf),
        create_trial(state=TrialState.FAIL, user_attrs={"failure": "out of memory"}),
    ]
    store_study(url, "s", trials)
    study = optuna.load_study(storage=url, study_name="s")
    latency = {"block_ms": [2.0, 2.0, 3.0, 3.0], "attention_ms": [1.0] * 4, "other_ms": 5.0}
    study.set_user_attr("latency_model", json.dumps(latency))
    dense = {"metric": "kl", "metrics": {"kl": 0.0, "perplexity": 20.0}}
    study.set_user_attr("dense", json.dumps(dense))
    study.set_metric_names(["kl"])

    found = read_study(url, "s")

    assert (found.name, found.model_name, found.sampler) == ("s", "tiny", "pso")
    assert (found.metric, found.metric_label) == ("kl", "KL to dense (nats/token)")
    assert (found.n_layers, found.units) == (4, ("0", "1", "2", "3"))
    assert found.dense == {"kl": 0.0, "perplexity": 20.0}
    assert found.latency == BlockLatencies((2.0, 2.0, 3.0, 3.0), (1.0,) * 4, 5.0)
    assert found.latency.dense_ms == 15.0
    assert not found.more_is_better
    assert [one.state for one in found.trials] == ["complete"] * 3 + ["fail"]
    # Values that are not finite are read, and left out of what is analysed.
    assert found.trials[2].values == (math.inf,)
    assert [one.number for one in found.complete()] == [0, 1]
    assert found.trials[1].attributes == {"kl": 0.2, "cache": "hit", "saved_seconds": 3.0}
    assert found.trials[1].figure("saved_seconds") == 3.0
    assert found.trials[3].dropped == "" and found.trials[3].values == ()
    best = found.best()
    assert best is not None and (best.number, best.dropped) == (1, "1,2")
    assert found.front() == (best,)
    assert best.started is not None and abs(best.started - time.time()) < 60
    assert found.dropped_shares([best]).tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_the_front_of_a_pareto_study_is_optunas(url: str) -> None:
    rng = np.random.default_rng(0)
    trials = [trial(i, *rng.random(2).round(2).tolist()) for i in range(40)]
    store_study(url, "p", trials, maximize=(True, False))
    found = read_study(url, "p")
    expected = optuna.load_study(storage=url, study_name="p").best_trials
    assert {one.number for one in found.front()} == {one.number for one in expected}
    assert found.is_pareto and found.more_is_better and found.front()[0] == found.best()


def test_shares_of_sublayers_periods_and_widths(url: str) -> None:
    store_study(url, "s", [])
    study = optuna.load_study(storage=url, study_name="s")
    # Blocks and sublayers: a whole block drops both of its sublayers.
    params = {"drop_00_attn": 1, "drop_00_mlp": 0, "drop_01_attn": 1, "drop_01_mlp": 1}
    params |= {"drop_02-03": 1}
    ranges: dict[str, BaseDistribution] = {
        "mlp_04": IntDistribution(0, 64),
        "kv_04": IntDistribution(0, 4),
    }
    ranges |= {"mlp_05": IntDistribution(0, 64), "kv_05": IntDistribution(0, 4)}
    study.add_trial(
        create_trial(
            value=1.0,
            params=params | {"mlp_04": 16, "kv_04": 4, "mlp_05": 0, "kv_05": 0},
            distributions=ranges | dict.fromkeys(params, CHOICE),
            user_attrs={"dropped": "0a,1,2,3,4:16/4,5"},
        )
    )
    found = read_study(url, "s")
    assert found.units == ("0a", "0m", "1a", "1m", "2-3", "4a", "4m", "5a", "5m")
    assert found.unit_sizes == (1, 1, 1, 1, 1, 4, 64, 4, 64)
    assert found.n_layers == 6
    expected = [1, 0, 1, 1, 1, 0, 0.75, 1, 1]
    assert found.dropped_shares(found.trials).tolist() == [expected]
    assert found.dropped_shares([TrialData(9, "complete", (1.0,), "none", {})]).sum() == 0


def test_parents_are_those_that_the_sampler_names(url: str) -> None:
    state = json.dumps({"by": "pso", "parents": [0, 3]})
    numbered = [create_trial(value=1.0), create_trial(value=1.0, system_attrs={"ps:s": state})]
    store_study(url, "s", numbered)
    assert [one.parents for one in read_study(url, "s").trials] == [(), (0, 3)]


def test_studies_that_cannot_be_read_are_refused(url: str, tmp_path: Path) -> None:
    missing = f"sqlite:///{tmp_path / 'missing.db'}"
    with pytest.raises(StorageError, match="no study database"):
        read_study(missing, "s")
    store_study(url, "ours", [])
    optuna.create_study(storage=url, study_name="foreign")
    with pytest.raises(UnknownNameError, match="unknown study 'oars': did you mean 'ours'"):
        read_study(url, "oars")
    with pytest.raises(UnknownNameError, match="unknown study"):
        read_study(url, "nul\0")
    with pytest.raises(StudyError, match="was not made by prunesearch"):
        read_study(url, "foreign")
    with pytest.raises(StudyError, match="study 'ours' has no finished trial yet"):
        read_study(url, "ours").require_finished()
    assert read_study(url, "ours").best() is None and read_study(url, "ours").front() == ()
    study = optuna.load_study(storage=url, study_name="ours")
    study.set_user_attr("recipe", json.dumps({"of": "another version"}))
    with pytest.raises(StudyError, match="made by another version"):
        read_study(url, "ours")


def test_damaged_attributes_read_as_missing(url: str) -> None:
    store_study(url, "s", [trial(0, 0.5)])
    study = optuna.load_study(storage=url, study_name="s")
    for name in ("dense", "latency_model", "identity"):
        study.set_user_attr(name, "[")
    found = read_study(url, "s")
    assert (found.dense, found.latency, found.model_content) == ({}, None, "")
    assert found.metric == "value 0" and found.n_layers == 4


def test_a_connection_can_be_read_from(url: str) -> None:
    store_study(url, "s", [trial(0, 0.5)])
    storage = persistence.open_storage(url, create=False)
    with storage.engine.connect() as connection:
        assert read_study(connection, "s") == read_study(url, "s")
    assert isinstance(read_study(url, "s").recipe, Recipe)
