"""What searches of one model share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunesearch.config.recipe import Recipe
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives import importance
from prunesearch.pipeline import prepared_study
from prunesearch.space import SearchSpace
from tests.support.models import N_LAYERS


def test_searches_of_one_model_and_text_rank_the_units_once(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = importance.rank_units

    def counted(*given: Any) -> list[float]:  # noqa: ANN401
        calls.append(given[3])
        return real(*given)

    monkeypatch.setattr(prepared_study, "rank_units", counted)
    monkeypatch.setattr(prepared_study, "_ranked", type(prepared_study._ranked)())
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten. " * 40)
    recipe = Recipe(model="m", drop=2, calibration=str(text), tokens=64, window=32)
    space = SearchSpace(N_LAYERS, 2)

    def rank(model: LoadedModel, ranking: str = "influence") -> list[float]:
        return prepared_study.rank(model, recipe, space, ranking)

    first = rank(loaded)
    first.append(-1.0)  # callers own what they get
    assert rank(loaded) == first[:-1]
    assert calls == ["influence"]
    # Another ranking, other weights and another text are ranked anew, the last in the same file.
    rank(loaded, "magnitude")
    rank(replace(loaded, fingerprint="other"))
    text.write_text("ten nine eight seven six five four three two one! " * 40)
    assert rank(loaded) != first[:-1]
    assert calls == ["influence", "magnitude", "influence", "influence"]
