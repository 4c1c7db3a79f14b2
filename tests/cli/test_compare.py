"""The command `compare`, and the losses that a search leaves for it."""

from pathlib import Path

import pytest

from prunesearch.cache import maintenance
from prunesearch.cache.location import CacheLocation
from prunesearch.studies import measurements
from prunesearch.studies.document_losses import cached_losses
from prunesearch.studies.study_data import read_study
from tests.support.cli import FAST, refused, run, run_json


def test_searches_are_compared_without_a_model(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The losses that a search stores are those that the cache holds, and both can be tested."""
    url, cache = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "cache"
    where = ["--storage", url, "--cache", cache]
    for name, drop in (("<b>a</b>", "0-2"), ("[b]", "3-5")):
        run(
            "search", tiny_folder, "--drop", 1, "--protect", drop, "--trials", 2,
            "--sampler", "random", "--study", name, *FAST, *where,
        )  # fmt: skip
    # 1. The search has stored the losses of its winner and of the dense model.
    study = read_study(url, "<b>a</b>")
    best = study.best()
    assert best is not None
    dense, winner = measurements.read(url, "<b>a</b>")
    assert (dense.role, dense.candidate, dense.n) == ("dense", "none", 4)
    assert set(dense.per_document) == {0.0} and dense.badge == "searched on"
    assert (winner.role, winner.candidate) == ("winner", best.dropped)
    assert winner.data_content == study.data_content and winner.params == best.figure("params")
    assert sum(winner.per_document) / 4 == pytest.approx(best.figure("kl"), abs=1e-6)
    # 2. The cache holds the same.
    with maintenance.reading(CacheLocation(cache)) as backends:
        cached = cached_losses(study, best, backends)
    assert cached is not None
    assert sorted(cached.losses) == pytest.approx(sorted(winner.per_document))
    # 3. Without the model, the winners are compared on these documents.
    found = run_json("compare", "<b>a</b>", "[b]", *where)
    first, second = found["studies"]
    assert first["winner"] != second["winner"] and first["evaluations"] == 2
    (test,) = found["tests"]
    assert (test["documents"], test["source"], test["badge"]) == (4, "measured", "searched on")
    difference = abs(first["best"] - second["best"])
    assert abs(test["difference"]) == pytest.approx(difference, abs=1e-5)
    shown = run("compare", "<b>a</b>", "[b]", *where).stdout
    assert "<b>a</b>" in shown and "[b]" in shown and "best after 2 evaluations" in shown
    # 4. What cannot be compared is refused in one line.
    line = refused(capsys, monkeypatch, "compare", "<b>a<b>", *where)
    assert line == "error: unknown study '<b>a<b>': did you mean '<b>a</b>'?"
    line = refused(capsys, monkeypatch, "compare", "[b]", "[b]", *where)
    assert line == "error: study '[b]' is named twice: name each study once"
