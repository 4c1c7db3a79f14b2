"""Fixtures: tiny random models built in milliseconds, and SmolLM2 for the acceptance tests."""

import gc
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import optuna
import pytest
import torch
from filelock import FileLock

from prunesearch.errors import DownloadError
from prunesearch.models.demo_weights import obtain
from prunesearch.models.loading import LoadedModel, load
from tests.support import postgres
from tests.support.models import byte_tokenizer, tiny
from tests.support.paths import REPOSITORY
from tests.support.texts import hellaswag_rows, write_lines
from tests.support.texts import prose as prose_of

torch.set_num_threads(
    1
)  # on matrices of 32 columns a second thread is waited for longer than it computes
optuna.logging.set_verbosity(optuna.logging.ERROR)


def pytest_configure() -> None:
    """Take back what a shell hands down to its children: ``nohup`` and job schedulers ignore
    signals. Give the children one thread each.
    """
    os.umask(0o022)
    # How long an example takes says more about the machine than about the code.
    hypothesis.settings.register_profile(
        "tests",
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("tests")
    # The processes that tests start compute with tiny models too: see `set_num_threads` above.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is missing, tests run one by one
def pytest_xdist_auto_num_workers() -> int | None:
    """Count the processes that test side by side: one for each core, and one more.

    Many tests wait for other processes, so the cores would rest. Each process may load the demo
    model, so more than eight would need much memory. xdist's own variable sets another number.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return min(len(os.sched_getaffinity(0)) + 1, 8)


FIRST = (
    "acceptance/test_smollm2.py",
    "evaluation/test_ray_pool.py",
    "acceptance/test_service_in_browser.py",
    "acceptance/test_language_model.py",
    "studies/test_reconnection.py",
    "cache/test_durability.py",
    "service/test_job_process.py",
    "service/test_runner.py",
    "evaluation/test_worker_pool.py",
    "cli/test_searches.py",
)
"""The files that take longest. A file that began last would keep one process busy alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    for name in FIRST:
        if not (REPOSITORY / "tests" / name).is_file():
            raise pytest.UsageError(f"FIRST in tests/conftest.py names {name}, which is not there")
    order = {str(REPOSITORY / "tests" / name): place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(str(item.path), len(order)))


@pytest.fixture(scope="session", autouse=True)
def _modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the code of checkpoints that tests trust in one folder of their own;
    it cannot change within a process.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_figures() -> Iterator[None]:
    """Draw no figures for dashboards after each search: the tests of them draw their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunesearch.report.dashboard.KEY_FIGURES", ())
        yield


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Give the process of the tests its signal handlers back after each test.

    A command that is run here leaves its handlers, as the installed one does at its end. A process
    that is forked later would inherit them, and might never end.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Keep what is there at the beginning of a module out of later collections of garbage.

    Commands collect when they release a model. The objects of the libraries are millions, and with
    them each collection took as long as a small search.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny model with its tokenizer and return the folder."""

    def make(architecture: str = "llama", name: str = "tiny", **changes: Any) -> Path:  # noqa: ANN401
        folder = tmp_path / name
        tiny(architecture, **changes).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk, shared by tests that do not change it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def loaded(tiny_folder: Path) -> LoadedModel:
    """The tiny Llama, loaded afresh."""
    return load(str(tiny_folder), device="cpu")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a folder into an empty Hugging Face cache, without network, as a commit of a hub id;
    gives its snapshot.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(folder: Path, name: str, commit: str, *branches: str) -> Path:
        home = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = home / "snapshots" / commit
        shutil.copytree(folder, snapshot)
        (home / "refs").mkdir(exist_ok=True)
        for branch in branches:
            (home / "refs" / branch).write_text(commit)
        return snapshot

    return put


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of a few thousand bytes."""
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(prose_of(120))
    return path


@pytest.fixture(scope="session")
def hellaswag_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents with HellaSwag's fields."""
    return write_lines(tmp_path_factory.mktemp("task") / "documents.jsonl", hellaswag_rows(12))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, downloaded once into the repository's ``storage/models``."""
    models = REPOSITORY / "storage" / "models"
    models.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(models / ".tests.lock"):  # processes that test side by side download it once
            return obtain(models)
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A throw-away server on loopback."""
    if not postgres.AVAILABLE:
        pytest.skip("PostgreSQL's server is not installed")
    with postgres.Server() as running:
        yield running


@pytest.fixture
def database(server: postgres.Server, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    return server.database(f"d{abs(hash(request.node.nodeid))}")


@pytest.fixture(scope="session")
def bouncer(server: postgres.Server) -> Iterator[postgres.Bouncer]:
    """PgBouncer in transaction mode before the server."""
    if postgres.BOUNCER is None:
        pytest.skip("PgBouncer is not installed")
    with postgres.Bouncer(server) as running:
        yield running


@pytest.fixture
def pool(bouncer: postgres.Bouncer, database: str) -> str:
    """The URL of an empty database through PgBouncer."""
    return bouncer.url(database)
