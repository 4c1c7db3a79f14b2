"""The core names fields in its errors, and a command names its flags."""

import ast
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunesearch.cli.main import cli
from prunesearch.config.recipe import Recipe
from prunesearch.errors import InputError
from tests.support.package import PACKAGE, tree_of

CORE = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in ("cli", "report", "__main__.py")
]
COMMAND = re.compile(r"prunesearch |export |STUDY |optuna |hf upload|llama|--merge FIRST")


def texts_raised(path: Path) -> list[str]:
    """The texts in the `raise` statements of a module, joined for each statement."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Raise):
            parts = []
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    parts.append(part.value)
            found.append("".join(parts))
    return found


def test_no_error_of_the_core_names_a_flag() -> None:
    for path in CORE:
        for text in texts_raised(path):
            # A command that is to be run is written with its flags.
            if re.search(r"(?<![\w-])--[a-z]", text):
                assert COMMAND.search(text), f"{path}: {text}"


@pytest.mark.parametrize(
    ("settings", "field", "words", "flag"),
    [
        ({"task_data": "x"}, "`task_data` goes", ["--task-data", "x"], "--task-data goes"),
        (
            {"sampler": "ga", "preselect": False},
            "`preselect=False` goes with `sampler`",
            ["--sampler", "ga", "--no-preselect"],
            "--no-preselect goes with --sampler",
        ),
        (
            {"sampler": "ga", "encoding": "keys"},
            "`encoding` goes with `sampler`",
            ["--sampler", "ga", "--encoding", "keys"],
            "--encoding goes with --sampler",
        ),
    ],
)
def test_one_error_speaks_to_both(
    settings: dict[str, object], field: str, words: list[str], flag: str
) -> None:
    with pytest.raises(InputError) as caught:
        Recipe(model="m", drop="2", **settings)
    assert str(caught.value).startswith(field)
    done = CliRunner().invoke(cli, ["search", "m", "--drop", "2", *words])
    assert isinstance(done.exception, InputError)
    assert str(done.exception).startswith(flag)
