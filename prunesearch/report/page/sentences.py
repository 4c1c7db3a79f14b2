"""The summary of a report in plain sentences, and what its reader must know first."""

import math
from collections.abc import Sequence
from shlex import quote

import numpy as np

from prunesearch.analysis.intervals import standard_error
from prunesearch.report.figures import compared
from prunesearch.report.figures.compared import ModelComparison
from prunesearch.report.figures.figure import HELD_OUT, SEARCHED_ON
from prunesearch.report.figures.groups import ComparableStudies, StudyGroup, comparable
from prunesearch.report.figures.pooled import short_names
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.page.contents import Sentence
from prunesearch.report.recommendation import decided
from prunesearch.report.removals import Removal
from prunesearch.report.tables import label
from prunesearch.studies.measurements import Measurement, of_role
from prunesearch.studies.study_data import StudyData, TrialData
from prunesearch.units import noun_for

_LEVEL = 0.05  # of a test that shows a difference
_MOST = 2  # comparable studies that are all described on held-out data
_EQUAL = 0.95  # share of the most evaluations from which numbers of them count as equal
_FEWEST = 6  # pairs whose signs can be flipped in more than 1 / _LEVEL ways on either side


def summary_of(report: ReportData) -> tuple[Sentence, ...]:
    """Return what was found, in sentences."""
    found: list[Sentence] = []
    named: list[StudyData] = []
    for together in comparable(report.studies):
        # Of many studies only the best one is described on held-out data. The comparison has all.
        named += together.studies if len(together.studies) <= _MOST else [_best(together)[0]]
        # A front is described by its ends, because none of its candidates is the best.
        if together.first.is_pareto:
            found += [_front(study) for study in together.studies]
            continue
        # Several studies are ranked before the best candidate of all is named.
        if len(together.studies) > 1:
            found.append(_ranked(together))
            found += _unequal(together)
            found += _algorithms(together)
        found += _winner(together)
    for study in named:
        found += _decided(study)
        found += _held_out(report.measurements.get(study.name, ()), study)
    names = short_names(report.studies)
    for comparison in compared.measured(report.measurements, report.studies, names):
        if comparison.badge == HELD_OUT:
            found += _concluded(comparison, f"On {comparison.title}")
    return tuple(found)


def notes_of(report: ReportData) -> tuple[str, ...]:
    """Return what a reader must know before the numbers."""
    notes = []
    for study in report.studies:
        notes += _unfinished(study)
    if not _has_held_out(report) and not any(map(_is_confirmed, report.studies)):
        notes.append(
            "No number of this report is held out. The best of many scores is better than the "
            "truth, because it was chosen for its score. The option --score of prunesearch report "
            "measures the best candidates on data that the search never saw."
        )
    return tuple(notes)


def _has_held_out(report: ReportData) -> bool:
    for measured in report.measurements.values():
        if any(measurement.badge == HELD_OUT for measurement in measured):
            return True
    return False


def _is_confirmed(study: StudyData) -> bool:
    """Return whether the best trial was scored on documents that the search had not read."""
    return study.recommendation is not None and study.recommendation.confirmed


def _unfinished(study: StudyData) -> list[str]:
    """Return the notes about a study that is not finished, or whose trials failed."""
    states = [trial.state for trial in study.trials]
    # Partial subsets and lost races count as done: they used an evaluation.
    done, running, failed = len(study.evaluated()), states.count("running"), states.count("fail")
    notes = []
    # A search does not make up for failed evaluations, so they count among those it was asked for.
    if study.asked is not None and done + failed < study.asked:
        be = "is" if 1 in (done, study.asked) else "are"
        text = (
            f"Study {study.name} is half-finished: {done} of {study.asked} "
            f"{noun_for(study.asked, 'evaluation')} {be} done"
        )
        if running:
            left = noun_for(running, "is under way or was left", "are under way or were left")
            text += f" and {running} {left} by a search that was stopped"
        notes.append(f"{text}. It goes on with: prunesearch study resume {quote(study.name)}")
    if failed:
        words = noun_for(
            failed, "evaluation failed. It is left out.", "evaluations failed. They are left out."
        )
        notes.append(f"In study {study.name} {failed} {words}")
    return notes


