"""The facts about the studies of a report, and its contents as a whole."""

from datetime import UTC, datetime

import yaml

from prunesearch.report.figures.figure import SEARCHED_ON, Cell, Figure, NumberTable
from prunesearch.report.figures.pooled import shortened
from prunesearch.report.figures.registry import REGISTRY
from prunesearch.report.figures.report_data import ReportData
from prunesearch.report.page.contents import ReportContents, StudyFacts, StudyRecipe
from prunesearch.report.page.sentences import notes_of, summary_of, with_error
from prunesearch.report.recommendation import decided
from prunesearch.report.removals import Removal
from prunesearch.report.tables import duration, number
from prunesearch.runtime.masking import command
from prunesearch.studies.search_cost import SearchCost
from prunesearch.studies.study_data import StudyData, TrialData
from prunesearch.units import noun_for, plural

_DIGITS = 12  # of a digest
_HEAD = (
    "study",
    "model",
    "removed",
    "sampler",
    "seed",
    "evaluations",
    "metric",
    "best",
    "standard error",
    "data",
    "what the best candidate drops",
)
_NAMED = 3  # studies in the title


def contents_of(report: ReportData, command_line: str) -> ReportContents:
    """Make the figures of a report and everything that is said besides.

    Args:
        report: data of the report.
        command_line: command that makes the report again.
    """
    figures: list[Figure] = []
    absent = []
    for entry in REGISTRY.entries():
        # A figure without data is named with the reason, so that nothing is missing silently.
        figure = entry.figure(report)
        if figure is None:
            absent.append((entry.title, entry.absent))
        else:
            figures.append(figure)
    return ReportContents(
        title=_title(report),
        made=f"{report.made:%Y-%m-%d %H:%M %Z}",
        command=command_line,
        summary=summary_of(report),
        notes=notes_of(report),
        studies=_studies(report),
        facts=tuple(StudyFacts(study.name, _facts(study)) for study in report.studies),
        recipes=tuple(_recipe(study) for study in report.studies),
        figures=tuple(figures),
        absent=tuple(absent),
    )


def _title(report: ReportData) -> str:
    names = [shortened(study.name) for study in report.studies]
    if len(names) > _NAMED:
        more = len(names) - _NAMED
        return f"Searches {', '.join(names[:_NAMED])} and {more} more"
    return f"{'Search' if len(names) == 1 else 'Searches'} {', '.join(names)}"


def _studies(report: ReportData) -> NumberTable:
    """Return one row for each study."""
    rows: list[tuple[Cell, ...]] = []
    for study in report.studies:
        best = study.best()
        assert best is not None, "studies without a finished trial are refused"
        dropped: str = Removal.of(best.dropped).brief
        # A front has several bests, so its row names its size.
        value: Cell = best.values[0]
        error = study.error_of(best)
        if study.is_pareto:
            value, error, dropped = f"front of {len(study.front())}", None, "see the front"
        rows.append(
            (
                study.name,
                study.model_name,
                study.recipe.search.removed,
                study.sampler,
                study.recipe.search.seed,
                _done(study),
                study.metric_label,
                value,
                error,
                SEARCHED_ON,
                dropped,
            )
        )
    return NumberTable(_HEAD, tuple(rows))


def _warm_start(study: StudyData) -> list[tuple[str, str]]:
    """Return where prior knowledge comes from; nothing if the study began without."""
    source = study.warm_start
    if source is None:
        return []
    trials = f"{source.trials} {noun_for(source.trials, 'trial')}"
    return [("warm start", f"{trials} of study {source.study}, not counted here")]


def _done(study: StudyData) -> str:
    """Return how many evaluations are done, of how many that were asked for."""
    done = len(study.evaluated())
    return f"{done:,}" if study.asked is None else f"{done:,} of {study.asked:,}"


def _facts(study: StudyData) -> tuple[tuple[str, str], ...]:
    # 1. What was searched, and with which settings.
    recipe, search = study.recipe.portable(), study.recipe.search
    data = recipe.objective.task or recipe.data.calibration
    rows = [
        ("model", study.model_name),
        ("content of the model", study.model_content[:_DIGITS]),
        ("data that candidates are scored on", data),
        ("content of the data", study.data_content[:_DIGITS]),
        ("metric", study.metric_label),
        ("blocks of the model", str(study.n_layers)),
        ("removed", search.removed),
        ("blocks that are kept", search.protect or "none is fixed"),
        ("sampler", f"{study.sampler}, encoding {search.encoding}"),
        ("seed", str(search.seed)),
        *_warm_start(study),
        ("evaluations", _counts(study)),
        ("time", _time(study)),
        ("cache", _cache(study)),
    ]
    best = study.best()
    # 2. What was found. A front has no best candidate.
    if best is not None and not study.is_pareto:
        rows += _best(study, best)
    for line in decided(study.recommendation, study.value_names[0]):
        what, _, how = line.partition(": ")
        rows.append((what, how) if how else ("naive best", line))
    for name, value in study.dense.items():
        rows.append((f"dense model, {name}", number(name, value)))
    # 3. Facts that are not known have no row.
    return tuple((name, value) for name, value in rows if value)


def _counts(study: StudyData) -> str:
    """Return the number of evaluations by state."""
    # The words are those that a reader knows, not the names of the states.
    words = {
        "complete": "finished",
        "pruned": "stopped early",
        "fail": "failed",
        "running": "under way",
        "waiting": "waiting",
    }
    parts = []
    for state, word in words.items():
        count = sum(trial.state == state for trial in study.trials)
        if count:
            parts.append(f"{count:,} {word}")
    return ", ".join(parts)


def _time(study: StudyData) -> str:
    """Return when a study began and ended, and the time of scoring."""
    started = [trial.started for trial in study.trials if trial.started is not None]
    finished = [trial.finished for trial in study.trials if trial.finished is not None]
    if not started or not finished:
        return ""
    seconds = duration(SearchCost.of(study).seconds)
    return f"{_at(min(started))} to {_at(max(finished))}; scoring took {seconds} in all"


def _at(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M %Z}"


def _cache(study: StudyData) -> str:
    """Return how many evaluations the cache answered, and the time that it saved."""
    cost = SearchCost.of(study)
    if not cost.hits + cost.computed:
        return ""
    saved = duration(cost.saved_seconds)
    return f"{plural(cost.hits, 'hit')}, {cost.computed:,} computed, {saved} saved"


def _best(study: StudyData, best: TrialData) -> list[tuple[str, str]]:
    """Return the facts about the best candidate."""
    rows = [
        ("best candidate", f"trial {best.number}"),
        ("what it drops", best.dropped),
        (
            f"its {study.metric_label} ({SEARCHED_ON})",
            with_error(best.values[0], study.error_of(best)),
        ),
    ]
    for name, title in (
        ("params", "its parameters"),
        ("bytes", "its size in bytes"),
        ("latency_ms", "its predicted latency (ms)"),
    ):
        value = best.figure(name)
        if value is not None:
            rows.append((title, number(name, value)))
    return rows


def _recipe(study: StudyData) -> StudyRecipe:
    """Return how to repeat a study on another machine."""
    recipe = study.recipe.portable()
    # The recipe holds what the user chose. All else has its default value.
    text = yaml.safe_dump(recipe.chosen(), sort_keys=False, allow_unicode=True)
    words = ["prunesearch", "run", "recipe.yaml", "--study", study.name]
    if study.asked is not None:
        words += ["--trials", str(study.asked)]
    return StudyRecipe(study.name, text, command([*words, "--out", "pruned"])[0])
