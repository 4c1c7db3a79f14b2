"""The latency of a search's best candidate is measured once."""

import optuna
import pytest

from prunesearch.candidate import LayerSubset
from prunesearch.pipeline import winner_latency as module
from prunesearch.pipeline.winner_latency import winner_latency
from tests.support.models import N_LAYERS, tiny


def test_the_same_winner_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def compare(_: object, candidate: LayerSubset) -> tuple[float, float]:
        timed.append(candidate.text)
        return 10.0 + len(timed), 5.0

    monkeypatch.setattr(module, "compare_latency", compare)
    model, (a, b) = tiny(), (LayerSubset.of(N_LAYERS, [i]) for i in (1, 2))
    first, second = optuna.create_study(), optuna.create_study()
    assert winner_latency(first, model, a) == (11.0, 5.0)
    # Another search of the model has the same winner, or a study is resumed.
    assert winner_latency(second, model, a) == (11.0, 5.0)
    assert winner_latency(second, tiny(), a) == (11.0, 5.0)
    assert timed == ["1"]
    # Another winner, or another machine, is measured.
    assert winner_latency(second, model, b) == (12.0, 5.0)
    monkeypatch.setattr(module, "machine", lambda _: "another one")
    assert winner_latency(second, model, b) == (13.0, 5.0)
    # A damaged attribute counts as none.
    first.set_user_attr(module.ATTRIBUTE, '{"dropped": 3}')
    assert winner_latency(first, tiny(), a) == (14.0, 5.0)