def _winner(together: ComparableStudies) -> list[Sentence]:
    """Return the sentences about the best candidate of comparable studies."""
    found = []
    # 1. Say what it drops, and compare it with the dense model.
    study, trial = _best(together)
    text = (
        f"{_beginning(together)}the best candidate {Removal.of(trial.dropped).sentence} "
        f"(study {study.name}, trial {trial.number}). Its {study.metric_label} is "
        f"{with_error(trial.values[0], study.error_of(trial))}"
    )
    dense = study.dense.get(study.value_names[0])
    if dense is not None:
        text += f"; that of the dense model is {dense:.4g}"
    found.append(Sentence(f"{text}.", SEARCHED_ON))
    # 2. Add what it saves, if the latencies of the blocks are known.
    latency = trial.figure("latency_ms")
    if study.latency is not None and latency is not None:
        share = latency / study.latency.dense_ms
        found.append(
            Sentence(
                f"A prefill is predicted to take {latency:.4g} ms instead of "
                f"{study.latency.dense_ms:.4g} ms ({share:.0%})."
            )
        )
    return found


def _best(together: ComparableStudies) -> tuple[StudyData, TrialData]:
    """Return the best candidate of comparable studies, and its study.

    Of studies with two values it is the one with the best first value.
    """
    best: tuple[StudyData, TrialData] | None = None
    for study in together.studies:
        trial = study.front()[0] if study.is_pareto else study.best()
        if trial is not None and (best is None or study.losses(trial) < best[0].losses(best[1])):
            best = study, trial
    assert best is not None, "studies without a finished trial are refused"
    return best


def _beginning(together: ComparableStudies) -> str:
    """Return the beginning of a sentence about comparable studies."""
    if not together.title:
        return "Of all candidates, "
    return f"{together.title[0].upper()}{together.title[1:]}: "


def _ranked(together: ComparableStudies) -> Sentence:
    """Return the sentence that names the algorithms in the order of their bests."""
    means = []
    for group in together.groups:
        mean, error = mean_best(group)
        # Sort by loss, so that the best algorithm comes first for any metric.
        loss = -mean if together.first.more_is_better else mean
        count = len(group.studies)
        studies = f"{count} {noun_for(count, 'study', 'studies')}"
        means.append((loss, f"{group.label} {with_error(mean, error)} ({studies})"))
    means.sort()
    named = ", ".join(text for _, text in means)
    return Sentence(
        f"{_beginning(together)}the mean of the best {together.first.metric_label} of each study, "
        f"best first: {named}.",
        SEARCHED_ON,
    )


def _unequal(together: ComparableStudies) -> list[Sentence]:
    """Return the sentence about searches that had different numbers of evaluations."""
    counts = [len(study.evaluated()) for study in together.studies]
    least, most = min(counts), max(counts)
    if least >= _EQUAL * most:
        return []
    text = (
        f"These searches had {least:,} to {most:,} evaluations. More evaluations find better "
        "candidates, whatever the algorithm."
    )
    return [Sentence(text, SEARCHED_ON)]


def _algorithms(together: ComparableStudies) -> list[Sentence]:
    """Return what may be concluded about the algorithms of comparable studies."""
    if len(together.groups) < 2:
        return []
    if all(len(group.studies) == 1 for group in together.groups):
        return [
            Sentence(
                "This order does not show which algorithm is better: there is one study of each. "
                "Search with other seeds (--seed) to see it."
            )
        ]
    found = compared.searched(together, short_names(together.studies))
    return _concluded(found, f"{_beginning(together)}over the same seeds")


