"""What `report --score` measures of studies, and that it measures nothing twice."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import pytest

from prunesearch import events
from prunesearch.config.data import DataSection
from prunesearch.config.model import ModelSection
from prunesearch.config.objective import ObjectiveSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import DataError, InputError, StudyError, UnknownNameError
from prunesearch.execution.speed import measure_speeds
from prunesearch.models.loading import load
from prunesearch.objectives import greedy_texts
from prunesearch.pipeline import measuring, study_measuring
from prunesearch.pipeline.export_request import ExportRequest
from prunesearch.pipeline.held_out_data import HeldOutOptions
from prunesearch.pipeline.measuring import MeasuringRequest, measure
from prunesearch.pipeline.run import request_of, run_stages
from prunesearch.pipeline.state import EvaluationRequest, Request, StudySource
from prunesearch.recovery.compensation import CompensationSettings
from prunesearch.studies import measurements, selection
from prunesearch.studies.measurements import Measurement
from prunesearch.studies.selection import SelectionCriteria
from prunesearch.studies.study_data import read_study
from tests.support.texts import hellaswag_rows, write_lines

OPTIONS = RunOptions(trials=8, study="s", device="cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time and generate as little as possible."""
    monkeypatch.setattr(greedy_texts, "TOKENS", 4)
    monkeypatch.setattr("prunesearch.execution.speed.NEW_TOKENS", 3)
    monkeypatch.setattr(study_measuring, "measure_speeds", partial(measure_speeds, most=2))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, prose: Path) -> Path:
    """A folder with the storage of a search."""
    folder = tmp_path_factory.mktemp("searched")
    recipe = Recipe(
        model=str(tiny_folder), drop="2", calibration=str(prose), tokens=128, window=32,
        population=4,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_stages("search", Request(OPTIONS, (recipe,)))
    return folder / "storage"


@pytest.fixture
def study(searched: Path, here: Path) -> optuna.Study:
    """A copy of that search in an empty working directory."""
    shutil.copytree(searched, here / "storage")
    return optuna.load_study(study_name="s", storage=OPTIONS.storage)


TEXT = ObjectiveSection()
REQUEST = MeasuringRequest(("s",), OPTIONS, HeldOutOptions(tokens=256))


def read() -> tuple[Measurement, ...]:
    return measurements.read(OPTIONS.storage, "s")


def refuses(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make parts of the work fail, which must not be done again."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("this was done before")

    for name in names:
        monkeypatch.setattr(name, fail)


def test_candidates_and_checkpoints_are_measured_once(
    here: Path, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = StudySource("s", SelectionCriteria())
    run_stages("export", Request(OPTIONS, source=source, export=ExportRequest(here / "out")))
    # The study knows its checkpoint.
    (done,) = measure(REQUEST)
    found = read()
    assert done.measured + done.kept == len(found)
    # Each is measured on both data, by the searched metric and by the perplexity.
    roles = {measurement.role for measurement in found}
    names = ("influence", "magnitude", "taylor", "single", "last", "random")
    assert roles == {"dense", "winner", "exported", *(f"baseline:{name}" for name in names)}
    best = study.best_trial
    by_role: dict[tuple[str, str, str], Measurement] = {}
    for measurement in found:
        by_role[measurement.role, measurement.badge, measurement.metric] = measurement
    winner = by_role["winner", "searched on", "kl"]
    assert winner.candidate == best.user_attrs["dropped"]
    assert winner.value == pytest.approx(best.value, abs=1e-6)
    held_out = by_role["winner", "held out", "kl"]
    assert (held_out.data, held_out.n) == ("builtin-held-out, 256 tokens", 8)
    assert sum(held_out.per_document) / 8 == pytest.approx(held_out.value)
    assert held_out.is_comparable(by_role["dense", "held out", "kl"])
    assert len(held_out.texts) == 5
    assert held_out.prefill_ms and held_out.decode_ms and held_out.latency_runs == 2
    # A checkpoint is compared with the dense model that it was made from.
    exported = by_role["exported", "held out", "kl"]
    assert exported.value == pytest.approx(held_out.value, rel=1e-4)
    assert (exported.candidate, exported.params) == (winner.candidate, winner.params)
    # Five random candidates stand for random choice, and all baselines have the same size.
    randoms = [m for m in found if m.role == "baseline:random" and m.metric == "kl"]
    assert len({m.candidate for m in randoms}) == 5
    assert {m.params for m in found if m.role.startswith("baseline:")} == {winner.params}
    # The same command again loads nothing. With other held-out data it measures only these.
    with monkeypatch.context() as patch:
        refuses(
            patch, "prunesearch.pipeline.searched_model.load_for", f"{measuring.__name__}.load_for"
        )
        assert measure(REQUEST) == (replace(done, measured=0, kept=len(found)),)


@pytest.mark.usefixtures("study")
def test_studies_of_one_model_share_baselines_and_latencies(tiny_folder: Path, prose: Path) -> None:
    recipe = Recipe(
        model=str(tiny_folder), drop="2", calibration=str(prose), tokens=128, window=32,
        population=4, sampler="woa", seed=1,
    )  # fmt: skip
    run_stages("search", Request(OPTIONS.model_copy(update={"study": "t"}), (recipe,)))
    told: list[str] = []
    with events.subscribed(lambda event: told.append(getattr(event, "name", ""))):
        first, second = measure(replace(REQUEST, studies=("s", "t")))
    assert first.measured + first.kept == second.measured + second.kept
    # The baselines are ranked for the first study only. Of the second, only its winner may be new.
    assert told.count("ranking the layers one by one") == 1
    timed = [name for name in told if name.startswith("timing")]
    assert timed[1:] in ([], ["timing 2 models side by side"])
    speeds = {}
    for name in ("s", "t"):
        for measurement in measurements.read(OPTIONS.storage, name):
            if measurement.role == "baseline:last":
                speeds[name] = measurement.prefill_ms
    assert speeds["s"] == speeds["t"]


def test_what_a_compensation_measured_is_stored_in_its_study(
    here: Path, study: optuna.Study, prose: Path
) -> None:
    asked = Request(
        OPTIONS,
        source=StudySource("s", SelectionCriteria()),
        export=ExportRequest(here / "out"),
        compensation=CompensationSettings(
            calibration=str(prose), tokens=512, window=32, held_out_tokens=256
        ),
    )
    state = run_stages("compensate", asked)
    assert state.compensation is not None
    dense, compensated = [m for m in read() if m.metric == "cross_entropy"]
    assert (dense.role, compensated.role) == ("dense", "compensated")
    assert compensated.value == state.compensation.compensated["cross_entropy"]
    assert compensated.candidate == study.best_trial.user_attrs["dropped"]
    assert dense.data_content == compensated.data_content


def test_an_evaluation_of_a_checkpoint_is_stored_in_its_study(
    here: Path, study: optuna.Study, prose: Path, hellaswag_like: Path
) -> None:
    out = here / "out"
    source = StudySource("s", SelectionCriteria())
    run_stages("export", Request(OPTIONS, source=source, export=ExportRequest(out)))

    def evaluate(
        data: DataSection, objective: ObjectiveSection = TEXT
    ) -> set[tuple[str, str, str]]:
        before = len(read())
        asked = EvaluationRequest(ModelSection(path=str(out)), objective, data)
        run_stages("evaluate", Request(OPTIONS, evaluation=asked))
        return {(m.data, m.badge, m.metric) for m in read()[before:] if m.role == "exported"}

    # The search has seen the text, and nothing of the task.
    assert evaluate(DataSection(calibration=str(prose), tokens=64, window=16)) == {
        ("prose.txt, 64 tokens", "searched on", "cross_entropy"),
        ("prose.txt, 64 tokens", "searched on", "perplexity"),
    }
    builtin = DataSection(tokens=64, window=32)
    assert {badge for _, badge, _ in evaluate(builtin)} == {"held out"}
    copy = here / "copy.txt"
    shutil.copy(prose, copy)
    copied = DataSection(calibration=str(copy), tokens=64, window=32)
    # What is equal was measured before.
    assert {badge for _, badge, _ in evaluate(copied)} == {"searched on"}
    assert evaluate(copied) == set()
    task = DataSection(task_data=str(hellaswag_like), limit=4)
    found = evaluate(task, ObjectiveSection(name="task", task="hellaswag"))
    name = "hellaswag (documents.jsonl) docs 0-3"
    assert found == {(name, "held out", "acc"), (name, "held out", "acc_norm")}
    (scored,) = [m for m in read() if m.metric == "acc_norm"]
    assert (scored.n, scored.candidate) == (4, study.best_trial.user_attrs["dropped"])
    assert -sum(scored.per_document) / 4 == pytest.approx(scored.value)
    # A checkpoint without some of its layers is none of the study's.
    asked = EvaluationRequest(ModelSection(path=str(out)), TEXT, builtin, "1")
    before = read()
    run_stages("evaluate", Request(OPTIONS, evaluation=asked))
    assert read() == before


def test_a_run_stores_its_compensation_and_its_evaluation(
    here: Path, study: optuna.Study, prose: Path, hellaswag_like: Path
) -> None:
    stored = json.loads(study.user_attrs["recipe"])
    stored["recover"] = {
        "heal": None,
        "compensate": True,
        "evaluate": {"task": "hellaswag", "task_data": str(hellaswag_like), "limit": 4},
    }
    recipe = Recipe.of(stored)
    state = run_stages("run", request_of((recipe,), OPTIONS, here / "out"))
    assert state.recovery is not None
    assert state.recovery.compensation is not None
    found = {m.metric: m for m in read() if m.role == "compensated"}
    assert set(found) == {"cross_entropy", "acc", "acc_norm"}
    assert found["cross_entropy"].value == state.recovery.compensation.compensated["cross_entropy"]
    assert state.evaluation is not None
    assert found["acc_norm"].value == state.evaluation.metrics["acc_norm"]


@pytest.mark.usefixtures("study")
def test_what_was_stopped_goes_on_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(study_measuring, "measure_speeds", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(REQUEST)
    before = len(read())
    # All scores are in the cache by now.
    refuses(monkeypatch, "prunesearch.evaluation.local_scorer.LocalScorer.score")
    (done,) = measure(REQUEST)
    assert done.measured == len(read()) - before > 20


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_task_is_measured_on_the_documents_after_those_of_the_search(
    here: Path, tiny_folder: Path, hellaswag_like: Path
) -> None:
    values = {"model": str(tiny_folder), "drop": "..2", "task": "hellaswag", "limit": 4}
    recipe = Recipe(**values, task_data=str(hellaswag_like), population=4)
    run_stages("search", Request(OPTIONS, (recipe,)))
    (done,) = measure(MeasuringRequest(("s",), OPTIONS, HeldOutOptions(limit=6)))
    assert done.measured
    (held_out,) = [m for m in read() if (m.role, m.badge) == ("winner", "held out")]
    assert held_out.data == "hellaswag (documents.jsonl) docs 4-9"
    assert (held_out.metric, held_out.n) == ("acc_norm", 6)
    assert -sum(held_out.per_document) / 6 == pytest.approx(held_out.value)


def test_documents_that_confirmed_the_winner_are_not_held_out(
    here: Path, tiny_folder: Path
) -> None:
    rows = hellaswag_rows(200)
    documents = write_lines(here / "documents.jsonl", rows)
    values = {"model": str(tiny_folder), "drop": "2", "task": "hellaswag", "limit": 8}
    recipe = Recipe(**values, task_data=str(documents), population=4)
    options = OPTIONS.model_copy(update={"confirm": 0.9})
    run_stages("search", Request(options, (recipe,)))
    made = selection.recommendation_of(optuna.load_study(study_name="s", storage=options.storage))
    assert made is not None and made.confirmed
    first = 8 + made.further
    measure(MeasuringRequest(("s",), options, HeldOutOptions(limit=6)))
    (held_out,) = [m for m in read() if (m.role, m.badge) == ("winner", "held out")]
    assert held_out.data == f"hellaswag (documents.jsonl) docs {first}-{first + 5}"
    # They are refused if the user names them, too.
    seen = write_lines(here / "seen.jsonl", rows[8:first])
    with pytest.raises(InputError, match=r"of seen\.jsonl|seen\.jsonl\) docs"):
        measure(MeasuringRequest(("s",), options, HeldOutOptions(documents=str(seen))))


@pytest.mark.parametrize(
    ("search", "baseline"),
    [
        ({"drop": "pareto:2", "units": "sublayers"}, "last"),
        ({"space": "widths", "target": "20%", "align": 8, "order_tokens": 128}, "uniform"),
    ],
)
def test_pareto_studies_and_widths_are_measured(
    here: Path, tiny_folder: Path, prose: Path, search: dict[str, object], baseline: str
) -> None:
    text = {"calibration": str(prose), "tokens": 128, "window": 32}
    values: dict[str, object] = {"model": str(tiny_folder), "population": 4, **text, **search}
    recipe = Recipe(**values)
    (outcome,) = run_stages("search", Request(OPTIONS, (recipe,))).outcomes
    # A report shows the lineage of the candidate that the search named.
    winner = read_study(OPTIONS.storage, "s").winner()
    assert winner is not None
    assert winner.dropped == outcome.best.candidate.text
    measure(REQUEST)
    found = read()
    assert {"dense", "winner", f"baseline:{baseline}", "baseline:random"} <= {m.role for m in found}
    assert sum(measurement.role == "winner" for measurement in found) == 4


@pytest.mark.usefixtures("study")
def test_bad_input_is_refused_before_a_model_is_loaded(
    here: Path, tiny_folder: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuses(patch, "prunesearch.pipeline.searched_model.load_for")
        with pytest.raises(UnknownNameError, match="'t'"):
            measure(replace(REQUEST, studies=("t",)))
        for held_out, message in (
            (HeldOutOptions(text=str(prose)), "is what was searched on"),
            (HeldOutOptions(documents="d.jsonl"), "made on calibration text: leave it out"),
        ):
            with pytest.raises(InputError, match=message):
                measure(replace(REQUEST, held_out=held_out))
        with pytest.raises(InputError, match="not a checkpoint that prunesearch wrote"):
            measure(replace(REQUEST, exported=(tiny_folder,)))
        with pytest.raises(DataError, match=r"gone\.txt"):
            measure(replace(REQUEST, location={"calibration": "gone.txt"}))
    # The search has seen part of this text, under another name.
    copy = here / "copy.txt"
    shutil.copy(prose, copy)
    with pytest.raises(InputError, match=r"copy\.txt' is what was searched on"):
        measure(replace(REQUEST, held_out=HeldOutOptions(text=copy.name, tokens=32)))
    copy.write_text(prose.read_text()[:-1] + "!")
    with pytest.raises(InputError, match=r"4 of 8 sequences or requests of copy\.txt"):
        measure(replace(REQUEST, held_out=HeldOutOptions(text=str(copy), tokens=256)))
    # The text is not the one that was searched on.
    copy.write_text(prose.read_text()[100:])
    with pytest.raises(StudyError, match=r"copy\.txt' are not those that study 's' searched on"):
        measure(replace(REQUEST, location={"calibration": str(copy)}))
    # The model has moved, and another one is there.
    with pytest.raises(StudyError, match="is not the one that study 's' searched"):
        other = here / "other"
        _other_model(tiny_folder, other)
        measure(replace(REQUEST, location={"model": str(other)}))


def _other_model(folder: Path, out: Path) -> None:
    """Save a copy of a model with another weight."""
    shutil.copytree(folder, out)
    loaded = load(str(folder), device="cpu")
    loaded.model.model.norm.weight.data += 0.5
    loaded.model.save_pretrained(out)
