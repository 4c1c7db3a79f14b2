"""Samplers over widths: the budget is met exactly, nothing repeats, and a study continues as it
began.
"""

import numpy as np
import optuna
import pytest

from prunesearch import PSOSampler, WidthSpace
from prunesearch.algorithms.registry import REGISTRY
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.samplers import SubsetSampler, build
from prunesearch.samplers.stored_memory import STATE_ATTR
from prunesearch.widths.layer_widths import LayerWidths
from prunesearch.widths.shape import WidthShape
from tests.support.additive_loss import drive

SHAPE = WidthShape((256,) * 8, (4,) * 8, (96,) * 8, (2048,) * 8, (96,) * 8, (2048,) * 8, 32)
SPACE = WidthSpace.parse(SHAPE, "30%", SHAPE.weights, 2, align=32, order="flap-0", biases=True)
BLOCKS = WidthSpace.parse(SHAPE, "30%", SHAPE.weights, 2, align=32, order="flap-0", blocks=True)
ABLE = [entry for entry in REGISTRY.entries() if not entry.no_widths and not entry.needs_llm]


def loss(candidate: LayerSubset) -> float:
    """Later layers cost more to narrow."""
    assert isinstance(candidate, LayerWidths)
    lost = np.array(SHAPE.channels) - np.array(candidate.channels)
    lost_groups = np.array(SHAPE.groups) - np.array(candidate.groups)
    return float((lost / 256.0 + lost_groups / 4.0) ** 2 @ np.arange(1.0, 9.0))


def first(space: WidthSpace) -> list[LayerWidths]:
    """The same level for all, and a ramp."""
    ramp_G = np.linspace(0.0, 1.0, space.n_genes) * space.most_G
    levels_MG = space.project(np.stack([0.3 * space.most_G, ramp_G]))
    assert levels_MG is not None
    return [space.candidate(levels_G) for levels_G in levels_MG]


def sampler_of(name: str, space: WidthSpace) -> SubsetSampler:
    ranking: list[float] | None = None
    if REGISTRY.get(name).needs_ranking:
        ranking = np.linspace(1.0, 2.0, space.n_units).tolist()
    return build(name, space, seed=2, population=4, ranking=ranking, first=first(space))


@pytest.mark.parametrize("space", [SPACE, BLOCKS], ids=["widths", "blocks+widths"])
@pytest.mark.parametrize("name", [entry.name for entry in ABLE])
def test_every_sampler_removes_exactly_the_budget(name: str, space: WidthSpace) -> None:
    study = optuna.create_study()
    sampler = sampler_of(name, space)
    drive(study, sampler, 14, loss)
    texts = [trial.user_attrs["dropped"] for trial in study.trials]
    assert texts[:2] == [candidate.text for candidate in first(space)]
    assert len(set(texts)) == 14, "no candidate is proposed twice"
    for trial in study.trials:
        assert space.count(space.from_params(trial.params)) == space.budget
        assert len(trial.system_attrs.get(STATE_ATTR, "")) < 2000


@pytest.mark.parametrize("name", [entry.name for entry in ABLE if entry.resumable])
def test_a_resumed_study_continues_as_an_unbroken_one(name: str) -> None:
    unbroken = drive(optuna.create_study(), sampler_of(name, SPACE), 13, loss)
    study = optuna.create_study()
    drive(study, sampler_of(name, SPACE), 6, loss)
    assert drive(study, sampler_of(name, SPACE), 13, loss) == unbroken


@pytest.mark.parametrize("encoding", ["set", "keys"])
def test_the_public_sampler_works_in_optimize(encoding: str) -> None:
    study = optuna.create_study(sampler=PSOSampler(SPACE, seed=1, encoding=encoding))

    def objective(trial: optuna.Trial) -> float:
        for name, (low, high, step) in SPACE.param_ranges.items():
            trial.suggest_int(name, low, high, step=step)
        return loss(SPACE.from_params(trial.params))

    study.optimize(objective, n_trials=60)
    values = [trial.value or 0.0 for trial in study.trials]
    assert min(values) < 0.75 * min(values[:6])
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 60


def test_an_asynchronous_swarm_can_be_derived_again() -> None:
    study = optuna.create_study()
    sampler = build("pso", SPACE, seed=2, population=3, asynchronous=True)
    running = [sampler.ask(study) for _ in range(3)]
    for _ in range(9):
        ended = running.pop(1)
        study.tell(ended.number, loss(ended.candidate))
        running.append(sampler.ask(study))
    again = PSOSampler(SPACE, seed=2, population=3, asynchronous=True)
    for number in range(12):
        text = study.trials[number].user_attrs["dropped"]
        assert again.reproduce(study, number).text == text


def test_enqueued_widths_must_meet_the_budget() -> None:
    study = optuna.create_study()
    sampler = sampler_of("pso", SPACE)
    whole = SPACE.to_params(first(SPACE)[0])
    study.enqueue_trial(whole)
    study.enqueue_trial({name: low for name, (low, _, _) in SPACE.param_ranges.items()})
    ((number, candidate),) = sampler.enqueued(study)
    assert (number, candidate) == (0, first(SPACE)[0])
    assert "and this search removes" in study.trials[1].user_attrs["failure"]


def test_a_study_is_held_to_its_first_candidates() -> None:
    study = optuna.create_study()
    drive(study, sampler_of("pso", SPACE), 2, loss)
    with pytest.raises(InputError, match="first was"):
        drive(study, build("pso", SPACE, seed=2, population=4), 3, loss)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("greedy", {}, "`sampler` greedy cannot search widths"),
        ("pso", {"encoding": "binary"}, "`encoding` binary names layers"),
        ("pso", {"ranking": "single"}, "drops one layer at a time"),
        ("pso", {"ranking": [1.0]}, "the ranking has 1 number"),
    ],
)
def test_what_widths_do_not_have_is_refused(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(name, SPACE, **options)  # type: ignore[arg-type]
