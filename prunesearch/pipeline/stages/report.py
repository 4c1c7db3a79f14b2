"""Stage `report`: put the results of the stages together, for JSON documents and tables."""

from dataclasses import replace

from prunesearch.export.results import Exported
from prunesearch.pipeline.outcome import SearchOutcome, search_report
from prunesearch.pipeline.stages.base import Stage
from prunesearch.pipeline.state import State
from prunesearch.report.results import (
    CompensatedReport,
    HealReport,
    RecoveredReport,
    Report,
    RunReport,
    RunsReport,
    SearchesReport,
    SearchReport,
)


def report(state: State) -> State:
    """Make the report of the stages that ran."""
    return replace(state, report=_report(state))


def _report(state: State) -> Report:
    searches = [_search(state, outcome) for outcome in state.outcomes]
    # After a recovery.
    if state.request.recovery is not None:
        heal = _heal(state)
        if not searches:
            return heal
        return RecoveredReport(searches[0], heal, state.evaluation)
    # After searches, with or without exports.
    exports = [made for made in state.exported if isinstance(made, Exported)]
    if searches and exports:
        if len(searches) == 1:
            return RunReport(searches[0], exports[0])
        return RunsReport(searches, exports)
    if searches:
        return searches[0] if len(searches) == 1 else SearchesReport(searches)
    # After a compensation, an export or an evaluation alone.
    if state.compensation is not None:
        return CompensatedReport(state.compensation, exports[0])
    if state.exported:
        return state.exported[0]
    assert state.evaluation is not None
    return state.evaluation


def _search(state: State, outcome: SearchOutcome) -> SearchReport:
    return search_report(outcome, state.request.options.storage)


def _heal(state: State) -> HealReport:
    """Return the report of a recovery, of this command or of an earlier, equal one."""
    out, found = str(state.choice.out), state.earlier or state.recovery
    assert found is not None
    exports = [made for made in state.exported if isinstance(made, Exported)]
    made = exports[0] if exports else None
    return HealReport(state.model_name, out, found, made)


REPORT = Stage("report", report)
