"""The modules of the package, their order, and what they import."""

import ast
from functools import cache
from pathlib import Path

import prunesearch

PACKAGE = Path(prunesearch.__file__).parent
# A module imports only what stands before it here, or beside it in its own folder.
ORDER = (
    "runtime compat errors units candidate widths events space algorithms analysis cache "
    "llm models execution objectives importance tracking config studies samplers "
    "evaluation export recovery report pipeline service cli __main__"
).split()


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file. Each file is parsed once."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def modules() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "__init__.py"
    ]
