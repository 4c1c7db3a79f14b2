"""How often layers were dropped, and the layers that the algorithms agree on."""

import math

import pytest

from prunesearch.report.figures import agreement, drops
from prunesearch.report.figures.figure import SEARCHED_ON, Figure
from prunesearch.report.figures.groups import comparable
from prunesearch.report.figures.pooled import short_names
from prunesearch.report.page.facts import contents_of
from prunesearch.studies.study_data import StudyData
from tests.support.study_values import report_data, study_data, trial_data

# Twenty candidates: the ten best drop layer 0, the ten worst layer 3. All drop layer 1.
TRIALS = [trial_data(n, "0,1" if n < 10 else "1,3", float(n)) for n in range(20)]


def shown(*studies: StudyData) -> Figure:
    found = drops.figure(report_data(*studies))
    assert found is not None
    return found


def test_the_best_and_the_worst_tenth_are_apart() -> None:
    found = shown(study_data("a", TRIALS))
    assert [panel.title for panel in found.panels] == [
        "all candidates",
        "best tenth",
        "worst tenth",
    ]
    bars = [list(panel.series[0].y) for panel in found.panels]
    assert bars == [[50.0, 100.0, 0.0, 50.0], [100.0, 100.0, 0.0, 0.0], [0.0, 100.0, 0.0, 100.0]]
    # The interval of Wilson for 10 of 20.
    first = found.panels[0].series[0]
    assert first.kind == "bars"
    assert first.low is not None and first.high is not None
    assert first.low[0] == pytest.approx(29.93, abs=0.01)
    assert first.high[0] == pytest.approx(70.07, abs=0.01)
    # Two of four layers are dropped.
    assert found.panels[0].rules[0].value == 50.0
    assert found.table is not None
    assert found.table.rows[4] == ("best tenth", "pso", "0", 5, 1.0, *found.table.rows[4][5:])
    assert found.table.rows[4][-1] == SEARCHED_ON


def test_algorithms_are_side_by_side_and_seeds_are_pooled() -> None:
    first = study_data("a", [trial_data(n, "0,1" if n < 30 else "1,3", n) for n in range(60)])
    # Another seed found worse values for the opposite: its best tenth is its own.
    opposite = [trial_data(n, "1,3" if n < 30 else "0,1", 100.0 + n) for n in range(60)]
    found = shown(first, study_data("b", opposite), study_data("c", TRIALS, sampler="woa"))
    pso, woa = found.panels[1].series
    assert (pso.name, woa.name) == ("pso", "woa")
    assert pso.style != woa.style
    assert list(pso.y) == [50.0, 100.0, 0.0, 50.0]
    assert list(woa.y) == [100.0, 100.0, 0.0, 0.0]


def test_a_line_has_a_band_and_many_layers_are_a_map() -> None:
    study = study_data("a", [trial_data(0, "3,29", 1.0)], n_layers=30)
    (series,) = shown(study).panels[0].series
    assert (series.kind, series.x[-1], series.y[-1]) == ("line", 29.0, 100.0)
    assert series.low is not None
    found = shown(study_data("a", [trial_data(0, "3,79", 1.0)], n_layers=80))
    heatmap = found.panels[0].heatmap
    assert heatmap is not None
    assert (heatmap.x[-1], heatmap.y, heatmap.z[0][-2:]) == ("79", ["pso"], [0.0, 100.0])
    assert found.columns == 1


def test_attention_and_mlp_have_panels_of_their_own() -> None:
    units = tuple(f"{block}{half}" for block in range(2) for half in "am")
    study = study_data("a", [trial_data(0, "0a,1m", 1.0), trial_data(1, "1", 2.0)], units=units)
    found = shown(study)
    assert [panel.title for panel in found.panels][::3] == [
        "attention: all candidates",
        "MLP: all candidates",
    ]
    assert list(found.panels[0].series[0].y) == [50.0, 50.0]
    assert list(found.panels[3].series[0].y) == [0.0, 100.0]


