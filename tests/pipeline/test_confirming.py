"""How the best trial of a noisy search is decided, stored and shown."""

import json
import shutil
from pathlib import Path

import optuna
import pytest

from prunesearch import events
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.pipeline import confirming, distinction
from prunesearch.pipeline.export_request import ExportRequest
from prunesearch.pipeline.outcome import SearchOutcome
from prunesearch.pipeline.run import run_stages
from prunesearch.pipeline.state import Request, StudySource
from prunesearch.studies import persistence, selection
from prunesearch.studies.recommendation import (
    RECOMMENDATION_ATTR,
    STANDARD_ERROR_ATTR,
    Recommendation,
)
from prunesearch.studies.selection import SelectionCriteria
from tests.support.cli import run, run_json
from tests.support.texts import hellaswag_rows, write_lines

OPTIONS = RunOptions(trials=8, study="s", device="cpu", confirm=0.9)
LIMIT = 8


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred documents, of which a search reads eight."""
    return write_lines(tmp_path_factory.mktemp("task") / "documents.jsonl", hellaswag_rows(200))


@pytest.fixture(scope="module")
def recipe(tiny_folder: Path, documents: Path) -> Recipe:
    return Recipe(
        model=str(tiny_folder), drop="2", task="hellaswag", task_data=str(documents), limit=LIMIT,
        population=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """The storage of a search that was confirmed."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        searched(recipe)
    return folder / "storage"


@pytest.fixture(autouse=True)
def _copied(stored: Path, here: Path) -> None:
    """Give each test a copy of that search."""
    shutil.copytree(stored, here / "storage")


def searched(recipe: Recipe, options: RunOptions = OPTIONS) -> SearchOutcome:
    return run_stages("search", Request(options, (recipe,))).outcomes[0]


def study_of() -> optuna.Study:
    return persistence.load(persistence.open_storage(OPTIONS.storage, create=False), "s")


def decided() -> Recommendation:
    made = selection.recommendation_of(study_of())
    assert made is not None
    return made


def test_the_best_candidates_are_scored_on_documents_after_those_of_the_search(
    recipe: Recipe,
) -> None:
    outcome = searched(recipe)
    made = decided()
    assert outcome.recommendation == made
    assert made.confirmed
    assert made.documents == LIMIT
    assert made.trials == 8
    assert made.budget == 9 * 8 * LIMIT
    assert 0 < made.spent <= made.budget
    # The outcome, the selection and the naive best.
    study = study_of()
    assert selection.choose(study, SelectionCriteria()).number == made.chosen
    assert outcome.best.candidate.text == made.best.dropped
    assert selection.best_trials(study, 1)[0].number == made.naive
    assert outcome.ranked[0].text == made.best.dropped
    assert made.naive_best.value == study.trials[made.naive].value
    # Values on further documents are accuracies.
    for one in made.finalists:
        assert one.fresh is not None
        assert one.low < one.fresh < one.high
        assert one.fresh * one.documents == pytest.approx(
            round(one.fresh * one.documents), abs=1e-3
        )


def test_limits_of_the_user_follow_the_decision() -> None:
    """Measured values decide only whether a trial is within the largest loss."""
    study, made = study_of(), decided()
    assert selection.choose(study, SelectionCriteria(bytes=10**12)).number == made.chosen
    assert selection.choose(study, SelectionCriteria(loss=10.0)).number == made.chosen
    best = selection.best_trials(study, 1)[0]
    least = selection.quality_lost(study, best, relative=False)
    chosen = selection.choose(study, SelectionCriteria(loss=least))
    assert chosen.values == best.values


