"""The report of a job as tables and charts, from the document that `--json` prints.

The document was written by this version or by an earlier one, so a part that is missing or has
another type is left out instead of failing the page.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunesearch.objectives.registry import metric_labels
from prunesearch.report.recommendation import decided_in
from prunesearch.report.removals import Removal
from prunesearch.runtime.json_values import Json, JsonObject
from prunesearch.service.web.charts import Chart, loss_chart
from prunesearch.service.web.rendering import MISSING, duration, number, size_or_missing, uncertain
from prunesearch.units import noun_for


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: heading.
        number: whether it holds numbers, which are aligned on the right.
    """

    name: str
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table of a report. The first cell of a row is its heading."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def is_headed(self) -> bool:
        """Whether a column has a heading."""
        return any(column.name for column in self.columns)


@dataclass(frozen=True)
class TitledChart:
    """A chart with a heading."""

    title: str
    chart: Chart


@dataclass(frozen=True)
class ReportView:
    """The report of a job.

    Attributes:
        sentence: the outcome, as a sentence.
        tables: its tables.
        charts: losses of its healing.
    """

    sentence: str
    tables: tuple[Table, ...]
    charts: tuple[TitledChart, ...]


def report_view(result: JsonObject | None) -> ReportView | None:
    """Return the report of a job for its page.

    Args:
        result: document of the report. None: the job has not ended.

    Returns:
        The report. None if there is none, or nothing in it is known.
    """
    if not result:
        return None
    tables: list[Table] = []
    # The search: the best candidate against the dense model.
    searches = _objects(result.get("searches")) or [result]
    for search in searches:
        tables += _search_tables(search, several=len(searches) > 1)
    # What was recovered.
    tables += _finalists(result)
    tables += _recovered(result)
    # What was written, and how good it is.
    tables += _evaluation(result)
    for export in [_object(result.get("export")), *_objects(result.get("exports"))]:
        tables += _export(export)
    if not tables:
        return None
    return ReportView(_sentence(result), tuple(tables), tuple(_charts(result)))


