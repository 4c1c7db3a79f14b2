"""The shape of the code in numbers: size of the root, density, private words, circles, untyped
dictionaries, README.

    python -m benchmarks.structure --json FILE            # this checkout
    python -m benchmarks.structure --against COMMIT       # an older commit's figures beside it

Lines are counted without blank ones. Docstrings and string literals hold no comprehensions and no
comments, since all but the comments is counted in the syntax tree. A nested comprehension is one
that holds another. `dict[str, Any]`-like annotations are `dict`, `Mapping` or `MutableMapping`
whose values are `Any` or `object`. The files of an algorithm, an objective and an architecture are the
modules that name one that was added last: grey wolf, hidden-state cosine, nanochat.
"""

import ast
import graphlib
import io
import re
import statistics
import subprocess
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.support.record import Record, arguments
from tests.support import glossary

ROOT = Path(__file__).parent.parent
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_TARGETS = {
    "root_modules": "<= 6",
    "comprehensions_per_1000_lines": "<= 18",
    "nested_comprehensions_per_1000_lines": "<= 0.3",
    "conditional_expressions_per_1000_lines": "<= 11",
    "comment_lines_per_1000_lines": ">= 25",
    "import_circles": "== 0",
    "uses_of_unittest_mock": "== 0",
    "untyped_dictionaries": "<= 60",
    "readme_lines": "<= 200",
    "readme_line_of_first_search": "<= 40",
    "banned_words": "== 0",
    "files_of_an_algorithm": "== 1",
    "files_of_an_objective": "== 1",
    "files_of_an_architecture": "== 1",
}
_EXTENSIONS = {
    "files_of_an_algorithm": r"gwo|grey.?wolf",
    "files_of_an_objective": r"hidden.?cosine",
    "files_of_an_architecture": r"\bnanochat\b",
}
"""An entry of each registry. The modules that name it are the files that adding it has touched."""
_LONG_FILE = 300


@dataclass
class Counts:
    """What is counted over the package."""

    lines: int = 0
    function_lines: list[int] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)
    imports: dict[str, set[tuple[str, str | None]]] = field(default_factory=dict)


def count(package: Path) -> Counts:
    """Count over every module of a package."""
    counts = Counts()
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        counts.lines += sum(1 for line in text.splitlines() if line.strip())
        counts.totals["comments"] += _comment_lines(text)
        counts.totals["wide"] += sum(len(line) > 100 for line in text.splitlines())
        counts.totals["long files"] += len(text.splitlines()) > _LONG_FILE
        for name, pattern in _EXTENSIONS.items():
            counts.totals[name] += bool(re.search(pattern, text, re.IGNORECASE))
        _count_tree(tree, counts.totals)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                counts.function_lines.append((node.end_lineno or node.lineno) - node.lineno + 1)
        module = ".".join(
            (package.name, *path.relative_to(package).with_suffix("").parts)
        ).removesuffix(".__init__")
        counts.imports[module] = set(_imported(tree))
    return counts


def _count_tree(tree: ast.AST, totals: Counter[str]) -> None:
    for node in ast.walk(tree):
        if isinstance(node, _COMPREHENSIONS):
            totals["comprehensions"] += 1
            totals["nested"] += (
                sum(isinstance(inner, _COMPREHENSIONS) for inner in ast.walk(node)) > 1
            )
        elif isinstance(node, ast.IfExp):
            totals["conditional"] += 1
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "mock"
        ):
            totals["mock"] += 1
        elif isinstance(node, ast.Subscript):
            totals["untyped"] += _is_untyped_dictionary(node)


def _is_untyped_dictionary(node: ast.Subscript) -> bool:
    name = ast.unparse(node.value).rpartition(".")[2]
    if name not in ("dict", "Mapping", "MutableMapping") or not isinstance(node.slice, ast.Tuple):
        return False
    return ast.unparse(node.slice.elts[-1]) in ("Any", "object")


def _comment_lines(text: str) -> int:
    """Number of lines that hold nothing but a comment."""
    found = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            found += 1
    return found


def _imported(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Yield the module of each import, and the name that is taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.module, alias.name


def import_graph(imports: dict[str, set[tuple[str, str | None]]]) -> dict[str, set[str]]:
    """Return the modules of the package that each module imports.

    Imports for type checkers count, too. A module that is imported from a folder, as in
    ``from package import module``, counts as itself and not as the folder.
    """
    graph: dict[str, set[str]] = {}
    for module, names in imports.items():
        graph[module] = set()
        for source, name in names:
            target = source
            if f"{source}.{name}" in imports:
                target = f"{source}.{name}"
            if target in imports and target != module:
                graph[module].add(target)
    return graph


def circles(imports: dict[str, set[tuple[str, str | None]]]) -> list[tuple[str, ...]]:
    """Circles of modules that import each other, of any length.

    One circle is found at a time, and is opened before the next is searched.
    """
    graph, found = import_graph(imports), []
    while True:
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            circle = error.args[1]  # the first module is repeated at the end
            found.append(tuple(circle))
            # Each module of the list is imported by the next one.
            graph[circle[1]].discard(circle[0])
        else:
            return found


def banned_words(root: Path) -> Counter[str]:
    """How often each private word stands in the package and in its pages; see the glossary's test."""
    return Counter(finding.word for finding in glossary.findings(root))


def figures(root: Path) -> tuple[dict[str, float], Counter[str]]:
    """All figures of a checkout, and its banned words."""
    package = root / "prunesearch"
    counts = count(package)
    readme = (root / "README.md").read_text().splitlines()
    first = next(
        (n for n, line in enumerate(readme, 1) if line.startswith("prunesearch search")),
        len(readme),
    )
    words = banned_words(root)
    per_1000 = 1000 / counts.lines
    return {
        "lines": counts.lines,
        "root_modules": sum(1 for p in package.glob("*.py") if p.name != "__init__.py"),
        "comprehensions_per_1000_lines": counts.totals["comprehensions"] * per_1000,
        "nested_comprehensions_per_1000_lines": counts.totals["nested"] * per_1000,
        "conditional_expressions_per_1000_lines": counts.totals["conditional"] * per_1000,
        "comment_lines_per_1000_lines": counts.totals["comments"] * per_1000,
        "import_circles": len(circles(counts.imports)),
        "uses_of_unittest_mock": counts.totals["mock"],
        "untyped_dictionaries": counts.totals["untyped"],
        "readme_lines": len(readme),
        "readme_line_of_first_search": first,
        "banned_words": words.total(),
        **{name: counts.totals[name] for name in _EXTENSIONS},
        "lines_over_100_columns": counts.totals["wide"],
        "files_over_300_lines": counts.totals["long files"],
        "function_lines_median": statistics.median(counts.function_lines),
        "function_lines_p90": sorted(counts.function_lines)[len(counts.function_lines) * 9 // 10],
        "function_lines_max": max(counts.function_lines),
    }, words


def main() -> None:
    """Count, compare with an older commit where one is named, and print."""
    options = arguments(
        __doc__ or "", {"--against": {"metavar": "COMMIT", "help": "count this commit too"}}
    )
    record = Record("structure", options.size)
    found, words = figures(ROOT)
    for name, value in found.items():
        record.add(name, value, _TARGETS.get(name))
    record.notes["banned words"] = dict(words)
    if options.against:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(
                ["git", "-C", str(ROOT), "archive", options.against],
                capture_output=True,
                check=True,
            ).stdout
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(folder, filter="data")
            before, _ = figures(Path(folder))
        record.notes["before"] = {"commit": options.against, **before}
    record.finish(options.json)


if __name__ == "__main__":
    main()