def test_widths_show_the_mean_share_that_is_removed() -> None:
    study = study_data(
        "a",
        [trial_data(0, "0:4/2,1:8/1", 1.0), trial_data(1, "0:8/2,1:8/2", 2.0)],
        units=("0a", "0m", "1a", "1m"),
        unit_sizes=(2, 8, 2, 8),
    )
    found = shown(study)
    assert found.panels[0].y_label == "removed in the mean (%)"
    assert list(found.panels[0].series[0].y) == [0.0, 25.0]
    assert list(found.panels[3].series[0].y) == [25.0, 0.0]
    assert "share of a layer that candidates remove" in found.caption


def test_two_algorithms_agree_on_the_layers_that_both_drop() -> None:
    first = study_data("m-a", TRIALS)
    other = [trial_data(n, "0,2" if n < 10 else "1,3", float(n)) for n in range(20)]
    second = study_data("m-b", other, sampler="woa")
    found = agreement.figure(report_data(first, second))
    assert found is not None and found.table is not None
    (row,) = found.table.rows
    assert row[:4] == ("pso, woa", "0", "1", "2")
    assert row[4] == pytest.approx(1 / 3)
    # Two random pairs of four layers share none (1/6), one (4/6) or both (1/6).
    assert row[5] == pytest.approx(4 / 6 / 3 + 1 / 6)
    (panel,) = found.panels
    assert panel.heatmap is not None
    assert panel.heatmap.y == ["a", "b", "mean"]
    assert panel.heatmap.z == [[100, 100, 0, 0], [100, 0, 100, 0], [100, 50, 50, 0]]


def test_an_agreement_without_different_shares_is_not_defined() -> None:
    trials = [trial_data(n, "0,1,2,3", float(n)) for n in range(3)]
    first, second = study_data("a", trials), study_data("b", trials, sampler="woa")
    found = agreement.figure(report_data(first, second))
    assert found is not None and found.table is not None
    assert found.table.rows[0][6:8] == (None, None)
    assert found.table.rows[0][4] == 1.0


def test_one_study_has_nothing_to_agree_with() -> None:
    assert agreement.figure(report_data(study_data("a", TRIALS))) is None
    running = study_data("b", [trial_data(0, "0,1", math.nan)], sampler="woa")
    assert agreement.figure(report_data(study_data("a", TRIALS), running)) is None
    assert drops.figure(report_data(running)) is None


def test_studies_over_other_layers_stand_apart() -> None:
    free = study_data("free", TRIALS)
    protected = study_data("protected", [trial_data(0, "1,3", 0.5)], units=("1", "2", "3"))
    parts = [f"{layer}{part}" for layer in range(4) for part in "am"]
    trials = [trial_data(0, "1a,3m", 0.1)]
    sublayers = study_data("sublayers", trials, units=parts, search_units="sublayers")
    report = report_data(free, protected, sublayers)
    titles = [together.title for together in comparable(report.studies)]
    assert titles == [
        "removing 2 blocks, chosen among 4",
        "removing 2 blocks, chosen among 3",
        "removing 2 sublayers, chosen among 8",
    ]
    # Every figure can be drawn, and no algorithm is named better for dropping half of a layer.
    contents = contents_of(report, "prunesearch report")
    assert len(contents.figures) >= 5
    assert not any("best first" in sentence.text for sentence in contents.summary)


def test_long_names_of_studies_are_cut_in_the_middle() -> None:
    first, second = study_data("n" * 400, TRIALS), study_data("n" * 400 + "2", TRIALS)
    names = short_names([first, second])
    assert sorted(len(name) for name in names.values()) == [41, 41]
    assert names[second.name].endswith("n2")
    # Names that would be the same stay whole.
    middle = study_data("n" * 100 + "2" + "n" * 300, TRIALS)
    assert short_names([first, middle]) == {first.name: first.name, middle.name: middle.name}
