import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from prunesearch import events
from prunesearch.errors import InputError, RunError
from prunesearch.events import HealProgress, Message, SearchProgress, StageProgress
from prunesearch.report import healing_progress
from prunesearch.report import progress as progress_module
from prunesearch.report.progress import ProgressView
from prunesearch.report.study import study_list
from prunesearch.report.tables import dense_against_pruned, gib, number
from prunesearch.runtime import stopping


def show(width: int, *, terminal: bool) -> str:
    """Two studies' progress as it comes out."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    with ProgressView(console):
        for study in ("smollm2-135m-instruct-drop6-kl-pso", "smollm2-135m-instruct-drop6-kl-woa"):
            events.tell(SearchProgress(study, 0, 160))
            events.tell(
                SearchProgress(
                    study, 40, 160, hits=10, computed=30, best_value=0.8651, best_dropped="5,12,16"
                )
            )
            events.tell(
                SearchProgress(
                    study, 160, 160, hits=40, computed=120, best_value=0.5, best_dropped="5,12,16"
                )
            )
        events.tell(Message("done"))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_logs_get_plain_lines() -> None:
    lines = show(80, terminal=False).splitlines()
    assert lines[0] == "smollm2-135m-instruct-drop6-kl-pso: 0/160 trials, no result yet"
    assert lines[1].startswith(
        "smollm2-135m-instruct-drop6-kl-pso: 160/160 trials, best 0.5000 without 5,12,16, 25% "
        "hits, "
    )
    assert lines[1].endswith(" s/eval")
    assert lines[-1] == "done"
    assert "\x1b" not in "".join(lines)


def test_terminals_get_a_bar_a_study_that_fits() -> None:
    shown = show(100, terminal=True)
    for part in (
        "drop6-kl-pso",
        "drop6-kl-woa",
        "160/160",
        "best 0.5000 without 5,12,16, 25% hits",
    ):
        assert part in shown


def test_tables_say_units_and_ratios() -> None:
    console = Console(file=io.StringIO(), width=120)
    dense, pruned = (
        {"bytes": 2**31, "kl": 0.0, "latency_ms": 20.0},
        {"bytes": 2**30, "kl": 0.25, "latency_ms": 15.0},
    )
    console.print(dense_against_pruned("title", dense, pruned, {"kl": 0.125}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "1,073,741,824 (1.00 GiB)",
        "0.500",
        "0.2500 ± 0.1250",
        "nats/token",
        "latency (ms)",
        "0.750",
    ):
        assert part in shown
    assert gib(2**28) == "0.250 GiB"
    assert number("perplexity", 250164.853) == "2.502e+05"


def test_no_studies_is_said() -> None:
    assert study_list([]) == ["no studies yet: run prunesearch search"]


def plain() -> Console:
    return Console(file=io.StringIO(), width=80)


def said(view: ProgressView) -> list[str]:
    return view.console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_a_log_says_the_stages_in_order() -> None:
    with ProgressView(plain()) as view:
        events.tell(StageProgress("loading the model m[0]"))
        events.tell(StageProgress("scoring the dense model"))
        events.tell(SearchProgress("s", 0, 12))
        events.tell(StageProgress("timing the winner"))
        events.tell(StageProgress("timing the winner"))
    assert [line.partition(":")[0] for line in said(view)] == [
        "loading the model m[0]",
        "scoring the dense model",
        "s",
        "timing the winner",
    ]
    events.tell(StageProgress("nobody hears this any more"))
    assert len(said(view)) == 4


def test_input_that_is_refused_at_once_is_one_line() -> None:
    view = ProgressView(plain())
    with pytest.raises(InputError), view:
        events.tell(StageProgress("loading the model"))
        raise InputError("bad")
    assert said(view) == []
    view = ProgressView(plain())
    with pytest.raises(RunError), view:
        events.tell(StageProgress("loading the model"))
        raise RunError("failed")
    assert said(view) == ["loading the model"]


def test_a_long_first_stage_is_said_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_HOLD", 0.01)
    with ProgressView(plain()) as view:
        events.tell(StageProgress("loading the model"))
        deadline = time.monotonic() + 10
        while not said(view) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert said(view) == ["loading the model"]


class Time:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(progress_module, "time", made)
    monkeypatch.setattr(healing_progress, "time", made)
    return made


def test_the_time_left_follows_the_work_and_not_the_bursts(clock: Time) -> None:
    """Six trials take 30 s and are told together, so 12 take 60 s."""
    with ProgressView(plain()) as view:
        events.tell(SearchProgress("s", 0, 12, under_way=6))
        for piece in range(6):
            clock.now += 5
            events.tell(StageProgress("scoring 6 candidates", piece + 1, 6, "pieces"))
            left = view._clocks["s"].left
            assert left is not None
            assert abs(left - (60 - 5 * (piece + 1))) < 1e-6
        for done in range(1, 7):
            events.tell(
                SearchProgress(
                    "s",
                    done,
                    12,
                    computed=done,
                    best_value=1.0,
                    best_dropped="1",
                    under_way=6 - done,
                )
            )
            assert abs((view._clocks["s"].left or 0) - 30) < 1e-6
        events.tell(
            SearchProgress("s", 6, 12, computed=6, best_value=1.0, best_dropped="1", under_way=6)
        )
        clock.now += 10
        assert abs((view._clocks["s"].left or 0) - 20) < 1e-6, "and goes down between two"
    lines = said(view)
    assert "s: 1/12 trials, best 1.0000 without 1, 0% hits, 30.00 s/eval, 30 s left" in lines
    assert "scoring 6 candidates: 4/6 pieces" in lines


def test_a_search_that_is_started_again_has_no_speed_until_its_first_evaluation(
    clock: Time,
) -> None:
    """A paused job goes on in another process, which counts its evaluations from zero."""
    found = SearchProgress("s", 6, 12, computed=6, best_value=1.0, best_dropped="1")
    with ProgressView(plain()) as view:
        events.tell(SearchProgress("s", 0, 12))
        clock.now += 30
        events.tell(found)
        clock.now += 30
        events.tell(replace(found, computed=0))
        assert view._clocks["s"].left is None
        clock.now += 30
        events.tell(replace(found, done=7, computed=1))
        clock.now += 30
        events.tell(replace(found, done=12, computed=6))
    lines = said(view)
    assert "s: 6/12 trials, best 1.0000 without 1" in lines
    assert lines[-1] == "s: 12/12 trials, best 1.0000 without 1, 0% hits, 10.00 s/eval"


def test_a_resumed_study_shows_its_best_at_once() -> None:
    with ProgressView(plain()) as view:
        events.tell(SearchProgress("s", 6, 12, best_value=1.25, best_dropped="3,4"))
    assert said(view) == ["s: 6/12 trials, best 1.2500 without 3,4"]
    with ProgressView(plain()) as view:
        events.tell(SearchProgress("s", 6, 12, best_value=None, front=5))
    assert said(view) == ["s: 6/12 trials, 5 trials on the front"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_shows_whole_names_and_layers_and_ends_each_line_once(width: int) -> None:
    name, layers = (
        "smollm2-135m-instruct-drop25pct-hellaswag-pso",
        ",".join(map(str, range(10, 30))),
    )
    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        color_system=None,
        legacy_windows=False,
    )
    with ProgressView(console) as view:
        events.tell(StageProgress("loading the model"))
        events.tell(
            SearchProgress(name, 6, 12, best_value=0.8651, best_dropped=layers, under_way=6)
        )
        events.tell(StageProgress("scoring 6 candidates", 5, 24, "pieces"))
        assert "5/24 pieces" in picture(view, width)
        drawn = picture(view, width)
        events.tell(
            SearchProgress(name, 12, 12, computed=6, best_value=0.8651, best_dropped=layers)
        )
        ends = {
            line.index("/12")
            for text in (drawn, picture(view, width))
            for line in text.splitlines()
            if "/12" in line
        }
        assert len(ends) == 1, "the bar keeps its width"
        events.tell(StageProgress("timing the winner"))
    assert name in drawn
    assert f"best 0.8651 without {layers}" in " ".join(drawn.split()).replace(", ", ",")
    after = view.console.file.getvalue().rpartition("12/12")  # type: ignore[attr-defined]
    assert after[2].count("timing the winner") == 1
    assert after[2].count("best 0.8651") == 1


def picture(view: ProgressView, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view._picture())
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_healing_says_the_time_left(clock: Time) -> None:
    with ProgressView(plain()) as view:
        events.tell(HealProgress("heal", "training", 100, 500))
        clock.now += 20
        events.tell(HealProgress("heal", "training", 200, 500))
    assert said(view)[-1] == "heal: 200/500 steps, 60 s left"


def test_the_end_of_training_is_one_line_with_its_last_look() -> None:
    looks = ((0, 2.0), (10, 1.5))
    with ProgressView(plain()) as view:
        events.tell(HealProgress("heal", "training", 0, 10, watched=looks[:1]))
        events.tell(HealProgress("heal", "training", 10, 10, loss=1.0, watched=looks[:1]))
        events.tell(HealProgress("heal", "training", 10, 10, loss=1.0, watched=looks))
    assert [line for line in said(view) if "10/10" in line] == [
        "heal: 10/10 steps, loss 1.0000, held-out 1.5000 (start 2.0000, best 1.5000)"
    ]


def test_healing_draws_a_bar_on_a_terminal_and_a_line_for_each_evaluation() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with ProgressView(console) as view:
        events.tell(HealProgress("trial 3", "teacher", 4, 8))
        assert "4/8 sequences asked of the dense model" in picture(view, 80)
        events.tell(HealProgress("trial 3", "training", 1, 8, watched=((0, 2.0),)))
        events.tell(HealProgress("trial 3", "training", 2, 8, watched=((0, 2.0),)))
        assert "2/8 steps" in picture(view, 80)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("held-out 2.0000") == 1


def test_a_stop_is_shown_in_the_picture_and_not_across_it(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with ProgressView(console) as view:
        events.tell(SearchProgress("s", 1, 12))
        assert stopping._StopState.drawn
        assert stopping.STOPPING not in picture(view, 80)
        monkeypatch.setattr(stopping, "requested", lambda: True)
        assert stopping.STOPPING in picture(view, 80)
    assert not stopping._StopState.drawn
