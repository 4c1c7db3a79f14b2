"""Widths as a language model sees and proposes them."""

import json
import random
from typing import Any

import numpy as np
import optuna
import pytest

from prunesearch.candidate import LayerSubset
from prunesearch.llm.chat import ChatRequest
from prunesearch.llm.recorded_chat import RecordedChat
from prunesearch.samplers import build
from prunesearch.samplers.llm.described_widths import DescribedWidths
from prunesearch.samplers.llm.settings import LanguageModel, LayerTable, ProposalSettings
from prunesearch.studies.sources import source_shares
from prunesearch.widths.layer_widths import LayerWidths
from prunesearch.widths.shape import WidthShape
from prunesearch.widths.space import WidthSpace
from tests.support.chat_doubles import FunctionChat, MemoryRecords

LAYERS = 6
SHAPE = WidthShape(
    (512,) * LAYERS, (3,) * LAYERS, (30,) * LAYERS, (500,) * LAYERS, (30,) * LAYERS,
    (500,) * LAYERS, 10,
)  # fmt: skip
SPACE = WidthSpace(SHAPE, 20 * 64 * 30, (64,) * LAYERS, protected=frozenset({0}))


def reply(*candidates: tuple[list[int], list[int]]) -> str:
    found = [{"parents": [], "mlp": mlp, "kv": kv} for mlp, kv in candidates]
    return json.dumps({"candidates": found})


def described(space: WidthSpace = SPACE, names: list[int] | None = None) -> DescribedWidths:
    return DescribedWidths(space, LayerTable({"influence": range(6)}), names or list(range(6)))


def test_the_task_names_costs_and_the_budget() -> None:
    text = described().describe()
    assert "0 to 7; one costs 96" in text
    assert "0 to 2; one costs 25" in text
    assert "must be 1920 in every candidate" in text
    assert "These stay whole, so their numbers are 0: 0." in text
    assert "\n5 100\n" in text


def test_levels_that_meet_the_budget_are_read_as_they_are() -> None:
    search = described()
    found = search.read({"mlp": (0, 7, 7, 6, 0, 0), "kv": (0,) * 6})
    assert found is not None
    assert found.share == 0.0
    assert search.shown(found.X_D) == "mlp:0,7,7,6,0,0 kv:0,0,0,0,0,0"


def test_other_levels_are_projected_to_the_weight() -> None:
    search = described()
    for levels in ((9, 9, 9, 9, 9, 9), (0, 0, 0, 0, 0, 1), (-5, 70, 3, 3, 3, 3)):
        found = search.read({"mlp": levels, "kv": (1, 2, 0, 0, 9, 0)})
        assert found is not None
        assert found.share > 0
        units = np.flatnonzero(found.X_D).tolist()
        assert SPACE.count(SPACE.with_units(units)) == SPACE.budget


@pytest.mark.parametrize("length", [0, 5, 7])
def test_lists_of_another_length_are_refused(length: int) -> None:
    assert described().read({"mlp": (4,) * length, "kv": (0,) * 6}) is None


def test_renamed_layers_are_read_under_the_same_names() -> None:
    names = [3, 5, 0, 1, 4, 2]
    plain, renamed = described(), described(names=names)
    mlp = (0, 7, 6, 5, 2, 0)
    shown = [0] * 6
    for layer, name in enumerate(names):
        shown[name] = mlp[layer]
    one = plain.read({"mlp": mlp, "kv": (0,) * 6})
    two = renamed.read({"mlp": tuple(shown), "kv": (0,) * 6})
    assert one is not None
    assert two is not None
    assert (one.X_D == two.X_D).all()
    assert renamed.shown(two.X_D).startswith("mlp:" + ",".join(map(str, shown)))


def test_a_space_without_groups_has_one_list() -> None:
    shape = WidthShape(
        (512,) * 6, (1,) * 6, (30,) * 6, (500,) * 6, (30,) * 6, (500,) * 6, 10
    )  # fmt: skip
    search = described(WidthSpace(shape, 20 * 64 * 30, (64,) * 6))
    assert search.names == ("mlp",)
    assert search.schema(2)["required"] == ["candidates"]


def loss(candidate: LayerSubset) -> float:
    assert isinstance(candidate, LayerWidths)
    assert SPACE.count(candidate) == SPACE.budget
    return float(sum((512 - width) * (7 - layer) for layer, width in enumerate(candidate.channels)))


def search(chat: FunctionChat, records: MemoryRecords, trials: int, **settings: Any) -> Any:  # noqa: ANN401
    study = optuna.create_study()
    model = LanguageModel(RecordedChat(chat, records), ProposalSettings(**settings))
    sampler = build("llm", SPACE, seed=1, population=8, llm=model)
    while len(study.get_trials(deepcopy=False)) < trials:
        proposal = sampler.ask(study)
        study.tell(proposal.number, loss(proposal.candidate))
    return study


def test_a_search_over_widths_meets_the_budget_and_repeats_nothing() -> None:
    def script(request: ChatRequest) -> str:
        rng = random.Random(request.seed)
        found = []
        for _ in range(4):
            length = rng.choice([6, 6, 6, 6, 5])
            mlp = [rng.randrange(8) for _ in range(length)]
            found.append((mlp, [rng.randrange(3) for _ in range(6)]))
        return reply(*found)

    records = MemoryRecords()
    chat = FunctionChat(script)
    study = search(chat, records, 48, max_repair=1.0)
    texts = [trial.user_attrs["dropped"] for trial in study.trials]
    assert len(set(texts)) == 48
    shares = source_shares(study.trials)
    assert shares is not None
    assert shares.first == 4
    assert shares.repaired > 10
    assert shares.replies.invalid > 0
    assert "broke a rule and were changed, by" in chat.asked[-1].user
    # The same again, and nothing is asked.
    silent = FunctionChat(lambda request: "")
    again = search(silent, records, 48, max_repair=1.0)
    assert [trial.user_attrs["dropped"] for trial in again.trials] == texts
    assert silent.asked == []


def test_a_model_that_fails_leaves_level_switches_of_the_best() -> None:
    study = search(FunctionChat(lambda request: "no"), MemoryRecords(), 24)
    shares = source_shares(study.trials)
    assert shares is not None
    assert shares.fallback == 20
    assert len({trial.user_attrs["dropped"] for trial in study.trials}) == 24
