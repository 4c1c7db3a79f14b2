"""Where evaluations may be kept: folders that belong to their user alone, on file systems that SQLite can trust."""

import grp
import os
import pwd
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import sqlalchemy
from sqlalchemy.exc import ArgumentError

from prunesearch.errors import StorageError
from prunesearch.masking import masked_url

_MOUNTS = Path("/proc/self/mountinfo")
DEFAULT_FOLDER = "storage/cache"
_SCHEMES = ("postgresql", "sqlite")  # those that studies and leases can lock
# SQLite's locks, and the shared memory of its WAL, hold on one host only. Some of these are shared by virtual machines.
_NETWORK = frozenset(
    "9p acfs afs auristorfs beegfs beegfs_nodev ceph cephfs cifs coda davfs gfs gfs2 gfarm glusterfs gpfs hdfs ibrix "
    "juicefs lustre lustre_lite mmfs moosefs ncpfs nfs nfs3 nfs4 ocfs2 orangefs panfs prl_fs pvfs2 quobyte smb "
    "smb2 smb3 smbfs stornext cvfs vboxsf virtiofs vmhgfs weka wekafs".split()
)
# Of file systems in user space, which are mostly networks, only those that are known to be local are taken.
_LOCAL_FUSE = frozenset(
    "fuse.bindfs fuse.cryfs fuse.encfs fuse.exfat fuse.ext2 fuse.ext4 fuse.fuse-overlayfs fuse.fuse2fs fuse.gocryptfs "
    "fuse.mergerfs fuse.ntfs fuse.ntfs-3g fuse.securefs fuse.squashfuse fuse.unionfs fuse.unionfs-fuse fuse.zfs".split()
)


@dataclass(frozen=True)
class Places:
    """What ``--cache`` says.

    Attributes:
        folder: of the tier on this machine's disk.
        url: of the database that is shared with others; None without one.
    """

    folder: Path
    url: str | None = None

    def __str__(self) -> str:
        return str(self.folder) if self.url is None else f"{self.folder},{shown(self.url)}"

    @classmethod
    def parse(cls, text: str | Path) -> Self:
        """Read ``DIR``, ``URL`` (whose local tier is `DEFAULT_FOLDER`) or ``DIR,URL``.

        Everything after the first ``SCHEME://`` is the URL, so it may have commas.

        Raises:
            StorageError: the URL is none of a database that can be shared, or the text may be a URL that was mistyped:
                it must not become the name of a folder.
        """
        words = str(text)
        match = re.match(r"(?:(?P<folder>.*?),)??(?P<url>[A-Za-z][A-Za-z0-9+.-]*://.*)", words, re.DOTALL)
        if match is None:
            if _may_be_url(words):
                raise StorageError(
                    "--cache is neither a folder nor a URL (not shown, since it may hold a password): write DIR, "
                    "postgresql+psycopg://USER@HOST/DATABASE or DIR,URL; a folder of that name as ./DIR"
                )
            return cls(Path(words))
        check_url(match["url"], "--cache")
        return cls(Path(match["folder"] or DEFAULT_FOLDER), match["url"])


def _may_be_url(text: str) -> bool:
    """Whether a text that is no URL looks like one, or like the settings of a connection."""
    if text.startswith(("/", "./", "../", "~")) and not text.startswith("//") and "://" not in text:
        return "password=" in text
    return re.search(r"://|:.*@|:/|password=", text, re.DOTALL) is not None


def shown(url: str) -> str:
    """A database URL for people and logs: without its secrets."""
    return masked_url(url)


def check_url(url: str, option: str = "--storage") -> None:
    """Refuse a URL that no database could stand behind, before anything is written.

    Args:
        option: the command-line option it was given with, for the message.

    Raises:
        StorageError: not a URL, of an unknown kind of database, or a file that could not be written.
    """
    parsed = _parsed(url, option)
    if parsed.get_backend_name() not in _SCHEMES:
        raise StorageError(
            f"{option} {shown(url)!r}: unknown database {parsed.get_backend_name()!r}; use sqlite:///FILE or "
            "postgresql+psycopg://USER@HOST/DATABASE"
        )
    if parsed.get_backend_name() != "sqlite" and "@" in f"{parsed.host}{parsed.database}":
        raise StorageError(
            f"{option} {shown(url)!r} cannot be read in one way only: in the password write @ as %40, : as %3A, / as "
            "%2F, or keep the password in ~/.pgpass"
        )
    if file := sqlite_file(url):
        if str(file).startswith("file:"):
            raise StorageError(f"{option} {shown(url)!r}: write the path itself, as in sqlite:///storage/study.db")
        check_writable(file.parent)
        _check_database(file, option)


def _parsed(url: str, option: str) -> sqlalchemy.URL:
    """The parts of a URL.

    Raises:
        StorageError: it is none. The message holds it only where it cannot hold a secret.
    """
    try:
        return sqlalchemy.make_url(url)
    except ValueError:  # its port
        raise StorageError(
            f"{option} {shown(url)!r}: after the host's : comes a port, a number; in a password write @ as %40, "
            ": as %3A, / as %2F; several hosts as ?host=HOST1:PORT&host=HOST2:PORT"
        ) from None
    except ArgumentError:
        if _may_be_url(url):
            raise StorageError(
                f"{option} is not a URL (not shown, since it may hold a password): write sqlite:///FILE or "
                "postgresql+psycopg://USER@HOST/DATABASE"
            ) from None
        path = Path(url or "storage")
        file = path / "study.db" if path.is_dir() or not path.suffix else path
        raise StorageError(f"{option} {url!r} is not a URL: for that file write sqlite:///{file}") from None