def test_a_killed_confirmation_goes_on_from_the_cache(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decided()
    # 1. Kill it in the second round of a search that has none of its results.
    shutil.rmtree("storage")
    calls = 0
    score = confirming._Rounds._scored

    def killed(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return score(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(confirming._Rounds, "_scored", killed)
        with pytest.raises(KeyboardInterrupt):
            searched(recipe)
    assert selection.recommendation_of(study_of()) is None
    assert "is not decided yet" in " ".join(run("study", "show", "s").stdout.split())
    # 2. It goes on to the same end, and scores nothing again.
    assert searched(recipe).recommendation == whole
    study_of().set_user_attr(RECOMMENDATION_ATTR, "")
    monkeypatch.setattr("prunesearch.evaluation.local_scorer.LocalScorer.score", _refuse)
    assert searched(recipe).recommendation == whole
    # 3. What is decided is not decided again.
    monkeypatch.setattr(confirming._Decision, "made", _refuse)
    assert searched(recipe).recommendation == whole


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("nothing is left to do")


def test_further_trials_need_a_new_decision() -> None:
    study = study_of()
    study.add_trial(optuna.trial.create_trial(value=0.0))
    assert selection.recommendation_of(study) is None
    assert selection.choose(study, SelectionCriteria()) == selection.best_trials(study, 1)[0]


def test_a_task_without_further_documents_says_so(recipe: Recipe) -> None:
    options = OPTIONS.model_copy(update={"trials": 3, "study": "all"})
    made = searched(recipe.with_changes(limit=200), options).recommendation
    assert made is not None
    assert made.remark == "the task has only 0 further documents"
    assert not made.confirmed
    assert made.best.low < made.best.estimate < made.best.high


def test_without_a_share_nothing_is_confirmed_but_a_trial_is_recommended(recipe: Recipe) -> None:
    options = OPTIONS.model_copy(update={"confirm": 0.0, "study": "unconfirmed"})
    made = searched(recipe, options).recommendation
    assert made is not None
    assert (made.budget, made.spent, made.remark) == (0, 0, "")
    assert not made.confirmed


def test_a_smaller_share_does_not_forget_what_was_confirmed(recipe: Recipe) -> None:
    before = decided()
    again = searched(recipe, OPTIONS.model_copy(update={"confirm": 0.1})).recommendation
    assert before.confirmed and again == before


def test_a_share_that_is_too_small_says_what_is_needed(recipe: Recipe) -> None:
    options = OPTIONS.model_copy(update={"confirm": 0.1, "study": "few", "trials": 4})
    made = searched(recipe, options).recommendation
    assert made is not None and made.spent == 0
    # Two rounds with the four candidates of the search, eight documents each.
    assert made.remark.startswith("64 scored documents are needed and 4 were allowed")


def test_trials_of_a_task_have_a_standard_error() -> None:
    for trial in study_of().trials:
        assert trial.user_attrs[STANDARD_ERROR_ATTR] == trial.user_attrs["acc_norm_stderr"]


def test_losses_on_text_are_not_noisy(tiny_folder: Path, prose: Path) -> None:
    shutil.rmtree("storage")
    recipe = Recipe(
        model=str(tiny_folder), drop="2", calibration=str(prose), tokens=64, window=32,
        population=4,
    )  # fmt: skip
    told: list[events.Event] = []
    with events.subscribed(told.append):
        assert searched(recipe).recommendation is None
    # The options ask for a confirmation all the same.
    texts = [event.text for event in told if isinstance(event, events.Message)]
    assert any(text.startswith("`confirm` changes nothing here") for text in texts)
    study = study_of()
    assert RECOMMENDATION_ATTR not in study.user_attrs
    assert STANDARD_ERROR_ATTR not in study.trials[0].user_attrs


def test_weights_of_size_count_on_further_documents_too(recipe: Recipe) -> None:
    shutil.rmtree("storage")
    weighted = recipe.with_changes(drop="..3", score_weights="quality=2,size=0.5")
    made = searched(weighted).recommendation
    assert made is not None
    by_number = {trial.number: trial for trial in study_of().trials}
    for one in made.finalists:
        trial = by_number[one.trial]
        saved = one.value - 2 * trial.user_attrs["acc_norm"]
        assert one.fresh is not None
        # What is left is twice the accuracy on further documents, a share of them.
        right = (one.fresh - saved) / 2 * one.documents
        assert right == pytest.approx(round(right), abs=1e-3)
        assert trial.user_attrs[STANDARD_ERROR_ATTR] == pytest.approx(
            2 * trial.user_attrs["acc_norm_stderr"], rel=1e-3
        )


def test_an_export_takes_the_recommended_trial(here: Path) -> None:
    made = decided()
    other = next(one for one in made.finalists if one.trial != made.naive)
    study_of().set_user_attr(
        RECOMMENDATION_ATTR,
        json.dumps(
            json.loads(study_of().user_attrs[RECOMMENDATION_ATTR]) | {"chosen": other.trial}
        ),
    )
    request = Request(
        OPTIONS, source=StudySource("s", SelectionCriteria()), export=ExportRequest(here / "out")
    )
    state = run_stages("export", request)
    assert state.choice.candidate.text == other.dropped


def test_commands_and_reports_show_the_decision_and_the_naive_best(recipe: Recipe) -> None:
    """`study best`, `study show`, `search`, `compare` and the report, as people and scripts see it."""
    made = decided()
    confirmed = f"confirmed: trial {made.chosen}, "
    best = run("study", "best", "s")
    assert best.stdout.strip() == made.best.dropped
    assert confirmed in best.stderr
    assert f"{made.naive_best.value:.4f}" in best.stderr
    document = run_json("study", "best", "s")
    assert document["dropped"] == made.best.dropped
    assert document["recommendation"]["naive"] == made.naive
    assert run_json("study", "best", "s", "--max-size", "1GiB") == document
    shown = " ".join(run("study", "show", "s").stdout.split())
    assert confirmed in shown
    # The list of the best trials has what the confirmed one scored on further documents.
    assert f"{made.best.fresh:.4f} ± {made.best.fresh_stderr:.4f} ({made.best.documents})" in shown
    assert run_json("study", "show", "s")["best"][0]["number"] == made.chosen
    # A comparison counts what confirmation cost.
    (row,) = run_json("compare", "s")["studies"]
    assert row["winner"] == made.best.dropped
    assert row["confirming_evaluations"] == pytest.approx(made.spent / LIMIT)
    assert row["recommendation"]["finalists"][0]["high"] == made.finalists[0].high
    assert "naive best" in run("compare", "s").stdout
    # The report has both in its summary.
    run("report", "s", "--out", "page")
    for name in ("index.html", "report.md"):
        page = Path("page", name).read_text()
        assert confirmed in page
        assert f"{made.naive_best.value:.4f}" in page


def test_documents_that_cannot_tell_candidates_apart_are_named(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning comes once, as soon as there are enough trials."""
    monkeypatch.setattr(distinction, "COMPARED", 4)
    monkeypatch.setattr(confirming, "COMPARED", 4)
    told: list[str] = []

    def keep(event: events.Event) -> None:
        if isinstance(event, events.Message):
            told.append(event.text)

    with events.subscribed(keep):
        made = searched(recipe, OPTIONS.model_copy(update={"study": "t", "confirm": 0.0}))
    assert made.recommendation is not None
    assert made.recommendation.compared == 4
    # Random answers of a random model: nothing can be told.
    assert made.recommendation.indistinct
    assert sum("cannot tell the first 4 trials apart" in text for text in told) == 1
