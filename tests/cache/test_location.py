"""What ``--cache`` and ``--storage`` may say."""

import grp
import os
import pwd
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from prunesearch.cache import location
from prunesearch.cache.location import DEFAULT_FOLDER, CacheLocation, check_url
from prunesearch.errors import StorageError
from prunesearch.recovery.run_folder import held

URL = "postgresql+psycopg://me:s3,cret@host/team?host=h1:5432,h2:5432"


def test_a_comma_in_the_url_is_no_folder() -> None:
    assert CacheLocation.parse(URL) == CacheLocation(Path(DEFAULT_FOLDER), URL)
    assert CacheLocation.parse(f"a,b,{URL}") == CacheLocation(Path("a,b"), URL)
    assert str(CacheLocation.parse(f"mine,{URL}")) == (
        "mine,postgresql+psycopg://me:***@host/team?host=h1:5432,h2:5432"
    )
    for folder in ("a,b", "/a:b@c", "./me:x@host", "storage/cache"):
        assert CacheLocation.parse(folder) == CacheLocation(Path(folder))


@pytest.mark.parametrize(
    "text",
    [
        "me:s3cret@host/team",
        "postgresql:/me:s3cret@host/team",
        "postgresql//me:s3cret@host/team",
        "dir;postgresql://me:s3cret@host/team",
        "host=h password=s3cret",
        "postgresql://me:a@s3cret@host/team",
        "postgresql://me:s3cret@host:port/team",
        "postgresql://me:s3cret/team",
        "mysql://me:s3cret@host/team",
        "dir,mysql://me:s3cret@host/team",
    ],
)
def test_what_may_hold_a_password_is_refused_without_it(text: str) -> None:
    with pytest.raises(StorageError) as refused:
        CacheLocation.parse(text)
    assert "s3cret" not in str(refused.value)
    with pytest.raises(StorageError) as refused:
        check_url(text)
    assert "s3cret" not in str(refused.value)


def test_a_path_is_answered_with_its_url(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"'my/study.db' is not a URL: for that file write sqlite:///my/study.db"
    ):
        check_url("my/study.db")
    with pytest.raises(StorageError, match=f"write sqlite:///{tmp_path}/study.db"):
        check_url(str(tmp_path))


@pytest.mark.parametrize("option", ["--storage", "--cache"])
def test_a_database_where_others_may_write_is_refused(tmp_path: Path, option: str) -> None:
    folder, file = tmp_path / "f", tmp_path / "f" / "study.db"
    folder.mkdir(mode=0o755)
    file.touch(mode=0o644)
    url = f"sqlite:///{file}"
    check_url(url, option)
    folder.chmod(0o777)
    with pytest.raises(
        StorageError, match=f"{option}: the folder '.*/f' of the database can be written by others"
    ):
        check_url(url, option)
    (tmp_path / "link.db").symlink_to(file)
    with pytest.raises(StorageError, match="can be written by others"):
        check_url(f"sqlite:///{tmp_path}/link.db", option)
    check_url(f"sqlite:///{folder}/new/study.db", option)
    folder.chmod(0o1777)  # as /tmp: nobody can replace what is another's
    check_url(url, option)
    file.with_name("study.db-journal").touch()
    file.with_name("study.db-journal").chmod(0o666)
    with pytest.raises(
        StorageError, match=r"the database file '.*study\.db-journal' can be written by others"
    ):
        check_url(url, option)


def test_a_group_of_one_is_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    folder.chmod(0o775)
    user = pwd.getpwuid(os.getuid()).pw_name
    members: list[str] = []
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_name=user, gr_mem=members))
    check_url(f"sqlite:///{folder}/study.db")
    members.append("colleague")
    with pytest.raises(StorageError, match="can be written by others"):
        check_url(f"sqlite:///{folder}/study.db")


def test_a_database_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    info = os.stat_result((0o100644, 0, 0, 1, 54321, 54321, 0, 0, 0, 0))
    assert location._is_open(info)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert not location._is_open(info), (
        "what users made is the administrator's to use, as in containers"
    )


@pytest.mark.parametrize(
    "kind",
    "nfs nfs4 cifs smb3 9p lustre gpfs beegfs ceph fuse.ceph-fuse wekafs panfs virtiofs "
    "fuse.mountpoint-s3 "
    "fuse.blobfuse2 fuse.sshfs fuse.goofys fuse.whatever fuse".split(),
)
def test_network_file_systems_are_refused_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(location, "file_system", lambda path: kind)
    expected = re.escape(f"lies on a network file system ({kind}), where locks do not hold")
    for option in ("--storage", "--cache"):
        with pytest.raises(StorageError, match=expected):
            check_url(f"sqlite:///{tmp_path}/new/study.db", option)
    with pytest.raises(StorageError, match=expected):
        location.private_folder(tmp_path / "c")
    with pytest.raises(StorageError, match=expected), held(tmp_path / "work", {}):
        pass
    assert not (tmp_path / "new").exists()


def test_local_file_systems_are_taken() -> None:
    for (
        kind
    ) in "ext4 xfs btrfs zfs tmpfs overlay apfs fuseblk fuse.fuse-overlayfs fuse.mergerfs".split():
        assert not location.is_network(kind)


def test_a_sqlite_uri_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="write the path itself"):
        check_url(f"sqlite:///file:{tmp_path}/study.db?uri=true")
