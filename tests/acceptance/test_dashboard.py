"""The study in optuna-dashboard, seen through a real browser."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.pipeline.searches import run_search
from prunesearch.pipeline.session import open_session
from prunesearch.report.progress import ProgressView

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture
def dashboard(tiny_folder: Path, prose: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a dashboard on a finished study."""
    recipe = Recipe(
        model=str(tiny_folder),
        drop="2",
        calibration=str(prose),
        tokens=256,
        window=64,
        population=4,
        sampler="pso",
    )
    options = RunOptions(
        storage=f"sqlite:///{tmp_path}/study.db", cache=str(tmp_path / "cache"), trials=12
    )
    with ProgressView(), open_session(recipe, options) as session:
        run_search(session, recipe, options)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["optuna-dashboard", options.storage, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / command[0]), *command[1:]], stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            try:
                urllib.request.urlopen(f"{address}/api/studies", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def page(address: str, profile: Path, picture: Path | None = None) -> str:
    """The text of a page after its scripts have run."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [
        f"--user-data-dir={profile}",
        "--window-size=1500,1900",
        "--virtual-time-budget=15000",
    ]
    command += [f"--screenshot={picture}"] if picture else ["--dump-dom"]
    done = subprocess.run(
        [*command, address], capture_output=True, text=True, timeout=90, check=True
    )
    return done.stdout


def test_best_value_parameters_and_attributes_are_readable(dashboard: str, tmp_path: Path) -> None:
    with urllib.request.urlopen(f"{dashboard}/api/studies/1", timeout=60) as answer:
        study = json.load(answer)
    best = min(study["trials"], key=lambda trial: trial["values"][0])
    value = f"{best['values'][0]:.4f}"[:5]
    attributes = {a["key"]: a["value"] for a in best["user_attrs"]}
    shown = page(
        f"{dashboard}/dashboard/studies/1/trials?numbers={best['number']}", tmp_path / "profile"
    )
    assert value in shown
    assert "drop_00" in shown
    for name in ("dropped", "kl", "perplexity", "cache", "bytes", "latency_ms"):
        assert name in shown
    assert attributes["dropped"].strip('"') in shown
    overview = page(f"{dashboard}/dashboard/studies/1", tmp_path / "profile")
    assert value in overview
    assert "tiny-llama-drop2-kl-pso" in overview
