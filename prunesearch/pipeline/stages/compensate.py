"""Stage `compensate`: change kept blocks so that they compensate what was removed.

An earlier result is found in the cache. The changed weights stay in the model until the command
ends.
"""

from dataclasses import replace

from prunesearch import events
from prunesearch.config.recovery import HealRecipe
from prunesearch.errors import ModelError, RunError
from prunesearch.pipeline.data_checks import check_text
from prunesearch.pipeline.stages.base import Stage
from prunesearch.pipeline.state import Request, State
from prunesearch.recovery.compensation import Compensation, compensate, fit_and_held_out
from prunesearch.recovery.finalists import compensation_text
from prunesearch.recovery.gaps import GapResult
from prunesearch.report.results import CompensationReport, GapReport, WidthReport
from prunesearch.runtime import stopping
from prunesearch.widths.layer_widths import LayerWidths, described


def compensate_candidate(state: State) -> State:
    """Compensate the selected candidate, if this is asked for and helps.

    Raises:
        RunError: the command would write nothing but a compensation, and it does not help.
    """
    done = _requested(state) if state.request.compensation is not None else _of_recovery(state)
    state.resources.compensation = done
    if done is None:
        return state
    report = compensation_report(done)
    state = replace(state, compensation=report, changed=(*state.changed, "compensated"))
    return state if state.recovery is None else state.with_recovery(compensation=report)


def compensation_report(done: Compensation) -> CompensationReport:
    """Return the report of a compensation."""
    return CompensationReport(
        dropped=done.candidate.text,
        gaps=[_gap_report(gap) for gap in done.gaps],
        dense=dict(done.dense),
        pruned=dict(done.pruned),
        compensated=dict(done.compensated),
        recovered=done.recovered,
        cached=done.cached,
        widths=_width_reports(done),
    )


def _width_reports(done: Compensation) -> list[WidthReport] | None:
    """Return the reports of the narrowed layers; None if no layer is narrowed."""
    candidate = done.candidate
    if not isinstance(candidate, LayerWidths):
        return None
    reports = []
    for width in done.widths:
        attention, mlp = width.attention, width.mlp
        reports.append(
            WidthReport(
                layer=width.block,
                channels=candidate.channels[width.block],
                groups=candidate.groups[width.block],
                method=width.method,
                attention_ridge=None if attention is None else attention.ridge,
                attention_error=None if attention is None else attention.errors,
                mlp_ridge=None if mlp is None else mlp.ridge,
                mlp_error=None if mlp is None else mlp.errors,
                seconds=round(width.seconds, 2),
            )
        )
    return reports


def _gap_report(done: GapResult) -> GapReport:
    """Return the report of one gap."""
    return GapReport(
        dropped=done.gap.text,
        method=done.method,
        alpha=done.alpha,
        ridge=done.ridge,
        loss_before=done.loss_before,
        loss_after=done.loss_after,
        seconds=round(done.seconds, 2),
    )


def _requested(state: State) -> Compensation:
    """Compensate as the command `compensate` asks for.

    Raises:
        RunError: the compensation does not help.
    """
    settings, loaded = state.request.compensation, state.resources.loaded
    assert settings is not None
    with stopping.interruptible():
        windows = fit_and_held_out(
            loaded.tokenizer,
            settings.calibration,
            settings.tokens,
            settings.window,
            settings.held_out,
            settings.held_out_tokens,
        )
    state.resources.held_out_BL = windows[1]
    candidate = state.choice.candidate
    done = compensate(loaded, candidate, *windows, settings.method, state.request.compensations)
    if not done.helped:
        raise RunError(
            f"compensation does not help on the held-out tokens (cross-entropy "
            f"{described(candidate.text)} is {done.pruned['cross_entropy']:.4f}): nothing was "
            f"written; fit it to more `tokens` of `calibration`"
        )
    return done


def _of_recovery(state: State) -> Compensation | None:
    """Compensate before a healing. Without help, the candidate can still be healed.

    Raises:
        RunError: nothing is healed, and the compensation does not help.
    """
    recovery, candidate = state.request.recovery, state.choice.candidate
    assert recovery is not None
    events.tell(events.Message(f"compensating the model {described(candidate.text)}"))
    folder, loaded = state.request.compensations, state.resources.loaded
    done = None
    try:
        windows = compensation_text(loaded, recovery.heal or HealRecipe())
        state.resources.held_out_BL = windows[1]
        done = compensate(loaded, candidate, *windows, folder=folder)
    except ModelError as error:
        events.tell(events.Message(f"not compensated: {error}"))
    if done is not None and not done.helped:
        events.tell(events.Message("compensation does not help on the held-out tokens"))
        done = None
    if done is None and recovery.heal is None:
        raise RunError(
            f"nothing was written: the model {described(candidate.text)} was to be compensated, "
            "and that does not help"
        )
    return done


def check(request: Request) -> None:
    """Refuse texts that cannot be read, before the model is loaded."""
    if request.compensation is not None:
        check_text(request.compensation.calibration)
        if request.compensation.held_out is not None:
            check_text(request.compensation.held_out)


def wanted(state: State) -> bool:
    """Return whether the candidate is to be compensated."""
    recovery = state.request.recovery
    asked = state.request.compensation is not None or (recovery is not None and recovery.compensate)
    return asked and state.earlier is None


COMPENSATE = Stage("compensate", compensate_candidate, check, wanted)
