"""What the README promises exists."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from prunesearch.cli import cli
from prunesearch.cli_options import read_recipe
from prunesearch.recipe import validated
from prunesearch.recovery import RecoverySection
from tests.conftest import REPOSITORY
from tests.test_architecture import ORDER, PACKAGE

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "bash"
    for part in block.splitlines()
    for line in part.split(" && ")
    if line.startswith("prunesearch ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context("prunesearch", words).close()


def test_the_recipes_are_valid(tmp_path: Path) -> None:
    recipes = [block for kind, block in BLOCKS if kind == "yaml"]
    read = []
    for number, text in enumerate(recipes):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        read.append(read_recipe(path))
    assert [recipe.drop for recipe, _ in read] == ["25%", "25%"]
    assert [section and validated(RecoverySection, section).finalists for _, section in read] == [5, None]


def test_the_set_up_commands_are_the_ones_that_ci_runs() -> None:
    install, test = 'pip install -c constraints.txt -e ".[test]"', "pytest"
    assert f"{install} && {test}\n" in README
    assert "pip install -c constraints.txt -e . && prunesearch demo\n" in README
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert install.replace("install", "install --quiet") in ci
    assert ci.rstrip().endswith(test)


def test_every_module_has_its_place_in_the_architecture_section() -> None:
    section = README.partition("## Architecture")[2].partition("**Read the code")[0]
    for module in ORDER:
        assert re.search(rf"`{module}/?`", section), module
    for path in re.findall(r"`([a-z_/]+\.py)`", README.partition("**Read the code")[2]):
        assert (PACKAGE / path).is_file(), path


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (REPOSITORY / Path(target)).exists(), target


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    pinned = {canonicalize_name(line.partition("==")[0]) for line in _lines("constraints.txt") if "==" in line}
    assert {canonicalize_name(Requirement(line).name) for line in lines} <= pinned


def _lines(name: str) -> list[str]:
    return (REPOSITORY / name).read_text().splitlines()
