"""`SharedOption`: an option that is defined once for several commands.

`RenamedOption` accepts the earlier spelling of an option for one release.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from prunesearch.config.objective import ScoreWeights
from prunesearch.config.run_options import OFFLOADS, OLD_OFFLOADS
from prunesearch.config.settings import contradiction
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.runtime.masking import printable

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]
Check = Callable[[str], None]
"""Function that raises an `InputError` for a value that is not accepted."""
_NOTES = "prunesearch.notes"
"""Key of the warnings in the context of a command."""


class SharedOption:
    """Definition of an option that several commands have. It decorates their functions.

    Args:
        names: the flag, and the name of the parameter if it differs from the flag.
        earlier: earlier spellings, as `renamed` makes them.
        settings: arguments of `click.Option`.
    """

    def __init__(
        self,
        *names: str,
        earlier: Sequence[Decorator] = (),
        **settings: Any,  # noqa: ANN401 (of click)
    ) -> None:
        self._names = names
        self._earlier = tuple(earlier)
        self._settings = settings

    def __call__(self, function: Function) -> Function:
        """Add the option to a command."""
        for option in self._earlier:
            function = option(function)
        return click.option(*self._names, cls=_Option, **self._settings)(function)

    def variant(self, **settings: Any) -> "SharedOption":  # noqa: ANN401 (of click)
        """Return the option with another default, or as a required one. The meaning is the same."""
        return SharedOption(*self._names, earlier=self._earlier, **{**self._settings, **settings})


class _Option(click.Option):
    """An option whose help may describe its default."""

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Return what help shows in brackets. A described default stands there as it is."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra


class RenamedOption(click.Option):
    """Earlier spelling of an option. It is hidden, and its use prints a warning.

    The value is passed to the parameter that replaces it, as if the present spelling were typed.

    Args:
        names: earlier flag, such as ``--form``, and a name for the parameter.
        flag: present flag, such as ``--encoding``; None if an argument replaces the option.
        parameter: name of the parameter that replaces it.
        check: refuses a value that the present spelling does not take either, so that no warning
            recommends it. None: every value is passed on.
    """

    def __init__(
        self,
        names: Sequence[str],
        flag: str | None,
        parameter: str,
        check: Check | None = None,
    ) -> None:
        super().__init__(
            names,
            hidden=True,
            expose_value=False,
            is_eager=True,
            multiple=True,
            help=f"Earlier spelling of {flag or parameter}.",
        )
        self.spelling = self.opts[0]
        self._flag = flag
        self._parameter = parameter
        self._refuse = check

    def present(self, value: str, command: click.Command) -> tuple[str, list[str]]:
        """Return the parameter that a value is for, and the words that replace the option."""
        if self._flag is None:
            return self._parameter, [value]
        return self._parameter, [self._flag, value]

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Pass the values to the parameters that replace the option, and note a warning.

        Raises:
            InputError: a value is not accepted, or the option contradicts another one.
        """
        values, args = super().handle_parse_result(ctx, opts, args)
        # A shell that completes a command line parses it too.
        if ctx.resilient_parsing:
            return values, args
        typed = self._typed(ctx, opts)
        for value in values:
            parameter, words = self.present(value, ctx.command)
            self._check(words[-1])
            said = f"{self.spelling} {value}"
            other, meant = typed.setdefault(parameter, (said, words[-1]))
            if meant != words[-1]:
                only = words[0] if len(words) > 1 else _shown(ctx, parameter)
                raise contradiction(said, other, only)
            # The option is eager, so the other parameters are read after this.
            cast("dict[str, Any]", opts)[parameter] = words[-1]
            note(ctx, f"{said} is the earlier spelling: write {' '.join(words)}")
        return values, args

    def _typed(self, ctx: click.Context, opts: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Return what the present spellings were given, as it was typed, and its value."""
        typed = {}
        for param in ctx.command.params:
            value = opts.get(param.name or "")
            if param is not self and isinstance(value, str):
                words = [value] if isinstance(param, click.Argument) else [param.opts[0], value]
                typed[param.name or ""] = (" ".join(words), value)
        return typed

    def _check(self, value: str) -> None:
        """Refuse a value that the present spelling does not take either.

        Raises:
            InputError: the value is not accepted.
        """
        if self._refuse is not None:
            self._refuse(value)
        if not value:
            present = self._flag or self._parameter
            raise InputError(f"{self.spelling} is empty: give {present} a value")


def _shown(ctx: click.Context, parameter: str) -> str:
    """Return what help calls an argument, such as ``MODEL``."""
    for param in ctx.command.params:
        if param.name == parameter:
            return param.make_metavar(ctx).strip("[]")
    return parameter


def note(ctx: click.Context, text: str) -> None:
    """Keep a warning until the whole command line is read; see `print_notes`."""
    ctx.meta.setdefault(_NOTES, []).append(f"warning: {printable(text)}")


def print_notes(ctx: click.Context) -> None:
    """Print the warnings about a command line that was read without an error."""
    for line in ctx.meta.pop(_NOTES, ()):
        click.echo(line, err=True)


class IgnoredOption(click.Option):
    """An option that a command accepted in earlier versions and that has no effect on it.

    It is hidden, and its use prints a warning.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names, hidden=True, expose_value=False, help="Has no effect.")

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Print a warning if the option is given."""
        given = self.name in opts
        value, args = super().handle_parse_result(ctx, opts, args)
        if given and not ctx.resilient_parsing:
            note(ctx, f"{self.opts[0]} has no effect on {ctx.info_name}: leave it out")
        return value, args


class MisplacedOption(click.Option):
    """An option of other commands, for which the error of this command names its own option.

    Args:
        names: the flag, and a name for the parameter.
        hint: what to write instead.
    """

    def __init__(self, names: Sequence[str], hint: str) -> None:
        super().__init__(names, hidden=True, expose_value=False, is_eager=True, help=hint)
        self._hint = hint

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Refuse the option.

        Raises:
            UsageError: the option is given.
        """
        given = self.name in opts
        value, args = super().handle_parse_result(ctx, opts, args)
        if given and not ctx.resilient_parsing:
            raise click.UsageError(f"No such option: {self.opts[0]}: {self._hint}", ctx)
        return value, args


