"""Checks of the places where evaluations are kept.

A cache folder must belong to its user alone, and lie on a file system on which SQLite's locks work.
"""

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
from prunesearch.runtime.masking import masked_url

_MOUNTS = Path("/proc/self/mountinfo")
DEFAULT_FOLDER = "storage/cache"
_SCHEMES = ("postgresql", "sqlite")  # kinds of databases in which studies and leases can be locked
# SQLite's locks, and the shared memory of its WAL, work on one host only. Some of these file
# systems are shared by virtual machines.
_NETWORK = frozenset(
    "9p acfs afs auristorfs beegfs beegfs_nodev ceph cephfs cifs coda davfs gfs gfs2 gfarm "
    "glusterfs gpfs hdfs ibrix "
    "juicefs lustre lustre_lite mmfs moosefs ncpfs nfs nfs3 nfs4 ocfs2 orangefs panfs prl_fs pvfs2 "
    "quobyte smb "
    "smb2 smb3 smbfs stornext cvfs vboxsf virtiofs vmhgfs weka wekafs".split()
)
# File systems in user space are mostly network file systems. Only those that are known to be local
# are accepted.
_LOCAL_FUSE = frozenset(
    "fuse.bindfs fuse.cryfs fuse.encfs fuse.exfat fuse.ext2 fuse.ext4 fuse.fuse-overlayfs "
    "fuse.fuse2fs fuse.gocryptfs "
    "fuse.mergerfs fuse.ntfs fuse.ntfs-3g fuse.securefs fuse.squashfuse fuse.unionfs "
    "fuse.unionfs-fuse fuse.zfs".split()
)


@dataclass(frozen=True)
class CacheLocation:
    """The location of a cache, as given with `cache`.

    Attributes:
        folder: folder of the backend on this machine's disk.
        url: URL of the shared database; None without one.
    """

    folder: Path
    url: str | None = None

    def shown(self) -> "CacheLocation":
        """Return the location with an absolute folder and without the secrets of the URL."""
        url = None if self.url is None else shown(self.url)
        return CacheLocation(self.folder.absolute(), url)

    def __str__(self) -> str:
        if self.url is None:
            return str(self.folder)
        return f"{self.folder},{shown(self.url)}"

    @classmethod
    def parse(cls, text: str | Path) -> Self:
        """Parse ``DIR``, ``URL`` or ``DIR,URL``. For ``URL`` the local backend is in
        `DEFAULT_FOLDER`.

        The URL begins at the first ``SCHEME://``, so it may contain commas.

        Raises:
            StorageError: the URL is not one of a database that can be shared, or the text may be a
                mistyped URL, which must not become the name of a folder.
        """
        words = str(text)
        match = re.match(
            r"(?:(?P<folder>.*?),)??(?P<url>[A-Za-z][A-Za-z0-9+.-]*://.*)", words, re.DOTALL
        )
        if match is None:
            if _may_be_url(words):
                raise StorageError(
                    "`cache` is neither a folder nor a URL (not shown, since it may hold a "
                    "password): write DIR, "
                    "postgresql+psycopg://USER@HOST/DATABASE or DIR,URL; a folder of that name as "
                    "./DIR"
                )
            return cls(Path(words))
        check_url(match["url"], "`cache`")
        return cls(Path(match["folder"] or DEFAULT_FOLDER), match["url"])


def _may_be_url(text: str) -> bool:
    """Return whether a text may be a mistyped URL, or the settings of a connection."""
    # A path is taken as a path, unless it holds a password.
    if text.startswith(("/", "./", "../", "~")) and not text.startswith("//") and "://" not in text:
        return "password=" in text
    return re.search(r"://|:.*@|:/|password=", text, re.DOTALL) is not None


def shown(url: str) -> str:
    """Return a database URL without its secrets, for messages and logs."""
    return masked_url(url)


def check_url(url: str, option: str = "`storage`") -> None:
    """Refuse a URL that cannot be that of a database, before anything is written.

    Args:
        url: URL of the database.
        option: command-line option that the URL was given with, for the message.

    Raises:
        StorageError: the text is not a URL, the kind of database is unknown, or the file cannot be
            written.
    """
    # 1. The text must be a URL, of a known kind of database.
    parsed = _parsed(url, option)
    if parsed.get_backend_name() not in _SCHEMES:
        raise StorageError(
            f"{option} {shown(url)!r}: unknown database {parsed.get_backend_name()!r}; use "
            f"sqlite:///FILE or "
            "postgresql+psycopg://USER@HOST/DATABASE"
        )
    # 2. An @ in the host means that a password was not encoded.
    if parsed.get_backend_name() != "sqlite" and "@" in f"{parsed.host}{parsed.database}":
        raise StorageError(
            f"{option} {shown(url)!r} cannot be read in one way only: in the password write @ as "
            f"%40, : as %3A, / as "
            "%2F, or keep the password in ~/.pgpass"
        )
    # 3. A file must be safe to use.
    if file := sqlite_file(url):
        if str(file).startswith("file:"):
            raise StorageError(
                f"{option} {shown(url)!r}: write the path itself, as in sqlite:///storage/study.db"
            )
        check_writable(file.parent)
        _check_database(file, option)


