"""Files that hold the secret of a token, for its user alone."""

import getpass
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prunesearch.cache.location import sqlite_file
from prunesearch.errors import ConflictError, InputError
from prunesearch.service.access import secrets
from prunesearch.service.access.access import Access

FIRST_TOKEN = "admin"
"""Name of the token that the first start of a service makes."""
_FILE = "admin.token"


@contextmanager
def secret_file(path: Path) -> Iterator[Callable[[str], object]]:
    """Make a file that only its owner can read. It appears at `path` if the block succeeds.

    Nothing is replaced.

    Yields:
        The function that writes a secret into it.

    Raises:
        InputError: the file cannot be written, or `path` exists. This is known before the block
            begins, unless another process is faster.
    """
    if path.exists() or path.is_symlink():
        raise InputError(f"{str(path)!r} exists, and nothing is replaced: name a new file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        # mkstemp makes the file with mode 0600.
        handle, name = tempfile.mkstemp(prefix=".token-", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot write the token to {str(path)!r}: {error.strerror}") from None
    scratch = Path(name)
    try:
        with os.fdopen(handle, "w") as file:
            yield lambda secret: file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(scratch)
    except FileExistsError:
        raise InputError(
            f"{str(path)!r} exists, and nothing is replaced: name a new file"
        ) from None
    except OSError as error:
        raise InputError(f"cannot write the token to {str(path)!r}: {error.strerror}") from None
    finally:
        scratch.unlink(missing_ok=True)


def token_path(storage: str) -> Path:
    """Return the file of the first token: beside a SQLite file, else in ``storage``."""
    file = sqlite_file(storage)
    return (file.parent if file is not None else Path("storage")) / _FILE


def make_first_token(access: Access, path: Path) -> bool:
    """Make a token of an admin if there is no token yet, and write it to a file.

    A file of another service at this place is kept under another name.

    Returns:
        Whether a token was made.

    Raises:
        InputError: the file cannot be written.
    """
    if access.tokens.any():
        return False
    # The file comes first: a token without a file could never be used.
    secret = secrets.new_token()
    _keep_earlier(path)
    with secret_file(path) as write:
        write(secret)
    try:
        access.tokens.create(FIRST_TOKEN, "admin", secret=secret)
    except ConflictError:
        return False  # another process was faster
    access.audit.record(account(), "create_token", FIRST_TOKEN, "first start", "this machine")
    return True


def holds_token(access: Access, path: Path) -> bool:
    """Return whether a file holds a token of this service.

    It may be of a service that kept its tokens in another database.
    """
    try:
        return access.tokens.user_of(path.read_text(encoding="utf-8").strip()) is not None
    except (OSError, UnicodeDecodeError):
        return False


def account() -> str:
    """Return the name of the account on this machine, for the log of changes."""
    try:
        return f"account {getpass.getuser()}"
    except (KeyError, OSError):
        return f"account {os.getuid()}"


def _keep_earlier(path: Path) -> None:
    """Rename a file that is in the way: ``admin.token`` becomes ``admin.token.1``."""
    if not path.exists():
        return
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    try:
        path.rename(path.with_name(f"{path.name}.{number}"))
    except OSError as error:
        raise InputError(f"cannot rename {str(path)!r}: {error.strerror}") from None