class RenamedWeights(RenamedOption):
    """The earlier ``--weights``: where weights wait, or the weights of the optimised sum."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names, "--offload", "offload")

    def present(self, value: str, command: click.Command) -> tuple[str, list[str]]:
        """Return ``--offload`` for a place, and ``--score-weights`` for a sum.

        Raises:
            InputError: the value is neither, or the command optimises no sum.
        """
        if value in OLD_OFFLOADS:
            return "offload", ["--offload", OLD_OFFLOADS[value]]
        if value in OFFLOADS:
            raise InputError(f"--weights {value}: write --offload {value}")
        if "=" not in value:
            raise UnknownNameError("place of weights", value, OLD_OFFLOADS)
        ScoreWeights.parse(value)
        if not any(param.name == "score_weights" for param in command.params):
            raise InputError(
                f"--weights {value} goes with search, as --score-weights, or into a recipe file; "
                f"where the model's weights wait is said by --offload"
            )
        return "score_weights", ["--score-weights", value]


def renamed(
    spelling: str, flag: str | None, parameter: str, check: Check | None = None
) -> Decorator:
    """Return a decorator that adds the earlier spelling of an option; see `RenamedOption`."""
    name = f"earlier_{spelling.strip('-')}"
    return click.option(
        spelling, name, cls=RenamedOption, flag=flag, parameter=parameter, check=check
    )


def ignored(*flags: str) -> Decorator:
    """Return a decorator that adds options without an effect; see `IgnoredOption`."""

    def decorate(function: Function) -> Function:
        for flag in flags:
            name = f"ignored_{flag.strip('-').replace('-', '_')}"
            function = click.option(flag, name, cls=IgnoredOption)(function)
        return function

    return decorate


def misplaced(flag: str, hint: str) -> Decorator:
    """Return a decorator that refuses an option of other commands; see `MisplacedOption`."""
    return click.option(flag, f"misplaced_{flag.strip('-')}", cls=MisplacedOption, hint=hint)


WEIGHTS: Decorator = click.option("--weights", "earlier_weights", cls=RenamedWeights)
"""Decorator that adds the earlier ``--weights``."""


def with_options(*options: Decorator) -> Callable[[Function], Function]:
    """Decorate a command with options, in the order of its help."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def typed_names() -> set[str]:
    """Return the names of the parameters that the user typed for the current command."""
    context = click.get_current_context()
    typed = set()
    for name in context.params:
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            typed.add(name)
    return typed


def present_words(words: Sequence[str], command: click.Command) -> list[str]:
    """Return a command line in which earlier spellings are replaced by the present ones.

    Args:
        words: words of the command line, as they were typed.
        command: the command that they call.
    """
    renamed = {}
    for param in command.params:
        if isinstance(param, RenamedOption):
            renamed[param.spelling] = param
    found: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        spelling, equals, value = word.partition("=")
        if spelling not in renamed or not (equals or left):
            found.append(word)
            continue
        # The value stands after "=", or is the next word.
        if not equals:
            value = left.pop(0)
        found += renamed[spelling].present(value, command)[1]
    return found
