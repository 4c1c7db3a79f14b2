"""Measurements whose values can be compared: of one model, budget, data and metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunesearch.report.figures.measured_names import latest
from prunesearch.studies.compared_study import DEFAULT_SETTINGS, SAME_SIZE, metric_settings
from prunesearch.studies.measurements import Measurement, of_role
from prunesearch.studies.study_data import StudyData

_Measured = Mapping[str, Sequence[Measurement]]


@dataclass(frozen=True)
class MeasuredTogether:
    """Measurements that can be compared, each with its study.

    Attributes:
        facts: model, budget and settings of the metric, in words.
        pairs: studies and measurements, in the order of lists.
    """

    facts: tuple[str, str, str]
    pairs: tuple[tuple[StudyData, Measurement], ...]

    @property
    def first(self) -> Measurement:
        """A measurement, for what all of them have in common."""
        return self.pairs[0][1]

    def title(self, others: Sequence["MeasuredTogether"]) -> str:
        """Return the data, and the facts that tell them from others on the same data.

        Args:
            others: all measurements of the report.
        """
        first, parts = self.first, [self.first.data]
        for place, fact in enumerate(self.facts):
            for other in others:
                same_data = other.first.data_content == first.data_content
                if same_data and other.first.metric == first.metric and other.facts[place] != fact:
                    # A metric with its default settings has an empty fact.
                    parts.append(fact or DEFAULT_SETTINGS)
                    break
        return ", ".join(parts)


def measured_together(
    measurements: _Measured, studies: Sequence[StudyData]
) -> list[MeasuredTogether]:
    """Return the measurements that can be compared.

    Baselines remove as much as the winner of their study, so they stand beside winners of the same
    budget only. The dense model stands beside each.

    Args:
        measurements: measurements by the name of the study.
        studies: studies of the report.
    """
    found = []
    for same in _by_budget(studies, measurements):
        # Metrics with different settings may have one name.
        by_data: dict[tuple[str, str, str], list[tuple[StudyData, Measurement]]] = {}
        for study, made in latest(measurements, same):
            key = made.data_content, made.metric, metric_settings(study, made.metric)
            by_data.setdefault(key, []).append((study, made))
        budget = _budget(same[0], measurements)
        for (_, _, settings), pairs in by_data.items():
            facts = same[0].model_name, budget, settings
            found.append(MeasuredTogether(facts, tuple(pairs)))
    return found


def _by_budget(studies: Sequence[StudyData], measurements: _Measured) -> list[list[StudyData]]:
    """Put the studies of one model and one budget together, in the order of the studies."""
    groups: list[list[StudyData]] = []
    for study in studies:
        fitting = [group for group in groups if _is_same(group[0], study, measurements)]
        if fitting:
            fitting[0].append(study)
        else:
            groups.append([study])
    return groups


def _is_same(first: StudyData, second: StudyData, measurements: _Measured) -> bool:
    """Return whether two studies have the same model and the same budget.

    Budgets are equal if the same fixed amount was asked for, or if the winners keep equally many
    parameters, within half a percent.
    """
    if first.model_content != second.model_content:
        return False
    same_words = first.recipe.search.removed == second.recipe.search.removed
    if same_words and _is_fixed(first):
        return True
    sizes = _params(first, measurements), _params(second, measurements)
    if sizes[0] is None or sizes[1] is None:
        return same_words
    return abs(sizes[0] - sizes[1]) <= SAME_SIZE * max(sizes[0], sizes[1])


def _is_fixed(study: StudyData) -> bool:
    """Return whether all candidates of a study remove the same amount."""
    return not study.is_pareto and not study.recipe.search.drop.startswith("..")


def _params(study: StudyData, measurements: _Measured) -> float | None:
    """Return the parameters that the winner of a study keeps; None if they are not known."""
    for winner in of_role(measurements.get(study.name, ()), "winner"):
        if winner.params is not None:
            return winner.params
    best = study.best()
    # Without a measurement, it is not known which trial of a front is the winner.
    return None if study.is_pareto or best is None else best.figure("params")


def _budget(study: StudyData, measurements: _Measured) -> str:
    """Return the budget of a study in words."""
    removed = f"removing {study.recipe.search.removed}"
    params = _params(study, measurements)
    # Where the amount is not fixed, winners may differ in it.
    if _is_fixed(study) or params is None:
        return removed
    return f"{removed}, {params:,.0f} parameters kept"
