"""Studies as a report reads them, made by hand."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from prunesearch.config.recipe import Recipe
from prunesearch.report.figures.report_data import ReportData
from prunesearch.runtime.json_values import Json
from prunesearch.studies.measurements import Measurement
from prunesearch.studies.study_data import State, StudyData, TrialData


def trial_data(
    number: int,
    dropped: str,
    *values: float,
    state: State = "complete",
    parents: tuple[int, ...] = (),
    started: float | None = None,
    **attributes: Json,
) -> TrialData:
    """A trial that took a second."""
    start = float(number) if started is None else started
    return TrialData(number, state, values, dropped, attributes, start, start + 1.0, parents)


def study_data(
    name: str,
    trials: Sequence[TrialData],
    *,
    sampler: str = "pso",
    n_layers: int = 4,
    units: Sequence[str] = (),
    unit_sizes: Sequence[int] = (),
    maximize: tuple[bool, ...] = (False,),
    value_names: tuple[str, ...] = ("kl", "bytes"),
    drop: str = "2",
    search_units: str = "blocks",
    population: int | None = None,
    seed: int = 0,
    data_content: str = "search data",
    dense: Mapping[str, float] | None = None,
) -> StudyData:
    """A study of a small model."""
    named = tuple(units) or tuple(str(layer) for layer in range(n_layers))
    search: dict[str, object] = {
        "drop": drop,
        "units": search_units,
        "sampler": sampler,
        "population": population,
        "seed": seed,
    }
    return StudyData(
        name=name,
        recipe=Recipe(model="tiny", search=search),
        model_name="tiny",
        model_content="weights",
        data_content=data_content,
        sampler=sampler,
        metric=value_names[0],
        metric_label="KL to dense (nats/token)",
        more_is_better=maximize[0],
        n_layers=n_layers,
        units=named,
        dense={value_names[0]: 0.0} if dense is None else dense,
        latency=None,
        trials=tuple(trials),
        value_names=value_names[: len(maximize)],
        maximize=maximize,
        identity={"sampler": sampler, "drop": drop, "seed": seed},
        unit_sizes=tuple(unit_sizes) or (1,) * len(named),
    )


def measurement(
    role: str, value: float, *losses: float, candidate: str = "0,1", **given: object
) -> Measurement:
    """A measurement on data that the search has not seen."""
    values: dict[str, object] = {
        "candidate": candidate,
        "role": role,
        "data": "builtin-held-out",
        "data_content": "fresh data",
        "badge": "held out",
        "metric": "kl",
        "value": value,
        "stderr": 0.01,
        "n": len(losses),
        "per_document": losses,
        **given,
    }
    return Measurement(**values)  # type: ignore[arg-type]


def report_data(
    *studies: StudyData, measurements: Mapping[str, tuple[Measurement, ...]] | None = None
) -> ReportData:
    """What a report of some studies is made from."""
    return ReportData(
        studies=studies,
        measurements=measurements or {},
        cache=None,
        made=datetime(2026, 1, 2, tzinfo=UTC),
    )
