"""Where the client finds its server and its token, and which server may see the token.

A token is never an argument of a command, because other users of the machine can read command
lines. It comes from the environment, or from a file that others may not read. It is not sent over
a connection that others can read.
"""

import ipaddress
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from prunesearch.errors import InputError

SERVER_VARIABLE = "PRUNESEARCH_SERVER"
"""Environment variable that ``--server`` takes its default from."""
TOKEN_VARIABLE = "PRUNESEARCH_TOKEN"
"""Environment variable with the token."""
DEFAULT_SERVER = "http://127.0.0.1:8712"
ADMIN_TOKEN = Path("storage") / "admin.token"
"""Token file that a server writes at its first start, in the folder where it was started."""
_LONGEST = 4096  # bytes of a token file that are read


@dataclass(frozen=True)
class ServerAddress:
    """Address of a server.

    Attributes:
        url: URL of the server, without a slash at the end.
        host: name or address of its host.
        encrypted: whether the connection is encrypted (https).
    """

    url: str
    host: str
    encrypted: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the address of a server.

        Raises:
            InputError: the text is not the URL of a server.
        """
        try:
            parts = urlsplit(text.strip())
            host, port = parts.hostname, parts.port
        except ValueError:
            raise _not_a_server(repr(text)) from None
        if "@" in parts.netloc:
            # The value is not repeated: it may contain a password.
            raise InputError(
                f"`server` contains a user or a password: leave them out, and give the token in "
                f"{TOKEN_VARIABLE} or in `token_file`"
            )
        if parts.scheme not in ("http", "https") or not host or port == 0:
            raise _not_a_server(repr(text))
        if parts.query or parts.fragment or not re.fullmatch(r"[!-~]*", text.strip()):
            raise _not_a_server(repr(text.partition("?")[0]))
        return cls(text.strip().rstrip("/"), host, parts.scheme == "https")

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, so that nobody else can read the connection."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _not_a_server(text: str) -> InputError:
    return InputError(f"`server` {text}: give the URL of a server, such as {DEFAULT_SERVER}")


def token_for(server: ServerAddress, token_file: Path | None, *, insecure_http: bool) -> str:
    """Return the token for a server.

    It comes from `token_file`, from the variable ``PRUNESEARCH_TOKEN``, from
    ``~/.config/prunesearch/token``, or from the file that a server of this folder wrote. The last
    one is for a server on this machine only.

    Args:
        server: address of the server.
        token_file: file that the user named, or None.
        insecure_http: allow that the token is sent without encryption to another machine.

    Raises:
        InputError: there is no token, the file may be read by others, or the connection may.
    """
    if not server.encrypted and not server.is_loopback and not insecure_http:
        raise InputError(
            f"the token would cross the network to {server.host} in readable form: use "
            f"https://{server.host}, an ssh tunnel to 127.0.0.1, or `insecure_http` if the network "
            f"is safe"
        )
    if token_file is not None:
        return _token_in(token_file)
    if given := os.environ.get(TOKEN_VARIABLE, "").strip():
        return _checked(given, f"the variable {TOKEN_VARIABLE}")
    default = _default_file()
    if default.exists():
        return _token_in(default)
    if server.is_loopback and ADMIN_TOKEN.exists():
        return _token_in(ADMIN_TOKEN)
    raise InputError(
        f"no token for {server.url}: set {TOKEN_VARIABLE}, or write the token to {default} and run "
        f"chmod 600 on it; `prunesearch token create NAME --role submitter` makes one on the server"
    )


def _default_file() -> Path:
    """Return the path of the user's token file."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "prunesearch" / "token"


def _token_in(path: Path) -> str:
    """Read a token from a file, or from a pipe.

    Raises:
        InputError: the file cannot be read, may be read by others, or holds no token.
    """
    try:
        with path.open("rb") as file:
            # The open file is checked, not its name, which may be replaced meanwhile.
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise InputError(
                    f"others may read the token file {str(path)!r}: run chmod 600 on it, and "
                    f"replace the token if others use this machine"
                )
            content = file.read(_LONGEST)
    except OSError as error:
        raise InputError(
            f"cannot read the token file {str(path)!r}: {error.strerror or error}"
        ) from None
    return _checked(content.decode("utf-8", "replace").strip(), f"the token file {str(path)!r}")


def _checked(token: str, place: str) -> str:
    """Return a token that can stand in a header. The message does not repeat it.

    Raises:
        InputError: it cannot.
    """
    if not re.fullmatch(r"[!-~]{1,512}", token):
        raise InputError(f"{place} does not hold a token: it is one word that begins with ps_")
    return token
