"""The losses of a candidate on each document, from the cache alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest

from prunesearch.cache import maintenance
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import evaluation_key
from prunesearch.cache.location import CacheLocation
from prunesearch.studies.document_losses import (
    DocumentLosses,
    best_pair,
    cached_losses,
    loss_metric_of,
    measured_losses,
)
from prunesearch.studies.measurements import Measurement
from prunesearch.studies.study_data import StudyData, read_study
from tests.support.stored_studies import store_study, trial

MODEL = "f" * 64
NUMERICS = {"device": "cpu", "dtype": "float32"}


def stored_study(folder: Path, kls: Sequence[float], objective: str = "kl") -> StudyData:
    """A study on four blocks whose trials have these KLs."""
    url = f"sqlite:///{folder / 'study.db'}"
    store_study(url, "s", [trial(number, kl, kl=kl) for number, kl in enumerate(kls)])
    study = optuna.load_study(storage=url, study_name="s")
    identity = {"model content": MODEL, "data content": "d" * 64, "numerics": NUMERICS}
    study.set_user_attr("identity", json.dumps(identity))
    latency = {"block_ms": [1.0] * 4, "attention_ms": [0.5] * 4, "other_ms": 1.0}
    study.set_user_attr("latency_model", json.dumps(latency))
    if objective != "kl":
        recipe = json.loads(study.user_attrs["recipe"])
        recipe["objective"]["name"] = objective
        study.set_user_attr("recipe", json.dumps(recipe))
    return read_study(url, "s")


def chunk(tokens: str, **changes: object) -> dict[str, object]:
    """The identity of a chunk of calibration text."""
    return {"kind": "calibration", "version": 2, "numerics": NUMERICS, "tokens": tokens, **changes}


def fill(
    cache: EvaluationCache, candidate: str, chunks: Sequence[tuple[dict[str, object], list[float]]]
) -> None:
    """Store sequences of ten tokens with these KLs."""
    for identity, kls in chunks:
        key = evaluation_key(MODEL, f"blocks/4:{candidate}", identity)  # type: ignore[arg-type]
        cache.put(key, [[10 * kl, 30.0, 10] for kl in kls])


@pytest.mark.parametrize("shared", [False, True])
def test_losses_are_read_from_the_cache(tmp_path: Path, shared: bool) -> None:
    study = stored_study(tmp_path, [0.5, 0.25])
    url = f",sqlite:///{tmp_path / 'shared.db'}" if shared else ""
    location = CacheLocation.parse(f"{tmp_path / 'cache'}{url}")
    with EvaluationCache(location) as cache:
        # The winner was also scored on other data, and with other arithmetic.
        fill(cache, "0,1", [(chunk("b"), [0.6]), (chunk("a"), [0.4, 0.5])])
        fill(cache, "1,2", [(chunk("b"), [0.35]), (chunk("a"), [0.1, 0.3])])
        fill(cache, "1,2", [(chunk("c"), [9.0]), (chunk("a", numerics={}), [7.0, 7.0])])
        fill(cache, "1,2,3", [(chunk("a"), [8.0, 8.0])])
    best = study.best()
    assert best is not None and best.dropped == "1,2"
    with maintenance.reading(location) as backends:
        found = cached_losses(study, best, backends)
        first = cached_losses(study, study.trials[0], backends)
    assert found is not None and first is not None
    assert found.losses == pytest.approx((0.1, 0.3, 0.35)) and found.metric == "kl"
    assert first.losses == pytest.approx((0.4, 0.5, 0.6))
    assert (found.source, found.badge) == ("cache", "searched on")
    assert best_pair([found], [first]) == (found, first)


def test_losses_that_do_not_make_the_metric_are_not_used(tmp_path: Path) -> None:
    study = stored_study(tmp_path, [0.5, 0.25])
    location = CacheLocation(tmp_path / "cache")
    with EvaluationCache(location) as cache:
        fill(cache, "0,1", [(chunk("a"), [0.4, 0.5]), (chunk("b"), [0.6])])
        fill(cache, "1,2", [(chunk("a"), [0.1, 0.3])])  # the other chunk was lost
    with maintenance.reading(location) as backends:
        assert cached_losses(study, study.trials[1], backends) is None
        # One lost chunk of another trial does not matter.
        assert cached_losses(study, study.trials[0], backends) is not None


def test_objectives_without_numbers_for_each_document_have_no_losses(tmp_path: Path) -> None:
    study = stored_study(tmp_path, [0.5], objective="hidden-cosine")
    with EvaluationCache(tmp_path / "cache") as cache:
        fill(cache, "0,1", [(chunk("a"), [0.5])])
    with maintenance.reading(CacheLocation(tmp_path / "cache")) as backends:
        assert cached_losses(study, study.trials[0], backends) is None
        assert cached_losses(study, study.trials[0], []) is None


def test_measured_losses_on_held_out_data_come_first() -> None:
    def measured(role: str, data: str, badge: str, candidate: str = "1") -> Measurement:
        return Measurement(
            candidate,
            role,
            data,
            data,
            badge,  # type: ignore[arg-type]
            "perplexity",
            20.0,
            0.1,
            2,
            (3.0, 3.1),
        )

    made = [
        measured("winner", "search", "searched on"),
        measured("winner", "fresh", "held out"),
        measured("healed", "other", "held out"),
        measured("winner", "fresh", "held out", candidate="2"),
    ]
    found = measured_losses(made, "1")
    assert [one.data for one in found] == ["fresh", "search"]
    # The losses of the perplexity are cross-entropies.
    assert found[0].metric == "cross_entropy" and loss_metric_of("acc") == "acc"
    other = DocumentLosses(
        "cross_entropy", "search", "search", "searched on", "measured", (1.0, 2.0)
    )
    assert best_pair(found, [other]) == (found[1], other)
    assert best_pair(found, []) is None
