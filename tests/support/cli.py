"""Runs commands in this process, as a user would on the command line."""

import json
import sys
from typing import Any

import pytest
from click.testing import CliRunner, Result

from prunesearch.cli.main import cli, main

FAST = ["--tokens", "256", "--window", "64", "--population", "4"]


def run(*words: object) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_json(*words: object) -> Any:  # noqa: ANN401 (JSON)
    """Return the JSON document of a command."""
    return json.loads(run(*words, "--json").stdout)


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object
) -> str:
    """Run as the installed command does; expect exit 2 and one line on stderr."""
    monkeypatch.setattr(sys, "argv", ["prunesearch", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    assert stopped.value.code == 2, captured.err
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    lines = [
        line for line in lines if not line.startswith(("loading ", "reading the documents"))
    ]  # on slow machines
    assert len(lines) == 1, lines
    return lines[0]
