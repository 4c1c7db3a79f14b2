import io
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from prunesearch.config.recipe import Recipe
from prunesearch.report.emit import emit
from prunesearch.report.results import (
    Cost,
    PairedDifference,
    ScoredModel,
    SearchesReport,
    SearchReport,
)
from prunesearch.report.search import grid, search
from prunesearch.report.study import study_list, study_show
from prunesearch.report.tables import (
    LayerList,
    Paragraph,
    Prose,
    size,
    table,
)
from prunesearch.runtime.json_values import Json
from prunesearch.studies.summary import StudyDetails, StudySummary, TrialSummary

NAME = "smollm2-135m-instruct-drop25pct-kl-pso-s1"
LAYERS = ",".join(map(str, range(10, 38)))


def shown(part: object, width: int, encoding: str = "utf-8") -> list[str]:
    """The lines of a part as a terminal of that width gets them."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        file=file, width=width, color_system=None, markup=False, emoji=False, highlight=False
    )
    console.print(part, crop=False)
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()


def assert_whole(lines: list[str], *words: str) -> None:
    """Every word stands in one line, and no line begins or ends inside a number."""
    for word in words:
        assert any(word in line for line in lines), f"{word} is broken in {lines}"


def test_names_cannot_steer_a_terminal() -> None:
    name = "a\x1b[31m\u202e\nb"
    for part in (table("Studies", ("study",), [(name,)]), Paragraph(f"{name}: best of 3 trials")):
        lines = shown(part, 80)
        assert not any("\x1b" in line or "\u202e" in line for line in lines)
    assert r"a\x1b[31m\u202e\nb" in shown(table("Studies", ("study",), [(name,)]), 80)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 400])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_number_name_or_heading_is_broken(width: int, encoding: str) -> None:
    columns = ("study", "cross-entropy (nats/token)", "bytes", "layers dropped")
    lines = shown(
        table("Studies", columns, [(NAME, "1.9693 ± 0.0123", "212,388,480", LayerList(LAYERS))]),
        width,
        encoding,
    )
    assert_whole(lines, NAME, "1.9693", "212,388,480", "cross-entropy", "(nats/token)")
    found = [
        piece
        for line in lines
        for piece in re.findall(r"(?:\b\d\d(?:,|$))+", line)
        if line.strip().endswith(piece)
    ]
    assert "".join(found) == LAYERS, "the list is folded after commas alone"
    assert max(map(len, lines)) <= width or width < len(NAME) + 6


@pytest.mark.parametrize("width", [40, 80])
def test_lines_are_folded_between_words_and_long_lists_after_commas(width: int) -> None:
    lines = shown(
        Paragraph(f"exported {NAME} without layers {LAYERS} and that is all", indent="  "), width
    )
    assert_whole(lines, NAME)
    assert max(map(len, lines)) <= max(width, len(NAME) + 2)
    assert LAYERS in "".join(line.strip() for line in lines)


def test_prose_is_folded_between_words_and_brackets_are_no_markup() -> None:
    lines = shown(
        table("t [b]", ("a", "b"), [("[red]x", Prose("one two three four five six seven eight"))]),
        30,
    )
    assert_whole(lines, "t [b]", "[red]x", "one two three four")


SUMMARY = StudySummary(
    name=NAME,
    model="tiny",
    objective="kl",
    drop="8",
    sampler="pso",
    trials=12,
    running=0,
    failed=0,
    partial_subsets=0,
    best_value=1.9693,
    best_dropped="12,13,14,15,17,20,21,22",
    front=0,
    started=None,
    writer=None,
)


def test_a_front_has_no_best_trial_and_empty_columns_are_left_out() -> None:
    pareto = replace(SUMMARY, name="p", front=7, best_value=None, best_dropped=None)
    lines = shown(study_list([SUMMARY, pareto])[0], 200)
    assert "7 on the front" in lines[-2]
    assert "1.9693" in lines[-3]
    assert not {"running", "failed"} & set(" ".join(lines).split())
    assert "study best prints" in str(study_list([SUMMARY])[1])


def test_best_trials_show_no_column_twice_and_sizes_in_units() -> None:
    attributes: dict[str, Json] = {
        "kl": 1.969312,
        "perplexity": 30.5,
        "bytes": 2**28,
        "params": 10,
        "cache": "computed",
        "kl_stderr": 0.012,
    }
    best = []
    for n, values in enumerate([attributes, {**attributes, "kl": 2.969312, "bytes": 2**29}]):
        best.append(TrialSummary(n, 1.9693123 + n, (1.9693123 + n,), "12,13", values))
    recipe = Recipe(model="tiny", drop="8", seed=3)
    settings, _, trials = study_show(StudyDetails(SUMMARY, recipe, tuple(best)))
    lines = shown(trials, 200)
    assert lines[2].split("  ") and "KL to dense (nats/token)" in lines[2]
    for absent in ("value", "parameters", "computed", "268435456"):
        assert absent not in "\n".join(lines), absent
    assert "0.250 GiB" in "\n".join(lines)
    assert "1.9693 ± 0.0120" in "\n".join(lines)
    assert any(line.split() == ["search.seed", "3"] for line in shown(settings, 200))


def outcome(**changes: Any) -> SearchReport:  # noqa: ANN401
    """A search's report."""
    cost = Cost(params=100, bytes=200, latency_ms=10.0)
    report = SearchReport(
        study="my study",
        sampler="pso",
        storage="sqlite:///storage/study.db",
        trials=12,
        value=0.6667,
        front=[],
        dense=ScoredModel("none", {"acc_norm": 0.8333}, {"acc_norm": 0.1124}, cost),
        best=ScoredModel("3,4", {"acc_norm": 0.6667}, {"acc_norm": 0.0875}, cost),
        latency_measured=True,
        lost=0.2,
        paired=PairedDifference("acc_norm", documents=12, difference=-0.1667, stderr=0.1),
        hits=0,
        computed=12,
        failed=0,
        adopted=0,
        missing=0,
        damaged=0,
        seconds=1.0,
    )
    return replace(report, **changes)


