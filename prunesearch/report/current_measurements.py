"""Leaves out measurements of candidates that further trials have superseded.

A study keeps all measurements. After a resumed search, its best candidate may be another one.
"""

from collections.abc import Sequence

from prunesearch.studies.dropped_units import dropped_shares
from prunesearch.studies.measurements import BASELINE, Measurement, of_role
from prunesearch.studies.study_data import StudyData, TrialData

_WINNER, _NAIVE_BEST = "winner", "naive-best"


def current(study: StudyData, measured: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Return the measurements that hold for the present trials of a study, in the same order.

    The winner is the candidate of the best trial. In a Pareto study it is the member of the present
    front that was measured last, because a later round of measurements decides the winner again.

    Args:
        study: the study, with a finished trial.
        measured: all its measurements.
    """
    winner = _latest(measured, _WINNER, _winners(study))
    naive_best = _latest(measured, _NAIVE_BEST, _naive_bests(study))
    kept = []
    for made in measured:
        if made.role == _WINNER:
            holds = made.candidate == winner
        elif made.role == _NAIVE_BEST:
            holds = made.candidate == naive_best
        else:
            holds = winner is None or _has_budget_of(winner, made, study)
        if holds:
            kept.append(made)
    return tuple(kept)


def _latest(measured: Sequence[Measurement], role: str, candidates: set[str]) -> str | None:
    """Return which of some candidates was measured last in a role; None if none of them was."""
    found = [made for made in of_role(measured, role) if made.candidate in candidates]
    return max(found, key=lambda made: made.made).candidate if found else None


def _winners(study: StudyData) -> set[str]:
    """Return the candidates that may be the winner: that of the best trial, or the front."""
    if study.is_pareto:
        return {trial.dropped for trial in study.front()}
    best = study.best()
    return set() if best is None else {best.dropped}


def _naive_bests(study: StudyData) -> set[str]:
    """Return the candidates with the best metric, except the winner.

    Size or latency may count too, so they need not have the best value. There are several if their
    metrics are equal in the digits that a trial stores.
    """
    if study.is_pareto:
        return set()
    losses = []
    for trial in study.complete():
        loss = _metric_loss(study, trial)
        if loss is not None:
            losses.append((loss, trial.dropped))
    least = min(losses, default=None)
    if least is None:
        return set()
    return {dropped for loss, dropped in losses if loss == least[0]} - _winners(study)


def _metric_loss(study: StudyData, trial: TrialData) -> float | None:
    """Return a trial's metric with the sign that makes less better; None if it is not known."""
    value = trial.figure(study.metric)
    if value is None:
        return None
    return -value if study.more_is_better else value


def _has_budget_of(winner: str, made: Measurement, study: StudyData) -> bool:
    """Return whether a baseline drops as many units as the winner. True for other roles.

    A winner that drops more or fewer units than the one before has baselines of its own.
    """
    # Widths meet one budget in many ways.
    if not made.role.startswith(BASELINE) or study.recipe.search.narrows:
        return True
    shares_CU = dropped_shares([winner, made.candidate], study.units, study.unit_sizes)
    wanted, own = shares_CU.sum(axis=1)
    return bool(wanted == own)
