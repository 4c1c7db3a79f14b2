"""Where trackers write, and what is refused before anything is loaded."""

from pathlib import Path

import pytest

from prunesearch.config.run_options import RunOptions
from prunesearch.errors import InputError
from prunesearch.tracking.opening import check_tracking
from prunesearch.tracking.places import parse_places
from prunesearch.tracking.registry import REGISTRY
from tests.support.cli import refused


def where(track: str, to: str | None) -> list[tuple[str, bool]]:
    options = RunOptions.of({"track": track, "track_to": to})
    return [(place.where, place.remote) for place in parse_places(options.track, options.track_to)]


@pytest.mark.parametrize(
    ("track", "to", "found"),
    [
        ("mlflow", None, [("storage/tracking/mlflow", False)]),
        ("mlflow, wandb", "runs", [("runs/mlflow", False), ("runs/wandb", False)]),
        ("mlflow", "http://127.0.0.1:5000", [("http://127.0.0.1:5000", True)]),
        ("mlflow", "sqlite:///a/b.db", [("sqlite:///a/b.db", False)]),
        (
            "tensorboard,mlflow",
            "mlflow=https://h/x,tensorboard=tb",
            [("tb", False), ("https://h/x", True)],
        ),
        ("tensorboard", "a=b", [("a=b/tensorboard", False)]),
        ("trackio", "hf://spaces/me/runs", [("hf://spaces/me/runs", True)]),
    ],
)
def test_places_are_read(track: str, to: str | None, found: list[tuple[str, bool]]) -> None:
    assert where(track, to) == found


@pytest.mark.parametrize(
    ("track", "to", "message"),
    [
        ("mlfow", None, "unknown tracker 'mlfow': did you mean 'mlflow'?"),
        ("mlflow,mlflow", None, "`track` names mlflow twice"),
        ("tensorboard", "http://h", "tensorboard cannot write there: give a folder"),
        ("mlflow", "htp://h", "mlflow cannot write there: give a folder or http://…"),
        ("mlflow", "http://", "names no server"),
        ("mlflow", "http://h:99999", "names no server"),
        ("mlflow", "", "`track_to` is empty"),
        ("mlflow", "wandb=x", "`track_to` wandb=… goes with `track` wandb"),
        ("mlflow", "mlflow=", "give mlflow=PLACE once, and with a place"),
        ("mlflow", "http://me:secret@h", "has a secret in it"),
        ("mlflow", "http://secret@h", "has a secret in it"),
        ("trackio", "http://h/?write_token=secret", "has a secret in it"),
    ],
)
def test_other_places_are_refused(track: str, to: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        where(track, to)
    assert message in str(caught.value)
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_place_without_a_tracker_is_refused() -> None:
    with pytest.raises(InputError, match="`track_to` goes with `track`"):
        RunOptions(track_to="runs")


def test_a_folder_that_cannot_be_written_is_refused(here: Path) -> None:
    pytest.importorskip("tensorboard")
    (here / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to 'file/tensorboard'"):
        check_tracking(("tensorboard",), "file")
    with pytest.raises(InputError, match="`track_to` file is a file: give a folder"):
        check_tracking(("tensorboard",), "tensorboard=file")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    entry = REGISTRY.get("tensorboard")
    monkeypatch.setitem(vars(entry), "packages", ("no-such-package",))
    with pytest.raises(InputError, match=r"pip install 'prunesearch\[tensorboard\]'"):
        check_tracking(("tensorboard",), None)
    monkeypatch.setitem(vars(entry), "packages", ("pytest",))
    monkeypatch.setitem(vars(entry), "minimum", "1000")
    with pytest.raises(InputError, match="needs pytest 1000 or newer, but"):
        check_tracking(("tensorboard",), None)


def test_a_server_needs_what_it_needs_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(here))
    for name in ("wandb", "trackio", "mlflow"):
        monkeypatch.setitem(vars(REGISTRY.get(name)), "packages", ("pytest",))
        monkeypatch.setitem(vars(REGISTRY.get(name)), "minimum", "1")
    with pytest.raises(InputError, match="needs a key: set WANDB_API_KEY, or run: wandb login"):
        check_tracking(("wandb",), "https://api.wandb.ai")
    with pytest.raises(InputError, match="needs a token: set TRACKIO_WRITE_TOKEN"):
        check_tracking(("trackio",), "https://h")
    with pytest.raises(InputError, match="'/no/such' cannot be written"):
        check_tracking(("mlflow",), "sqlite:////no/such/file.db")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--track", "nothing"], "unknown tracker 'nothing'"),
        (["--track-to", "x"], "--track-to goes with --track"),
        (["--track", "tensorboard", "--track-to", "http://h"], "--track-to http://h: tensorboard"),
    ],
)
def test_the_command_line_refuses_them_in_one_line(
    options: list[str],
    message: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert message in refused(capsys, monkeypatch, "search", "no-such-model", "--drop", 2, *options)
