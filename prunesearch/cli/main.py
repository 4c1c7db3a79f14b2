"""The program: its commands, and what it prints and returns when something goes wrong.

Results go to stdout, progress and errors to stderr. The exit status is 0 for success, 2 for bad
input (with one line that names the fix), 1 for a failure, 130 for Ctrl-C and 143 for SIGTERM.
Finished work is kept in each case. With ``--json``, a failure is also printed as one JSON document
on stdout.
"""

import errno
import os
import signal
import sys
from typing import NoReturn

import click

import prunesearch
from prunesearch.cli.cache import cache
from prunesearch.cli.compare import compare
from prunesearch.cli.compensate import compensate
from prunesearch.cli.doctor import doctor
from prunesearch.cli.export import export, verify
from prunesearch.cli.heal import heal
from prunesearch.cli.help import Group
from prunesearch.cli.models import analyze, evaluate, plan
from prunesearch.cli.parameters import present_words
from prunesearch.cli.remote import cancel, fetch, jobs, pause, resume, stop, submit, watch
from prunesearch.cli.report import report
from prunesearch.cli.runner import runner
from prunesearch.cli.search import demo, run, search
from prunesearch.cli.serve import serve
from prunesearch.cli.study import study
from prunesearch.cli.token import token
from prunesearch.cli.work import work
from prunesearch.errors import InputError, PruneSearchError, one_line
from prunesearch.report.emit import emit_json
from prunesearch.runtime import stopping
from prunesearch.runtime.masking import command, masked_text, printable


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(prunesearch.__version__, prog_name="prunesearch")
def cli() -> None:
    """Find the layers a large language model does not need, drop them, get a checkpoint that just
    loads.
    """


for group_or_command in (
    analyze,
    cache,
    cancel,
    compare,
    compensate,
    demo,
    doctor,
    evaluate,
    export,
    fetch,
    heal,
    jobs,
    pause,
    plan,
    report,
    resume,
    run,
    runner,
    search,
    serve,
    stop,
    study,
    submit,
    token,
    verify,
    watch,
    work,
):
    cli.add_command(group_or_command)


def main() -> None:
    """Run the command line and turn what goes wrong into one line and an exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        # Transformers and datasets show no bars in a log.
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        with stopping.handled():
            status = cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        # A group without a command prints its help.
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail("error", " ".join(error.format_message().split()), error, 2)
    except InputError as error:
        _fail("error", str(error), error, 2)
    except PruneSearchError as error:
        _fail("failed", str(error), error, 1)
    except (KeyboardInterrupt, click.Abort) as stop:
        _stopped(stop)
    except BrokenPipeError:
        # The reader of our output has closed it, as in `prunesearch study list | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("PRUNESEARCH_TRACEBACK"):
            raise
        _fail_unforeseen(error)
    else:
        # Click returns the status with which a command ended early; most return nothing.
        if isinstance(status, int):
            sys.exit(status)


def _fail(kind: str, message: str, error: Exception, status: int) -> NoReturn:
    """Print an error as one line, and with ``--json`` as a document too, both without secrets."""
    message = printable(masked_text(message))
    click.echo(f"{kind}: {message}", err=True)
    _emit_failure(message, type(error).__name__, status)
    sys.exit(status)


def _fail_unforeseen(error: Exception) -> NoReturn:
    """Print a bug, of ours or of a library. The user gets one line in this case too."""
    # A name that is too long reaches some libraries unchecked.
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        message = f"no file can have the name {str(error.filename)!r}: {error.strerror}"
        _fail("error", message, error, 2)
    message = f"{type(error).__name__}: {one_line(error)} (PRUNESEARCH_TRACEBACK=1 shows where)"
    _fail("failed", message, error, 1)


_RESUMED = ("search", "run", "demo", "evaluate", "export", "heal", "compensate", "work", "report")
"""Commands that resume their work when they are run again, in addition to ``study resume``."""


def _stopped(stop: BaseException) -> NoReturn:
    """Print the command that resumes the work. It can be pasted, and contains no secret."""
    # Click replaces a KeyboardInterrupt by an Abort.
    why = stop.__cause__ or stop
    number: int = signal.SIGINT
    if isinstance(why, stopping.StopRequested):
        number = why.number
    status = 128 + number
    words = sys.argv[1:]
    if not words or (words[0] not in _RESUMED and words[:2] != ["study", "resume"]):
        click.echo("stopped", err=True)
        _emit_failure("stopped", "StopRequested", status)
        sys.exit(status)
    line, variables = command(["prunesearch", *_present_words(words)])
    click.echo("stopped; what is finished is kept. Resume with:", err=True)
    if variables:
        click.echo(f"  # first: export {' '.join(f'{name}=URL' for name in variables)}", err=True)
    click.echo(f"  {line}", err=True)
    _emit_failure("stopped", "StopRequested", status, resume=line)
    sys.exit(status)


def _present_words(words: list[str]) -> list[str]:
    """Return a command line with the present spellings of its options."""
    called: click.Command = cli
    for word in words:
        if not isinstance(called, click.Group):
            break
        called = called.commands[word]
    return present_words(words, called)


def _emit_failure(message: str, kind: str, status: int, **more: str) -> None:
    """Print a failure as a JSON document, if the command line asks for JSON."""
    if "--json" in sys.argv[1:]:
        emit_json({"error": message, "kind": kind, "exit": status, **more})


if __name__ == "__main__":
    main()
