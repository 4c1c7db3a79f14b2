"""Translation of errors: the core names fields in backticks, and the user typed flags."""

import re
from collections.abc import Iterable

import click

from prunesearch.errors import PruneSearchError

_FIELD = re.compile(r"`(\w+)(=False)?`")


def flags_of(params: Iterable[click.Parameter]) -> dict[str, str]:
    """Return what the user types for each parameter: a flag, or the name of an argument.

    A flag that switches something off stands under the name ``field=False``.
    """
    flags = {}
    for param in params:
        name = param.name or ""
        if isinstance(param, click.Argument):
            flags[name] = param.make_metavar(click.Context(click.Command(None)))
            continue
        flags[name] = max(param.opts, key=len)
        if param.secondary_opts:
            flags[f"{name}=False"] = max(param.secondary_opts, key=len)
    return flags


def name_flags(error: PruneSearchError, params: Iterable[click.Parameter]) -> None:
    """Replace the fields in an error's message by the flags of a command.

    A field that the command has no flag for keeps its backticks, as in a recipe file.
    """
    flags = flags_of(params)

    def flag(match: re.Match[str]) -> str:
        return flags.get(match[1] + (match[2] or ""), match[0])

    error.args = (_FIELD.sub(flag, str(error)),)
