import io

from rich.console import Console

from prunesearch.report.progress import Progress, ProgressView
from prunesearch.report.render import study_list
from prunesearch.report.tables import dense_against_pruned, gib, number


def show(width: int, *, terminal: bool) -> str:
    """Two studies' progress as it comes out."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    with ProgressView(console) as view:
        for study in ("smollm2-135m-instruct-drop6-kl-pso", "smollm2-135m-instruct-drop6-kl-woa"):
            view.progress(Progress(study, 0, 160))
            view.progress(Progress(study, 40, 160, hits=10, computed=30, best_value=0.8651, best_dropped="5,12,16"))
            view.progress(Progress(study, 160, 160, hits=40, computed=120, best_value=0.5, best_dropped="5,12,16"))
        view.say("done")
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_logs_get_plain_lines() -> None:
    lines = show(80, terminal=False).splitlines()
    assert lines[0] == "smollm2-135m-instruct-drop6-kl-pso: 0/160 trials, no result yet"
    assert lines[1].startswith(
        "smollm2-135m-instruct-drop6-kl-pso: 160/160 trials, best 0.5000 without 5,12,16, 25% hits, "
    )
    assert lines[1].endswith(" s/eval")
    assert lines[-1] == "done"
    assert "\x1b" not in "".join(lines)


def test_terminals_get_a_bar_a_study_that_fits() -> None:
    shown = show(100, terminal=True)
    for part in ("drop6-kl-pso", "drop6-kl-woa", "160/160", "best 0.5000 without 5,12,16, 25% hits"):
        assert part in shown


def test_tables_say_units_and_ratios() -> None:
    console = Console(file=io.StringIO(), width=120)
    dense, pruned = ({"bytes": 2**31, "kl": 0.0, "latency_ms": 20.0}, {"bytes": 2**30, "kl": 0.25, "latency_ms": 15.0})
    console.print(dense_against_pruned("title", dense, pruned, {"kl": 0.125}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("1,073,741,824 (1.00 GiB)", "0.500", "0.2500 ± 0.1250", "nats/token", "latency (ms)", "0.750"):
        assert part in shown
    assert gib(2**28) == "0.250 GiB"
    assert number("perplexity", 250164.853) == "2.502e+05"


def test_no_studies_is_said() -> None:
    assert study_list([]) == ["no studies yet: run prunesearch search"]