def _concluded(comparison: ModelComparison, beginning: str) -> list[Sentence]:
    """Return what the tests of a comparison show about the best winner; empty without tests."""
    # 1. Sort the entries by what their tests show. A positive difference is a worse entry.
    worse, equal, better = [], [], []
    for row in comparison.rows:
        if row.test is None or row.p is None:
            continue
        if row.p >= _LEVEL:
            equal.append(row.entry.name)
        elif row.test.difference > 0:
            worse.append(row.entry.name)
        else:
            better.append(row.entry.name)
    # 2. Say it. Few pairs cannot show a difference, however large it is.
    pairs = min((row.test.n for row in comparison.rows if row.test is not None), default=0)
    if 0 < pairs < _FEWEST and not worse and not better:
        values = noun_for(pairs, "value of each is", "values of each are")
        text = f"{beginning}, {pairs} {values} too few for a test to show a difference"
        return [Sentence(f"{text}: at least {_FEWEST} are needed.", comparison.badge)]
    parts = []
    if worse:
        parts.append(f"{comparison.reference} is better than {', '.join(worse)}")
    if better:
        parts.append(f"{comparison.reference} is worse than {', '.join(better)}")
    if equal:
        parts.append(f"no difference of {comparison.reference} from {', '.join(equal)} is shown")
    if not parts:
        return []
    text = f"{beginning}, {'; '.join(parts)}"
    return [Sentence(f"{text} (paired tests, corrected p < {_LEVEL}).", comparison.badge)]


def mean_best(group: StudyGroup) -> tuple[float, float | None]:
    """Return the mean of the best values of a group's studies, and its standard error.

    The error is None for one study.
    """
    values = []
    for study in group.studies:
        trial = study.best()
        if trial is not None:
            values.append(trial.values[0])
    mean = float(np.mean(values))
    return mean, standard_error(values) if len(values) > 1 else None


def _front(study: StudyData) -> Sentence:
    """Return the sentence about the front of a study with two values."""
    front = study.front()
    first, last = front[0], front[-1]
    if len(front) == 1:
        return Sentence(
            f"The front of study {study.name} has 1 candidate. Its {study.metric_label} is "
            f"{first.values[0]:.4g}.",
            SEARCHED_ON,
        )
    return Sentence(
        f"The front of study {study.name} has {len(front)} candidates. Their {study.metric_label} "
        f"goes from {first.values[0]:.4g} to {last.values[0]:.4g}.",
        SEARCHED_ON,
    )


def _decided(study: StudyData) -> list[Sentence]:
    """Return how the best candidate of a noisy study was decided."""
    made = study.recommendation
    found: list[Sentence] = []
    for line in decided(made, study.value_names[0]):
        badge = SEARCHED_ON
        if _is_confirmed(study) and not found:
            badge = HELD_OUT
        found.append(Sentence(f"Study {study.name}, {line}.", badge))
    return found


def _held_out(measured: Sequence[Measurement], study: StudyData) -> list[Sentence]:
    """Return the sentences about what was measured of a study's winner on other data."""
    found = []
    # The dense model is compared on the same data, by the same metric.
    dense = {}
    for measurement in of_role(measured, "dense"):
        dense[measurement.data_content, measurement.metric] = measurement
    for winner in of_role(measured, "winner"):
        if winner.badge != HELD_OUT:
            continue
        # A metric without a value for each item has no number of them.
        size = f" (n = {winner.n:,})" if winner.n else ""
        text = (
            f"On {winner.data}{size} the winner of study {study.name} has "
            f"{label(winner.metric)} {with_error(winner.value, winner.stderr)}"
        )
        before = dense.get((winner.data_content, winner.metric))
        if before is not None:
            text += f"; the dense model has {with_error(before.value, before.stderr)}"
        found.append(Sentence(f"{text}.", HELD_OUT))
    return found


def with_error(value: float, error: float | None) -> str:
    """Return a number with its standard error, if it has one."""
    if not error or not math.isfinite(error):
        return f"{value:.4g}"
    return f"{value:.4g} ± {error:.2g}"
