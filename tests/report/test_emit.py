"""Results are dataclasses, and JSON is made of them in one place."""

import ast
from pathlib import Path

import pytest

import prunesearch
from prunesearch.report.emit import emit
from prunesearch.studies.summary import DeletedStudy

PACKAGE = Path(prunesearch.__file__).parent


def test_a_result_is_one_json_document_or_lines(capsys: pytest.CaptureFixture[str]) -> None:
    done = DeletedStudy("s", 3)
    emit(True, done, lambda result: [result.deleted])
    assert capsys.readouterr().out == '{\n  "deleted": "s",\n  "trials": 3\n}\n'
    emit(False, done, lambda result: [result.deleted])
    assert capsys.readouterr().out == "s\n"


@pytest.mark.parametrize("path", sorted((PACKAGE / "report").glob("*.py")), ids=lambda p: p.stem)
def test_no_renderer_reads_a_dictionary_of_anything(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
            last = ast.unparse(node.slice.elts[-1])
            assert last not in ("Any", "object"), f"line {node.lineno}: {ast.unparse(node)}"