def sqlite_file(url: str) -> Path | None:
    """The file behind a SQLite URL; None for servers and for databases in memory."""
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def private_folder(folder: Path, create: bool = True) -> None:
    """Make a folder for its user alone, or see that it is one.

    Raises:
        StorageError: it cannot be made, others own it or may write to it, or it lies on a network file system.
    """
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = folder.stat()
    except OSError as error:
        raise StorageError(f"cannot use cache folder {str(folder)!r}: {error.strerror}") from None
    if info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o022:
        raise StorageError(
            f"cache folder {str(folder)!r} can be written by others: "
            "chown it to yourself and chmod 700, or give another --cache"
        )
    refuse_network(
        folder,
        f"cache folder {str(folder)!r}",
        "give a folder on this machine's disk; share evaluations with --cache postgresql+psycopg://…",
    )


def _check_database(file: Path, option: str) -> None:
    """Refuse a SQLite file on a network file system, or one that others may write, or put another in its place.

    Raises:
        StorageError: it is one of these.
    """
    real = Path(os.path.realpath(file))  # Path.resolve fails on links that lead in a circle
    refuse_network(
        real, f"{option}: the database {str(file)!r}", "give a file on this machine's disk, or postgresql+psycopg://…"
    )
    folder = _info(real.parent)
    # In a folder like /tmp nobody can replace the files of others.
    if folder is not None and not folder.st_mode & stat.S_ISVTX and _is_open(folder):
        raise StorageError(
            f"{option}: the folder {str(real.parent)!r} of the database can be written by others: "
            "chmod go-w it, or give a new folder in it"
        )
    # SQLite obeys a journal that lies beside the file, whoever put it there.
    for suffix in ("", "-journal", "-wal", "-shm"):
        part = real.with_name(real.name + suffix)
        info = _info(part)
        if info is not None and _is_open(info):
            raise StorageError(
                f"{option}: the database file {str(part)!r} can be written by others: "
                "chown it to yourself and chmod go-w it, or give another"
            )


def _info(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_open(info: os.stat_result) -> bool:
    """Whether somebody else may write to a file or folder, the administrator apart."""
    me = os.getuid()
    # As root one works with what users have made, in containers above all.
    if info.st_uid not in (me, 0) and me != 0:
        return True
    mode = stat.S_IMODE(info.st_mode)
    return bool(mode & stat.S_IWOTH) or (bool(mode & stat.S_IWGRP) and not _is_own_group(info.st_gid, info.st_uid))


def _is_own_group(group: int, owner: int) -> bool:
    """Whether a group has one member: many systems give each user such a group, and files that it may write."""
    try:
        found, user = grp.getgrgid(group), pwd.getpwuid(owner)
    except KeyError:
        return False
    return found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}


def refuse_network(path: Path, what: str, remedy: str) -> None:
    """Refuse a place where locks do not hold between all that can reach it.

    Args:
        what: the place, for the message.

    Raises:
        StorageError: it lies on a network file system.
    """
    kind = file_system(path)
    if kind is not None and is_network(kind):
        raise StorageError(f"{what} lies on a network file system ({kind}), where locks do not hold: {remedy}")


def is_network(kind: str) -> bool:
    """Whether a type of file system is one of a network, or shared by virtual machines."""
    kind = kind.lower()
    if kind == "fuse" or kind.startswith("fuse."):
        return kind not in _LOCAL_FUSE
    return kind in _NETWORK


def file_system(path: Path) -> str | None:
    """The type of file system that a path lies on, as in ``/proc/mounts``; None where that is not known."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    resolved = Path(os.path.realpath(path))
    best: tuple[int, str | None] = (-1, None)
    for line in lines:
        fields, _, kind = line.partition(" - ")
        mount = fields.split()[4].encode().decode("unicode_escape")  # spaces are written \040
        if resolved.is_relative_to(mount) and len(mount) >= best[0]:  # of two at one place the later hides the earlier
            best = len(mount), kind.split()[0]
    return best[1]


def check_writable(folder: Path) -> None:
    """Refuse a folder that could not be made or written, and leave nothing behind.

    Raises:
        StorageError: nothing can be written to it, or to its nearest existing parent, or no file can have this name.
    """
    _check_name(folder)
    # os.path.exists, because Path.exists raises where a parent may not be entered.
    parent = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))  # noqa: PTH110
    try:
        tempfile.TemporaryDirectory(prefix=".prunesearch-", dir=parent).cleanup()
    except OSError as error:
        raise StorageError(f"cannot write to {str(folder)!r} ({error.strerror}): choose another folder") from None


def _check_name(path: Path) -> None:
    """Refuse a name that no file can have, or that not every library can write.

    Raises:
        StorageError: it is too long, a link leads back to itself, or it is not UTF-8.
    """
    try:
        str(path).encode()
        path.stat()
    except UnicodeEncodeError:
        raise StorageError(f"cannot write to {str(path)!r}: the name is not UTF-8, choose another") from None
    except (FileNotFoundError, NotADirectoryError):
        return  # the first is to be made, the second is refused where it is
    except (OSError, ValueError) as error:  # ValueError: a NUL
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"cannot write to {str(path)!r} ({reason}): choose another folder") from None