def _object(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


def _objects(value: Json) -> list[Mapping[str, Json]]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return []
    return [each for each in value if isinstance(each, Mapping)]


def _figure(value: Json) -> float | int | None:
    """Return a number. None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value


def _text(value: Json) -> str:
    return value if isinstance(value, str) else MISSING


def _seconds(value: Json) -> str:
    return duration(_figure(value))


def _sentence(result: JsonObject) -> str:
    """Say what was found."""
    best = _object(result.get("best"))
    trials = _figure(result.get("trials"))
    if not best or trials is None:
        return ""
    # A Pareto study has a front instead of one best candidate.
    front = _objects(result.get("front"))
    if front:
        be = "is" if 1 in (len(front), trials) else "are"
        return f"{len(front)} of {trials:,} {noun_for(trials, 'trial')} {be} on the front."
    removal = Removal.of(_text(best.get("dropped")))
    text = f"The best of {trials:,} {noun_for(trials, 'trial')} {removal.sentence}."
    # Shares of the dense model, where both figures are known.
    dense_cost, cost = _cost(result.get("dense")), _cost(best)
    if dense_cost.get("params") and cost.get("params"):
        share = cost["params"] / dense_cost["params"]
        text += f" It has {share:.1%} of the dense model's parameters"
        if dense_cost.get("latency_ms") and cost.get("latency_ms"):
            faster = cost["latency_ms"] / dense_cost["latency_ms"]
            text += f" and takes {faster:.1%} of its time"
        text += "."
    # Where scores are noisy: how that was decided.
    for line in decided_in(result):
        text += f" {line[0].upper()}{line[1:]}."
    return text


def _cost(model: Json) -> dict[str, float]:
    """Return size and latency of a model, without figures that are missing."""
    found = {}
    for name, value in _object(_object(model).get("cost")).items():
        figure = _figure(value)
        if figure is not None:
            found[name] = float(figure)
    return found


def _measured(model: Mapping[str, Json], name: str) -> str:
    """Return a metric of a model with its standard error."""
    value = _figure(_object(model.get("metrics")).get(name))
    error = _figure(_object(model.get("stderr")).get(name))
    if value is None:
        return MISSING
    return number(float(value)) if not error else uncertain(float(value), float(error))


def _search_tables(search: Mapping[str, Json], *, several: bool) -> list[Table]:
    dense, best = _object(search.get("dense")), _object(search.get("best"))
    if not dense or not best:
        return []
    labels = metric_labels()
    # 1. Metrics of both models.
    rows = []
    for name in _object(best.get("metrics")):
        row = (labels.get(name, name), _measured(dense, name), _measured(best, name))
        rows.append(row)
    # 2. Their costs.
    dense_cost, cost = _cost(dense), _cost(best)
    latency = "latency, measured" if search.get("latency_measured") else "latency, predicted"
    if "params" in cost:
        row = ("parameters", _count(dense_cost.get("params")), _count(cost.get("params")))
        rows.append(row)
    if "bytes" in cost:
        rows.append(
            ("size", size_or_missing(dense_cost.get("bytes")), size_or_missing(cost.get("bytes")))
        )
    if "latency_ms" in cost:
        rows.append((latency, _ms(dense_cost.get("latency_ms")), _ms(cost.get("latency_ms"))))
    title = "Best candidate against the dense model"
    if several:
        title += f": {_text(search.get('study'))}"
    columns = (Column("", number=False), Column("dense"), Column("best"))
    tables = [Table(title, columns, tuple(rows))]
    tables += _paired(_object(search.get("paired")))
    tables.append(_run(search))
    return tables


def _count(value: float | None) -> str:
    return number(None if value is None else int(value))


def _ms(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.2f} ms"


def _paired(paired: Mapping[str, Json]) -> list[Table]:
    """Return the difference from the dense model on the same documents."""
    difference, error = _figure(paired.get("difference")), _figure(paired.get("stderr"))
    if difference is None or error is None:
        return []
    row = (
        _text(paired.get("metric")),
        f"{difference:+.4f} ± {error:.4f}",
        number(_figure(paired.get("documents"))),
    )
    columns = (Column("metric", number=False), Column("pruned - dense"), Column("documents"))
    return [Table("Difference on the same documents", columns, (row,))]


def _run(search: Mapping[str, Json]) -> Table:
    """Return what the search did. Rare events are left out if there were none."""
    names = {
        "trials": "trials",
        "computed": "evaluated in this run",
        "hits": "found in the cache",
        "failed": "failed",
        "adopted": "begun by an interrupted run",
        "damaged": "damaged cache entries",
    }
    rows = []
    for key, name in names.items():
        value = _figure(search.get(key))
        if value or key in ("trials", "computed", "hits"):
            rows.append((name, number(value)))
    rows.append(("duration", _seconds(search.get("seconds"))))
    return Table("The search", (Column("", number=False), Column("")), tuple(rows))


def _finalists(result: JsonObject) -> list[Table]:
    rows = []
    for each in _objects(result.get("finalists")):
        row = (
            _text(each.get("candidate")),
            number(_figure(each.get("place"))),
            number(_figure(each.get("pruned"))),
            number(_figure(each.get("compensated"))),
            number(_figure(each.get("healed"))),
            _seconds(each.get("seconds")),
        )
        rows.append(row)
    if not rows:
        return []
    names = ("place in the search", "pruned", "compensated", "healed", "duration")
    columns = (Column("drops", number=False), *(Column(name) for name in names))
    return [Table("Finalists: loss on held-out text, nats per token", columns, tuple(rows))]


def _recovered(result: JsonObject) -> list[Table]:
    """Return the losses on held-out text before and after each step of the recovery."""
    # 1. The losses of the models, in the order in which they were made.
    losses = _object(result.get("losses"))
    rows: list[tuple[str, str]] = []
    for name in ("dense", "pruned"):
        if _figure(losses.get(name)) is not None:
            rows.append((name, number(_figure(losses.get(name)))))
    compensation = _object(result.get("compensation"))
    compensated = _figure(_object(compensation.get("compensated")).get("cross_entropy"))
    if compensated is not None:
        rows.append(("compensated", number(compensated)))
    healed = _object(result.get("healed"))
    if _figure(healed.get("after")) is not None:
        rows.append(("before healing", number(_figure(healed.get("before")))))
        rows.append(("healed", number(_figure(healed.get("after")))))
    tables = []
    if rows:
        columns = (Column("model", number=False), Column("loss"))
        title = "Recovery: loss on held-out text, nats per token"
        tables.append(Table(title, columns, tuple(rows)))
    # 2. Facts about the steps.
    facts: list[tuple[str, str]] = []
    share = _figure(compensation.get("recovered"))
    if share is not None:
        facts.append(("recovered by compensation", f"{share:.1%}"))
    if healed:
        steps, planned = _figure(healed.get("steps")), _figure(healed.get("planned"))
        facts.append(("steps of healing", f"{number(steps)} of {number(planned)}"))
        facts.append(("best step", number(_figure(healed.get("best_step")))))
        facts.append(("tokens", number(_figure(healed.get("tokens")))))
        facts.append(("largest memory", size_or_missing(_figure(healed.get("peak_memory")))))
        facts.append(("duration", _seconds(healed.get("seconds"))))
        if healed.get("diverged") is True:
            facts.append(("diverged", "yes"))
    if facts:
        columns = (Column("", number=False), Column(""))
        tables.append(Table("The recovery", columns, tuple(facts)))
    return tables + _gaps(compensation)


def _gaps(compensation: Mapping[str, Json]) -> list[Table]:
    rows = []
    for gap in _objects(compensation.get("gaps")):
        row = (
            _text(gap.get("dropped")),
            _text(gap.get("method")),
            number(_figure(gap.get("loss_before"))),
            number(_figure(gap.get("loss_after"))),
            _seconds(gap.get("seconds")),
        )
        rows.append(row)
    if not rows:
        return []
    columns = (
        Column("gap", number=False),
        Column("method", number=False),
        Column("loss before"),
        Column("loss after"),
        Column("duration"),
    )
    return [Table("Compensated gaps", columns, tuple(rows))]


def _evaluation(result: JsonObject) -> list[Table]:
    evaluation = _object(result.get("evaluation"))
    if not evaluation:
        return []
    # Metrics by their displayed names, and then the size.
    labels, rows = metric_labels(), []
    for name in _object(evaluation.get("metrics")):
        rows.append((labels.get(name, name), _measured(evaluation, name)))
    rows.append(("parameters", number(_figure(evaluation.get("params")))))
    rows.append(("size", size_or_missing(_figure(evaluation.get("bytes")))))
    columns = (Column("", number=False), Column("recovered model"))
    return [Table("Evaluation of the result", columns, tuple(rows))]


def _export(export: Mapping[str, Json]) -> list[Table]:
    if not export:
        return []
    checked = _object(export.get("verification"))
    rows = [
        ("format", _text(export.get("form"))),
        ("drops", _text(export.get("dropped"))),
        ("parameters", number(_figure(export.get("params")))),
        ("size", size_or_missing(_figure(export.get("bytes")))),
    ]
    difference, allowed = (
        _figure(checked.get("prefill_difference")),
        _figure(checked.get("allowed")),
    )
    if difference is not None and allowed is not None:
        shown = f"{difference:.2g} (allowed {allowed:.2g})"
        rows.append(("largest difference of a logit", shown))
    decoded = _figure(checked.get("decode_difference"))
    if decoded is not None:
        rows.append(("the same while it generates", f"{decoded:.2g}"))
    if _figure(checked.get("weights")) is not None:
        rows.append(("tensors equal to their source", number(_figure(checked.get("weights")))))
    columns = (Column("", number=False), Column(""))
    return [Table("Verified export", columns, tuple(rows))]


def _charts(result: JsonObject) -> list[TitledChart]:
    """Return the charts of the losses of a healing."""
    healed = _object(result.get("healed"))
    titles = {
        "held_out_loss": "Cross-entropy on held-out text while healing",
        "watched_loss": "Trained loss on held-out text while healing",
    }
    # With distillation the trained loss is another one than the cross-entropy.
    charts = []
    seen: list[list[tuple[int, float]]] = []
    for key, title in titles.items():
        losses = _losses(healed.get(key))
        chart = loss_chart(losses, "loss, nats per token")
        # Without distillation both are the same.
        if chart is not None and losses not in seen:
            seen.append(losses)
            charts.append(TitledChart(title, chart))
    return charts


def _losses(value: Json) -> list[tuple[int, float]]:
    """Return a curve of losses. Points that are not two numbers are left out."""
    found = []
    if isinstance(value, str) or not isinstance(value, Sequence):
        return []
    for point in value:
        if isinstance(point, str) or not isinstance(point, Sequence) or len(point) != 2:
            continue
        step, loss = _figure(point[0]), _figure(point[1])
        if step is not None and loss is not None and math.isfinite(loss):
            found.append((int(step), float(loss)))
    return found
