"""Names in backticks in docstrings and comments exist: modules, their contents, and attributes."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.package import tree_of
from tests.support.paths import REPOSITORY

PACKAGE = REPOSITORY / "prunesearch"
FILES = sorted(PACKAGE.rglob("*.py"))
OBJECTS = {"config", "model", "recover", "search", "study"}
"""Modules whose name is also that of a variable or of a section of a recipe.

A name that starts with one of these and does not exist may mean the other thing.
"""
OTHER_PACKAGES = {"gguf", "lm_eval", "peft", "transformers"}
"""Modules whose name is also that of another package."""


def module_of(path: Path) -> str:
    """The dotted name of a module below the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in FILES}


def bound_in(body: list[ast.stmt]) -> set[str]:
    """Names that statements bind: functions, classes, variables, fields and imports."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.If):
            names |= bound_in(node.body)
    return names


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """All classes of the package by name."""
    found: dict[str, list[ast.ClassDef]] = {}
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def has_attribute(name: str, attribute: str) -> bool:
    """Whether a class has an attribute. A base outside of the package may have any."""
    for node in classes()[name]:
        names = bound_in(node.body)
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                names.add(part.attr)
        if attribute in names:
            return True
        for base in node.bases:
            parent = base.value if isinstance(base, ast.Subscript) else base
            if not isinstance(parent, ast.Name) or parent.id in {"Protocol", "NamedTuple"}:
                continue
            if parent.id not in classes() or has_attribute(parent.id, attribute):
                return True
    return False


def exists(name: str) -> bool:
    """Whether a dotted name is that of a module, of something in it, or of an attribute."""
    first, *rest = name.removeprefix("prunesearch.").split(".")
    if first in classes():
        return has_attribute(first, rest[0])
    endings = [m for m in MODULES if m == first or m.split(".")[-1] == first]
    if not endings or first in OTHER_PACKAGES:
        return True
    if first in OBJECTS and not rest[0][0].isupper():
        return True
    return any(_exists_in(module, rest) for module in endings)


def _exists_in(module: str, rest: list[str]) -> bool:
    # Follow the folders and modules, then the name in the last module and the attribute of a class.
    while rest and f"{module}.{rest[0]}" in MODULES:
        module, rest = f"{module}.{rest[0]}", rest[1:]
    if not rest:
        return True
    if rest[0] not in bound_in(tree_of(MODULES[module]).body):
        return False
    return len(rest) == 1 or rest[0] not in classes() or has_attribute(rest[0], rest[1])


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings and comments of a file, with their lines."""
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Expr(value=ast.Constant(value=str() as text)):
                yield node.lineno, text
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def wrong_names(path: Path) -> list[str]:
    """Lines of a file with names in backticks that do not exist."""
    wrong = []
    for line, text in texts_of(path):
        for name in re.findall(r"`([A-Za-z_]\w*(?:\.\w+)+)`", text):
            if not name.endswith((".py", ".json", ".db")) and not exists(name):
                wrong.append(f"{line}: {name}")
        for name in re.findall(r"`([\w/]+\.py)`", text):
            if not any(f"/{file}".endswith(f"/{name}") for file in repository_files()):
                wrong.append(f"{line}: {name}")
        for name in re.findall(r"`(?:prunesearch/)?(\w+/\w+)/?`", text):
            if (PACKAGE / name.split("/")[0]).is_dir() and not (PACKAGE / name).exists():
                wrong.append(f"{line}: {name}")
    return wrong


@cache
def repository_files() -> list[str]:
    """Python files of the package, the tests and the benchmarks."""
    found = []
    for folder in ("prunesearch", "tests", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            found.append(str(path.relative_to(REPOSITORY)))
    return found


def test_names_in_docstrings_exist() -> None:
    wrong = {}
    for path in FILES:
        found = wrong_names(path)
        if found:
            wrong[module_of(path)] = found
    assert wrong == {}


def test_a_name_that_does_not_exist_is_found(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        '"""See `algorithms.moves`, `moves.py`, `objectives/gone`, `Chunk.stored`.\n\n'
        'But `algorithms.pso`, `pso.py`, `objectives/metrics`, `Chunk.index`, `study.ask`."""\n'
    )
    assert wrong_names(file) == [
        "1: algorithms.moves",
        "1: Chunk.stored",
        "1: moves.py",
        "1: objectives/gone",
    ]
