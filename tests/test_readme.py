"""What the README promises exists."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import optuna
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel

from prunesearch.cli.main import cli
from prunesearch.cli.recipe_files import read_recipe
from prunesearch.config.flat import SECTIONS
from prunesearch.config.recovery import Recovery
from prunesearch.config.run_options import RunOptions
from tests.support.package import ORDER, PACKAGE
from tests.support.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
ARCHITECTURE = (PACKAGE / "README.md").read_text()
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "storage" / "README.md",
    *sorted(PACKAGE.rglob("README.md")),
]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(kind: str) -> list[tuple[Path, str]]:
    """The blocks of one kind on all pages."""
    found = []
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text()):
            if language == kind:
                found.append((page, text))
    return found


def commands() -> list[str]:
    """Every prunesearch command on all pages."""
    found = []
    for _, block in blocks("bash"):
        for line in block.splitlines():
            found += [part for part in line.split(" && ") if part.startswith("prunesearch ")]
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_every_command_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    with command.make_context("prunesearch", words) as context:
        assert context.command is command


def test_the_recipes_are_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finalists = []
    for number, (_, text) in enumerate(blocks("yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        read = read_recipe(path, {}, ())
        assert {recipe.search.drop for recipe in read.recipes} == {"25%"}
        if (recover := read.recipes[0].recover) is not None:
            finalists.append(recover.finalists)
    assert finalists == [1, 5]
    assert capsys.readouterr().err == "", "none is of an earlier form"


def test_the_recipe_files_are_valid() -> None:
    paths = sorted((REPOSITORY / "recipes").glob("*.yaml"))
    assert [path.stem for path in paths] == ["widths"]
    for path in paths:
        (recipe,) = read_recipe(path, {}, ()).recipes
        assert f"prunesearch run recipes/{path.name} --out" in path.read_text()
        assert (recipe.search.space, recipe.search.target) == ("widths", "20%")
        assert recipe.recover is not None


def test_every_setting_of_a_recipe_is_on_its_page() -> None:
    page = (PACKAGE / "config" / "README.md").read_text()
    sections: dict[str, type[BaseModel]] = {**SECTIONS, "recover": Recovery, "run": RunOptions}
    for section, settings in sections.items():
        (line,) = re.findall(rf"^\| `{section}` .*$", page, re.MULTILINE)
        named = re.findall(r"`(\w+)`", line.split("|")[2])
        assert set(named) - {"out"} == set(settings.model_fields), section


def test_the_python_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = blocks("python")
    assert len(examples) == 2
    create_study = optuna.create_study
    for _, text in examples:
        studies: list[optuna.Study] = []

        def created(found: list[optuna.Study] = studies, **options: Any) -> optuna.Study:  # noqa: ANN401 (of optuna)
            found.append(create_study(**options))
            return found[-1]

        monkeypatch.setattr(optuna, "create_study", created)
        few = re.sub(r"n_trials=\d+", "n_trials=8", text).replace("range(100)", "range(8)")
        exec(few, {"my_loss": lambda dropped: float(sum(dropped)), "my_score": lambda rate: rate})
        assert len(studies[0].trials) == 8


def test_the_set_up_commands_are_the_ones_that_ci_runs() -> None:
    install, test = 'pip install -c constraints.txt -e ".[test]"', "pytest"
    assert f"{install} && {test}\n" in README
    assert "pip install -c constraints.txt -e . && prunesearch demo\n" in README
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert install.replace("install", "install --quiet") in ci
    assert f"\n{test}\n" in ci


def test_every_module_has_its_place_on_the_architecture_page() -> None:
    table, _, order = ARCHITECTURE.partition("**Read the code")
    for module in ORDER:
        assert re.search(rf"`{module}/?`", table), module
    for path in re.findall(r"`([a-z_/]+\.py)`", order.partition("\n\n")[0]):
        assert (PACKAGE / path).is_file(), path


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 200
    assert next(n for n, line in enumerate(lines, 1) if line.startswith("prunesearch search")) <= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    pinned = {
        canonicalize_name(line.partition("==")[0])
        for line in _lines("constraints.txt")
        if "==" in line
    }
    wanted = {canonicalize_name(Requirement(line).name) for line in lines}
    # The extra `test` names the package's own extras. trackio 0.43 refuses the pillow that the tests
    # run against, so an exact set cannot have both.
    assert wanted - {project["name"], "trackio"} <= pinned


def _lines(name: str) -> list[str]:
    return (REPOSITORY / name).read_text().splitlines()


FOLDERS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folders_page_names_its_modules(folder: Path) -> None:
    page = (folder / "README.md").read_text()
    # `plan_*.py` stands for several modules.
    patterns = re.findall(r"[`\[/]([\w*]+\.py)[`\]]", page)
    named = {path.name for pattern in patterns for path in folder.glob(pattern)}
    modules = {path.name for path in folder.glob("*.py") if not path.name.startswith("__")}
    assert modules <= named