def text_of(parts: Sequence[object]) -> str:
    return "\n".join(line for part in parts for line in shown(part, 120))


def test_tasks_have_errors_for_both_models_and_a_paired_difference() -> None:
    text = text_of(search(outcome()))
    assert "0.8333 ± 0.1124" in text
    assert "0.6667 ± 0.0875" in text
    assert "acc_norm, pruned - dense on the same 12 documents: -0.1667 ± 0.1000" in text
    assert "latency, measured (ms)" in text
    assert "latency, predicted (ms)" in text_of(search(outcome(latency_measured=False)))
    assert "(measured)" in text_of(grid(SearchesReport([outcome(), outcome()])))


def test_next_commands_can_be_pasted_and_bring_quality_back_where_it_was_lost() -> None:
    text = text_of(search(outcome()))
    assert "prunesearch export 'my study' --out 'my study'" in text
    assert "prunesearch compensate 'my study'" in text
    assert "prunesearch heal 'my study'" in text
    unhurt = text_of(search(outcome(lost=0.01)))
    assert "compensate" not in unhurt
    sublayers = outcome()
    sublayers = replace(sublayers, best=replace(sublayers.best, dropped="3a,4"))
    assert "--as zeroed" in text_of(search(sublayers))
    assert "compensate" not in text_of(search(sublayers))


def test_in_a_pipe_a_row_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setenv("COLUMNS", "40")
    emit(False, [replace(SUMMARY, best_dropped=LAYERS)], study_list)
    (row,) = (line for line in file.getvalue().splitlines() if NAME in line)
    assert row.endswith(LAYERS)


@pytest.mark.parametrize(
    ("count", "said"),
    [(512, "512 bytes"), (1536, "1.5 KiB"), (2**20, "1 MiB"), (5 * 2**30, "5 GiB")],
)
def test_sizes_have_a_unit_that_shows_them(count: int, said: str) -> None:
    assert size(count) == said


def test_an_ascii_pipe_gets_every_result(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", file)
    emit(False, outcome(study="übung"), search)
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "0.6667 +/- 0.0875" in text
    assert "\\xfcbung" in text
