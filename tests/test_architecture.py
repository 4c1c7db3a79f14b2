"""The rules of the architecture: who may import whom, and what starts without torch."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import prunesearch
from benchmarks import structure
from tests.support.package import ORDER, PACKAGE, imports, modules, tree_of
from tests.support.paths import REPOSITORY

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FORBIDDEN = {
    "algorithms": {"torch", "optuna", "transformers"},
    "cache": {"torch", "optuna", "transformers"},
    "studies": {"torch", "transformers"},
    "report": {"torch", "transformers"},
}


def test_imports_point_up() -> None:
    wrong = []
    for part, path in modules():
        assert part in ORDER, (
            f"{part} has no place in the architecture: add it to ORDER and to the README"
        )
        for name in imports(path):
            imported = name.split(".")[1] if name.startswith("prunesearch.") else ""
            # Another name is one of the package itself, such as __version__.
            if imported in ORDER and ORDER.index(imported) > ORDER.index(part):
                wrong.append(f"{path} imports {name}, which stands below it")
    assert wrong == []


def test_folders_stay_free_of_what_they_must_not_know() -> None:
    wrong = []
    for part, path in modules():
        roots = {name.split(".")[0] for name in imports(path)}
        wrong += [f"{path} imports {root}" for root in roots & FORBIDDEN.get(part, set())]
    assert wrong == []


# What only one module may use, by the library that it belongs to: private attributes, and modules
# that the library does not document.
OPTUNA_ATTRIBUTES = {
    "_storage", "_study_id", "_trial_id", "_thread_local", "_backend", "_get_trials",
    "_is_multi_objective", "_get_prepared_new_trial", "_set_trial_attr_without_commit",
    "_set_trial_intermediate_value_without_commit", "_datetime_start_utc",
    "_datetime_complete_utc", "_distributions_json", "_params",
}  # fmt: skip
OPTUNA_SQL = re.compile(
    r"\b(FROM|JOIN|INTO|UPDATE)\s+"
    r"(studies|trials|study_\w+|trial_\w+|version_info|alembic_version)\b"
)


def private_modules(path: Path, library: str) -> set[str]:
    """The imports of a module that name a private part of a library."""
    found: set[str] = set()
    for name in imports(path):
        root, *rest = name.split(".")
        if root == library and any(part.startswith("_") for part in rest):
            found.add(name)
    return found


@cache
def foreign_attributes(path: Path) -> set[str]:
    """Private attributes that a module reads of something other than its own objects, also by
    `getattr` with a constant name.
    """
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found.add(argument.value)
    return found


@cache
def methods(path: Path) -> set[str]:
    return {node.name for node in ast.walk(tree_of(path)) if isinstance(node, DEFINITIONS)}


def test_one_folder_uses_optunas_internals() -> None:
    for _, path in modules():
        if path.parent == PACKAGE / "studies" / "optuna_internals":
            continue
        assert not private_modules(path, "optuna"), path
        assert not foreign_attributes(path) & OPTUNA_ATTRIBUTES, path
        # A subclass of Optuna's classes must not override their private methods either.
        assert not methods(path) & {"_get_trials", "_get_prepared_new_trial"}, path
        # The cache has an Alembic table of its own.
        if path.parent.name != "cache":
            assert not OPTUNA_SQL.search(path.read_text()), path


# Private attributes of transformers, accelerate, peft and lm-eval, and methods of theirs that a
# subclass could override.
COMPAT_ATTRIBUTES = {
    "_attn_implementation", "_keep_in_fp32_modules", "_keep_in_fp32_modules_strict", "_auto_map",
    "_hf_hook", "_n_gpu", "_tied_weights_keys", "_no_split_modules", "_device",
}  # fmt: skip
COMPAT_METHODS = {"_save_checkpoint", "_loglikelihood_tokens", "_inner_training_loop"}
# Modules of lm-eval that its documentation names.
LM_EVAL = ("lm_eval.api.", "lm_eval.tasks.", "lm_eval.evaluator", "lm_eval.models.huggingface.")


def test_one_folder_uses_what_is_not_public_in_libraries() -> None:
    for _, path in modules():
        if path.parent == PACKAGE / "compat":
            continue
        for name in imports(path):
            root = name.split(".")[0]
            # What transformers and peft promise is imported from the library itself.
            if root in ("transformers", "peft"):
                assert name.count(".") <= 1, f"{path}: import {name} in prunesearch/compat"
            if root == "lm_eval":
                assert name.startswith(LM_EVAL), f"{path}: import {name} in prunesearch/compat"
        assert not foreign_attributes(path) & COMPAT_ATTRIBUTES, path
        assert not methods(path) & COMPAT_METHODS, path


def test_only_recovery_and_compat_import_peft() -> None:
    for part, path in modules():
        if part not in ("recovery", "compat"):
            roots = {name.split(".")[0] for name in imports(path)}
            assert "peft" not in roots, path


def test_importing_compat_loads_no_torch() -> None:
    assert _loaded_after("import prunesearch.compat") == set()


def test_no_modules_import_each_other() -> None:
    assert structure.circles(structure.count(PACKAGE).imports) == []


def test_a_public_class_name_is_used_once() -> None:
    places: dict[str, list[str]] = {}
    for _, path in modules():
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    # Click's own classes are extended under their names.
    ours = {name: where for name, where in places.items() if name not in ("Group", "Command")}
    assert {name: where for name, where in ours.items() if len(where) > 1} == {}


def test_circles_of_any_length_are_found() -> None:
    imports: dict[str, set[tuple[str, str | None]]] = {
        "p": {("os", None)},
        "p.a": {("p.b", "name")},
        "p.b": {("p", "c")},
        "p.c": {("p.a", None)},
        "p.d": {("p.e", "name")},
        "p.e": {("p.d", "name")},
    }
    found = [set(circle) for circle in structure.circles(imports)]
    assert len(found) == 2
    assert {"p.a", "p.b", "p.c"} in found
    assert {"p.d", "p.e"} in found
    assert structure.circles({**imports, "p.c": set(), "p.d": set()}) == []


def _loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(m for m in ('torch', 'optuna', 'transformers') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


def test_the_package_is_imported_without_torch_or_optuna() -> None:
    assert _loaded_after("import prunesearch") == set()


def test_help_starts_without_torch() -> None:
    code = "import prunesearch.cli\ntry: prunesearch.cli.cli(['--help'])\nexcept SystemExit: pass"
    assert _loaded_after(code) == set()


def test_study_commands_start_without_torch() -> None:
    code = (
        "import prunesearch.cli, prunesearch.studies.persistence, prunesearch.report.search, "
        "prunesearch.report.compensation, prunesearch.report.models, prunesearch.report.comparison, "
        "prunesearch.studies.comparison, prunesearch.studies.measurements"
    )
    assert "torch" not in _loaded_after(code)


def test_the_public_names_are_these() -> None:
    assert prunesearch.__all__ == sorted(
        "Evaluation LayerSubset LayerWidths PSOSampler PruneSearchError Recipe RunOptions RunResult "
        "SearchSpace WOASampler WidthSpace run".split()
    )
    for name in prunesearch.__all__:
        assert getattr(prunesearch, name).__name__ == name
    with pytest.raises(AttributeError, match="nosuch"):
        _ = prunesearch.nosuch


def test_the_drawn_error_tree_is_the_real_one() -> None:
    from prunesearch import errors

    drawn = [word for word in (errors.__doc__ or "").split() if word.endswith("Error")]
    real = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert real == set(drawn) - {"ValueError"}
    assert issubclass(errors.InputError, ValueError)


def _imports_of_tests(folder: str) -> list[tuple[Path, set[str]]]:
    """Each test or benchmark file with what it imports, also in code that it writes as a string."""
    found = []
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        written = set(re.findall(r"from ((?:tests|benchmarks)[\w.]*) import", path.read_text()))
        found.append((path, imports(path) | written))
    return found


def test_tests_import_no_other_test_modules_and_no_benchmarks() -> None:
    for path, names in _imports_of_tests("tests"):
        place = path.relative_to(REPOSITORY).with_suffix("").parts
        # A file may name itself in code that another process runs.
        allowed = ("tests.support", "tests.golden") if "golden" in place else ("tests.support",)
        for name in names:
            if name.startswith("tests.") and not name.startswith(".".join(place)):
                assert name.startswith(allowed), f"{path.name} imports {name}"
            # Tests of benchmarks import them; this file counts circles as one of them does.
            if path != Path(__file__) and place[1] != "benchmarks":
                assert not name.startswith("benchmarks"), f"{path.name} imports {name}"


def test_benchmarks_import_tests_support_and_no_tests() -> None:
    for path, names in _imports_of_tests("benchmarks"):
        for name in names:
            if name.startswith("tests"):
                assert name.startswith("tests.support"), f"{path.name} imports {name}"


def _asserts(node: ast.AST) -> bool:
    """Whether a function states what must hold: by `assert`, or by a call that raises."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            return True
        if isinstance(inner, ast.Call):
            name = ast.unparse(inner.func).rpartition(".")[2]
            checked = any(keyword.arg == "check" for keyword in inner.keywords)
            if name in ("raises", "warns") or name.startswith("assert_") or checked:
                return True
    return False


def test_every_test_asserts_something() -> None:
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        tree = tree_of(path)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        asserting = {function.name for function in functions if _asserts(function)}
        for function in functions:
            called = {
                ast.unparse(node.func).rpartition(".")[2]
                for node in ast.walk(function)
                if isinstance(node, ast.Call)
            }
            if function.name.startswith("test_"):
                assert {function.name, *called} & asserting, f"{path.name}: {function.name}"
