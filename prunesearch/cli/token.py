"""The commands `token …` on the tokens of a service. They start without torch."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunesearch.cli.help import Group, Words
from prunesearch.cli.options.places import JSON, STORAGE
from prunesearch.errors import StorageError
from prunesearch.report.emit import emit
from prunesearch.runtime.masking import printable
from prunesearch.service.access.roles import ROLES, Role
from prunesearch.units import parse_duration

if TYPE_CHECKING:
    from prunesearch.service.access.access import Access

_NAME = click.argument("name")


@click.group(cls=Group)
def token() -> None:
    """Make, revoke and list the tokens of a service."""


@token.command("create")
@_NAME
@click.option(
    "--role",
    type=Words(ROLES),
    required=True,
    help="viewer: read; submitter: and submit jobs; admin: and everything else.",
)
@click.option("--expires", help="When it expires: 30d, 12h.  [default: never]")
@click.option(
    "--secret-file", "path", help="Write the secret to this new file, which only you can read."
)
@STORAGE
@JSON
def token_create(
    name: str, role: Role, expires: str | None, path: str | None, storage: str, as_json: bool
) -> None:
    """Make a token, and print its secret once.

    The service keeps only a digest of it.
    """
    from prunesearch.service.access import token_tables as rendered
    from prunesearch.service.access.token_file import account, secret_file

    lifetime = None if expires is None else parse_duration(expires, "--expires")
    access = _access(storage)
    if path is None:
        made = access.tokens.create(name, role, lifetime)
    else:
        with secret_file(Path(path)) as write:
            made = access.tokens.create(name, role, lifetime)
            write(made.secret)
    access.audit.record(account(), "create_token", name, f"role {role}", "this machine")
    if path is None:
        # The note goes to stderr, so that a command can take the secret from stdout.
        if not as_json:
            click.echo(printable(rendered.note(made.record, _shown_database(storage))), err=True)
        emit(as_json, made, rendered.created)
        return
    written = rendered.WrittenToken(name, role, made.record.expires, path)
    emit(as_json, written, rendered.written)


@token.command("revoke")
@_NAME
@STORAGE
@JSON
def token_revoke(name: str, storage: str, as_json: bool) -> None:
    """Revoke a token. Its sessions and streams end within seconds."""
    from prunesearch.service.access import token_tables as rendered
    from prunesearch.service.access.token_file import account

    access = _access(storage, made=True)
    revoked = access.tokens.revoke(name)
    access.audit.record(account(), "revoke_token", name, "", "this machine")
    emit(as_json, revoked, rendered.revoked)


@token.command("list")
@STORAGE
@JSON
def token_list(storage: str, as_json: bool) -> None:
    """List the tokens of a service, without their secrets."""
    from prunesearch.service.access import token_tables as rendered

    emit(as_json, _access(storage, made=True).tokens.records(), rendered.tokens)


def _access(storage: str, *, made: bool = False) -> "Access":
    """Return the tokens and the log of changes of a service's database.

    Args:
        storage: URL of the database of studies.
        made: refuse a SQLite file that does not exist, instead of making it.

    Raises:
        StorageError: the file does not exist, or the database cannot be opened.
    """
    from prunesearch.cache.location import sqlite_file
    from prunesearch.service.access.access import Access
    from prunesearch.service.database import open_database
    from prunesearch.service.settings import ServiceSettings

    database = ServiceSettings(storage=storage).database
    file = sqlite_file(database)
    if made and file is not None and not file.exists():
        raise StorageError(
            f"no database of a service {str(file)!r}: run this command in the folder of "
            f"`prunesearch serve`, or give `storage`"
        )
    return Access(open_database(database))


def _shown_database(storage: str) -> str:
    """Return the name of a service's database, without a password."""
    from prunesearch.cache.location import shown
    from prunesearch.service.settings import ServiceSettings

    return shown(ServiceSettings(storage=storage).database)
