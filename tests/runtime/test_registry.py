"""A registry finds its entries in the files of a folder."""

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from prunesearch.algorithms.registry import REGISTRY as ALGORITHMS
from prunesearch.export.formats.registry import REGISTRY as FORMATS
from prunesearch.objectives.calibration_sources.registry import REGISTRY as SOURCES
from prunesearch.runtime.registry import Registry
from tests.support.package import modules


@dataclass(frozen=True)
class Fruit:
    name: str
    order: int = 50


FRUIT: Registry[Fruit] = Registry("fruit_folder", lambda name, known: KeyError(name, tuple(known)))
FILE = """
from tests.runtime.test_registry import FRUIT, Fruit

FRUIT.register(Fruit({name!r}, {order}))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with three files, of which two register an entry."""
    package = tmp_path / "fruit_folder"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shapes.py").write_text("ROUND = True\n")
    (package / "first.py").write_text(FILE.format(name="pear", order=50))
    (package / "second.py").write_text(FILE.format(name="apple", order=50))
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def test_one_new_file_is_one_new_entry(folder: Path) -> None:
    (folder / "third.py").write_text(FILE.format(name="quince", order=1))
    assert "fruit_folder.third" not in sys.modules  # nothing is imported before it is asked for
    assert FRUIT.names() == ["quince", "apple", "pear"]  # by order, then by name
    assert FRUIT.get("pear") == Fruit("pear")
    with pytest.raises(KeyError, match=r"plum.*quince"):
        FRUIT.get("plum")


def test_a_name_has_one_entry() -> None:
    registry: Registry[Fruit] = Registry("tests.runtime", _unknown)
    assert registry.register(Fruit("fig")) == registry.register(Fruit("fig"))
    with pytest.raises(ValueError, match="'fig' is registered twice"):
        registry.register(Fruit("fig", 2))


def _unknown(name: str, known: Sequence[str]) -> Exception:
    return KeyError(name)


@pytest.mark.parametrize(
    "names",
    [ALGORITHMS.names(), FORMATS.names(), SOURCES.names()],
    ids=["algorithm", "format", "source"],
)
def test_no_file_tests_for_an_entry_by_its_name(names: list[str]) -> None:
    """A registered fact is asked for instead, so that a new entry is one file."""
    found = []
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare):
                continue
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and part.value in names:
                    found.append(f"{path}:{node.lineno} compares with {part.value!r}")
    assert found == []