def _parsed(url: str, option: str) -> sqlalchemy.URL:
    """Parse a URL.

    Raises:
        StorageError: the text is not a URL. The message shows the text only if it cannot hold a
            secret.
    """
    try:
        return sqlalchemy.make_url(url)
    except ValueError:  # the port is not a number
        raise StorageError(
            f"{option} {shown(url)!r}: after the host's : comes a port, a number; in a password "
            f"write @ as %40, "
            ": as %3A, / as %2F; several hosts as ?host=HOST1:PORT&host=HOST2:PORT"
        ) from None
    except ArgumentError:
        if _may_be_url(url):
            raise StorageError(
                f"{option} is not a URL (not shown, since it may hold a password): write "
                f"sqlite:///FILE or "
                "postgresql+psycopg://USER@HOST/DATABASE"
            ) from None
        # Suggest the URL for a path. A path without a suffix counts as a folder.
        file = Path(url or "storage")
        if file.is_dir() or not file.suffix:
            file = file / "study.db"
        raise StorageError(
            f"{option} {url!r} is not a URL: for that file write sqlite:///{file}"
        ) from None


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL. Return None for servers and for databases in memory."""
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def private_folder(folder: Path, create: bool = True) -> None:
    """Make a folder for its user alone, or check an existing one.

    Args:
        folder: the folder.
        create: whether to make the folder if it does not exist.

    Raises:
        StorageError: the folder cannot be made, others own it or can write to it, or it lies on a
            network file system.
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
            "chown it to yourself and chmod 700, or give another `cache`"
        )
    refuse_network(
        folder,
        f"cache folder {str(folder)!r}",
        "give a folder on this machine's disk; share evaluations with `cache` "
        "postgresql+psycopg://…",
    )


def _check_database(file: Path, option: str) -> None:
    """Refuse a SQLite file on a network file system, or one that others can write or replace.

    Raises:
        StorageError: the file is one of these.
    """
    # Path.resolve would fail on links that form a circle.
    real = Path(os.path.realpath(file))
    refuse_network(
        real,
        f"{option}: the database {str(file)!r}",
        "give a file on this machine's disk, or postgresql+psycopg://…",
    )
    folder = _info(real.parent)
    # In a folder with a sticky bit, such as /tmp, users cannot replace each other's files.
    if folder is not None and not folder.st_mode & stat.S_ISVTX and _is_open(folder):
        raise StorageError(
            f"{option}: the folder {str(real.parent)!r} of the database can be written by others: "
            "chmod go-w it, or give a new folder in it"
        )
    # SQLite applies a journal that lies next to the file, no matter which user wrote it.
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
    """Return whether another user, apart from root, can write to a file or folder."""
    me = os.getuid()
    # Root may use the files of other users, which is common in containers.
    if info.st_uid not in (me, 0) and me != 0:
        return True
    mode = stat.S_IMODE(info.st_mode)
    if mode & stat.S_IWOTH:
        return True
    return bool(mode & stat.S_IWGRP) and not _is_own_group(info.st_gid, info.st_uid)


def _is_own_group(group: int, owner: int) -> bool:
    """Return whether the owner is the only member of a group.

    Many systems give each user such a group, and make files that the group can write.
    """
    try:
        found, user = grp.getgrgid(group), pwd.getpwuid(owner)
    except KeyError:
        return False
    return found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}


def refuse_network(path: Path, what: str, remedy: str) -> None:
    """Refuse a path on a network file system, where locks do not work between hosts.

    Args:
        path: the path.
        what: description of the path, for the message.
        remedy: advice to the user, for the message.

    Raises:
        StorageError: the path lies on a network file system.
    """
    kind = file_system(path)
    if kind is not None and is_network(kind):
        raise StorageError(
            f"{what} lies on a network file system ({kind}), where locks do not hold: {remedy}"
        )


def is_network(kind: str) -> bool:
    """Return whether a type of file system is a network one, or is shared by virtual machines."""
    kind = kind.lower()
    if kind == "fuse" or kind.startswith("fuse."):
        return kind not in _LOCAL_FUSE
    return kind in _NETWORK


def file_system(path: Path) -> str | None:
    """Return the type of file system of a path, as in ``/proc/mounts``.

    Return None if it is unknown.
    """
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    resolved = Path(os.path.realpath(path))
    # The deepest mount point above the path counts.
    length = -1
    found: str | None = None
    for line in lines:
        fields, _, kind = line.partition(" - ")
        mount = fields.split()[4].encode().decode("unicode_escape")  # spaces are written \040
        # Of two mounts at one place, the later hides the earlier.
        if resolved.is_relative_to(mount) and len(mount) >= length:
            length, found = len(mount), kind.split()[0]
    return found


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written. No files stay on the disk.

    Raises:
        StorageError: the folder, or its nearest existing parent, cannot be written, or no file can
            have this name.
    """
    _check_name(folder)
    # Path.exists raises if a parent folder cannot be entered, so os.path.exists is used.
    folders = (folder, *folder.absolute().parents)
    parent = next(path for path in folders if os.path.exists(path))  # noqa: PTH110
    try:
        tempfile.TemporaryDirectory(prefix=".prunesearch-", dir=parent).cleanup()
    except OSError as error:
        raise StorageError(
            f"cannot write to {str(folder)!r} ({error.strerror}): choose another folder"
        ) from None


def _check_name(path: Path) -> None:
    """Refuse a name that no file can have, or that some library cannot write.

    Raises:
        StorageError: the name is too long or not UTF-8, or a link leads back to itself.
    """
    try:
        str(path).encode()
        path.stat()
    except UnicodeEncodeError:
        raise StorageError(
            f"cannot write to {str(path)!r}: the name is not UTF-8, choose another"
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        # A missing file will be made. A parent that is not a folder is refused later.
        return
    except (OSError, ValueError) as error:  # ValueError: the name holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"cannot write to {str(path)!r} ({reason}): choose another folder"
        ) from None
