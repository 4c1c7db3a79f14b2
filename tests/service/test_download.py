"""Downloads of exports: resumed, checked, complete or absent, and never outside their folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from prunesearch.errors import DownloadError, InputError, NotFoundError, ServerError, StorageError
from prunesearch.service import client as client_module
from prunesearch.service import download
from prunesearch.service.client import Client
from prunesearch.service.credentials import ServerAddress
from prunesearch.service.download import fetch
from tests.support.job_server import (
    EXPORT,
    FILES,
    JOB_ID,
    TOKEN,
    Answer,
    JobServer,
    address,
    entry,
    job_server,
    offer,
    part_of,
)

BUSY = Answer.of_json({"title": "starting"}, 503)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.setattr(client_module, "_WAITS", (0.0, 0.0))
    monkeypatch.setattr(download, "_WAIT", 0.0)
    with job_server() as running:
        offer(running, FILES)
        yield running


@pytest.fixture
def client(double: JobServer) -> Iterator[Client]:
    with Client(ServerAddress.parse(double.url), TOKEN) as made:
        yield made


def contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def test_an_export_is_downloaded_and_put_in_place(client: Client, here: Path) -> None:
    found = fetch(client, JOB_ID, Path("out/pruned"))
    assert contents(here) == {f"out/pruned/{path}": content for path, content in FILES.items()}
    assert found.bytes == sum(map(len, FILES.values()))
    assert Path("out/pruned").stat().st_mode & 0o777 == 0o755


def test_a_lost_connection_goes_on_where_it_was(
    client: Client, double: JobServer, here: Path
) -> None:
    content = FILES["model.safetensors"]
    double.on(address("model.safetensors"), Answer(200, content[:999], cut=True), part_of(content))
    fetch(client, JOB_ID, Path("pruned"))
    assert contents(here / "pruned") == FILES
    ranges = [asked.headers.get("Range") for asked in double.asked if "safetensors" in asked.path]
    assert ranges == [None, "bytes=999-"]


def test_an_interrupted_download_goes_on_later(
    client: Client, double: JobServer, here: Path
) -> None:
    content = FILES["model.safetensors"]
    double.on(address("model.safetensors"), Answer(200, content[:999], cut=True), BUSY)
    with pytest.raises(ServerError):
        fetch(client, JOB_ID, Path("pruned"))
    assert not Path("pruned").exists()
    before = len(double.asked)
    offer(double, FILES)
    fetch(client, JOB_ID, Path("pruned"))
    assert contents(here) == {f"pruned/{path}": content for path, content in FILES.items()}
    asked = [(asked.path.rpartition("/")[2], asked.headers.get("Range")) for asked in double.asked]
    assert ("config.json", None) not in asked[before:]
    assert ("model.safetensors", "bytes=999-") in asked[before:]


def test_a_part_of_another_export_is_downloaded_anew(
    client: Client, double: JobServer, here: Path
) -> None:
    partial = here / f".pruned.{JOB_ID}.partial"
    partial.mkdir(mode=0o700)
    (partial / "model.safetensors").write_bytes(b"of another export")
    (partial / "old.txt").write_bytes(b"is not listed any more")
    fetch(client, JOB_ID, Path("pruned"))
    assert contents(here / "pruned") == FILES


def test_a_file_with_another_sha256_is_refused(
    client: Client, double: JobServer, here: Path
) -> None:
    double.on(address("config.json"), Answer(200, b'{"layers": 9}'))
    with pytest.raises(DownloadError, match=r"'config\.json' is not the file"):
        fetch(client, JOB_ID, Path("pruned"))
    assert not Path("pruned").exists()


def test_a_file_that_is_larger_than_announced_is_refused(
    client: Client, double: JobServer, here: Path
) -> None:
    double.on(address("config.json"), Answer(200, b"x" * 1000))
    with pytest.raises(DownloadError, match="larger than the server announced"):
        fetch(client, JOB_ID, Path("pruned"))
    assert not Path("pruned").exists()


@pytest.mark.parametrize(
    "path",
    [
        "../evil", "/etc/cron.d/evil", "a/../../evil", "a//b", "", ".", "a/.", "a\\..\\b", "C:evil",
        "a\nb", "\x1b[2J", "x" * 300, "a/" * 600 + "b",
    ],
)  # fmt: skip
def test_a_name_that_leaves_the_folder_is_refused(
    client: Client, double: JobServer, here: Path, path: str
) -> None:
    double.on(EXPORT, Answer.of_json({"files": [entry("config.json", b"{}"), entry(path, b"x")]}))
    with pytest.raises(DownloadError, match="nothing was written"):
        fetch(client, JOB_ID, Path("pruned"))
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "listed",
    [
        [],
        [entry("a", b""), entry("a", b"x")],
        [entry("a", b""), entry("a/b", b"x")],
        [entry("a", b"", bytes=-1)],
        [entry("a", b"", sha256="0" * 63)],
        [entry("a", b"", bytes="1")],
        [{"path": "a"}],
    ],
)
def test_a_damaged_list_is_refused(
    client: Client, double: JobServer, here: Path, listed: list[object]
) -> None:
    double.on(EXPORT, Answer.of_json({"files": listed}))
    with pytest.raises(DownloadError, match="nothing was written"):
        fetch(client, JOB_ID, Path("pruned"))
    assert list(here.iterdir()) == []


def test_an_export_for_which_the_disk_has_no_room_is_refused(
    client: Client, double: JobServer, here: Path
) -> None:
    double.on(EXPORT, Answer.of_json({"files": [entry("a", b"", bytes=2**60)]}))
    with pytest.raises(InputError, match="free space"):
        fetch(client, JOB_ID, Path("pruned"))
    assert not Path("pruned").exists()


def test_nothing_is_replaced(client: Client, double: JobServer, here: Path) -> None:
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full/mine").touch()
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    for taken in ("file", "full", "link"):
        with pytest.raises(StorageError, match="nothing is replaced"):
            fetch(client, JOB_ID, Path(taken))
    assert not double.asked
    fetch(client, JOB_ID, Path("empty"))
    assert contents(here / "empty") == FILES


def test_a_link_in_the_place_of_the_partial_folder_is_refused(client: Client, here: Path) -> None:
    Path("elsewhere").mkdir()
    Path(f".pruned.{JOB_ID}.partial").symlink_to("elsewhere")
    with pytest.raises(StorageError):
        fetch(client, JOB_ID, Path("pruned"))
    assert list(Path("elsewhere").iterdir()) == []


def test_a_job_without_an_export_says_so(client: Client, double: JobServer, here: Path) -> None:
    double.on(EXPORT, Answer.of_json({"detail": "no export yet"}, 404))
    with pytest.raises(NotFoundError, match="no export yet"):
        fetch(client, JOB_ID, Path("pruned"))
