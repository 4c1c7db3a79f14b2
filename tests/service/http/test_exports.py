"""Routes of exports: the list of files, ranges, tar files, and nothing outside of the folder."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.support.http_service import HttpService


@pytest.fixture
def job(service: HttpService, tmp_path: Path) -> str:
    """A job with an export of two files, and links that lead out of it."""
    made = service.submit()
    folder = tmp_path / "exports" / made
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "weights.bin").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "links").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    service.jobs.add_export(made, folder)
    return made


def test_files_are_listed_with_their_digests(service: HttpService, job: str) -> None:
    path = f"/v1/jobs/{job}/export"
    listed = service.client.get(path, headers=service.headers("viewer")).json()
    digest = hashlib.sha256(bytes(range(256)) * 10).hexdigest()
    assert [file["path"] for file in listed["files"]] == ["config.json", "sub/weights.bin"]
    assert listed["files"][1] == {"path": "sub/weights.bin", "bytes": 2560, "sha256": digest}
    assert listed["bytes"] == 2562
    other = service.submit()
    answer = service.client.get(f"/v1/jobs/{other}/export", headers=service.headers("viewer"))
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("header", "status", "first", "last"),
    [
        (None, 200, 0, 2559),
        ("bytes=0-0", 206, 0, 0),
        ("bytes=100-", 206, 100, 2559),
        ("bytes=-10", 206, 2550, 2559),
        ("bytes=2559-9999", 206, 2559, 2559),
        ("bytes=2560-", 416, 0, 0),
        ("bytes=5-4", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=0-1,3-4", 416, 0, 0),
        ("lines=1-2", 416, 0, 0),
    ],
)
def test_ranges_of_a_file(
    service: HttpService, job: str, header: str | None, status: int, first: int, last: int
) -> None:
    headers = service.headers("viewer")
    if header is not None:
        headers["Range"] = header
    path = f"/v1/jobs/{job}/export/files/sub/weights.bin"
    answer = service.client.get(path, headers=headers)
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["content-range"] == "bytes */2560"
        return
    assert answer.content == (bytes(range(256)) * 10)[first : last + 1]
    assert int(answer.headers["content-length"]) == last - first + 1
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {first}-{last}/2560"


@pytest.mark.parametrize(
    "path",
    [
        "link",
        "links/secret",
        "../../secret",
        "..%2f..%2fsecret",
        "%2e%2e/%2e%2e/secret",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "sub",
        "sub/",
        "pipe",
        "config.json%00",
        "x" * 900,
        "config.json/..",
        "./config.json%2f",
    ],
)
def test_nothing_outside_of_the_export_is_read(service: HttpService, job: str, path: str) -> None:
    url = f"http://127.0.0.1:8712/v1/jobs/{job}/export/files/{path}"
    answer = service.client.get(url, headers=service.headers("viewer"))
    assert answer.status_code in (400, 404)
    assert answer.json()["status"] == answer.status_code


def test_a_tar_file_has_the_files_and_no_links(service: HttpService, job: str) -> None:
    answer = service.client.get(f"/v1/jobs/{job}/export.tar", headers=service.headers("viewer"))
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as packed:
        members = packed.getmembers()
        assert [member.name for member in members] == [
            f"{job}/config.json",
            f"{job}/sub/weights.bin",
        ]
        assert all(member.isfile() for member in members)
        file = packed.extractfile(members[1])
        assert file is not None and file.read() == bytes(range(256)) * 10
