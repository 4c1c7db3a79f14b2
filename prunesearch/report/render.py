"""Output of the commands that run stages: the renderer of each kind of report."""

from prunesearch.report.compensation import compensated
from prunesearch.report.export import delivered
from prunesearch.report.healing import healed, recovered
from prunesearch.report.models import evaluation
from prunesearch.report.results import (
    CompensatedReport,
    DemoReport,
    EvaluationReport,
    HealReport,
    RecoveredReport,
    Report,
    RunReport,
    RunsReport,
    SearchesReport,
    SearchReport,
)
from prunesearch.report.search import (
    demo,
    grid,
    grid_and_exports,
    search,
    searched_and_exported,
)
from prunesearch.report.tables import Parts


def render(report: Report) -> Parts:
    """Show the result of a command."""
    match report:
        case SearchReport():
            return search(report)
        case SearchesReport():
            return grid(report)
        case RunReport():
            return searched_and_exported(report)
        case RunsReport():
            return grid_and_exports(report)
        case CompensatedReport():
            return compensated(report)
        case HealReport():
            return healed(report)
        case RecoveredReport():
            return recovered(report)
        case EvaluationReport():
            return evaluation(report)
        case DemoReport():
            return demo(report)
        case _:
            return delivered(report)
