"""Every causal-LM type is exported and verified, or refused; and what tools get wrong is found.

All types are in the benchmark; every twelfth of them is tried here and must do as recorded there.
"""

import json
from pathlib import Path

import pytest

from benchmarks.export import MISTAKES, Mistake, complaint, try_type
from benchmarks.zoo import TYPES
from tests.conftest import REPOSITORY

RECORDED = json.loads((REPOSITORY / "benchmarks" / "results" / "export.json").read_text())
EXPECTED = {
    one["model_type"]: one for one in RECORDED["notes"]["exports"] if one["dropped"] == "0,3"
}
SAMPLE = TYPES[::12]


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_type_does_as_recorded(model_type: str, tmp_path: Path) -> None:
    tried = try_type(model_type, "0,3", tmp_path)
    assert tried.outcome in ("verified", "refused", "not built"), tried.reason
    if model_type in EXPECTED:  # of the transformers that the benchmark ran with
        assert tried.outcome == EXPECTED[model_type]["outcome"], tried.reason


def test_most_types_are_verified() -> None:
    assert RECORDED["figures"]["types_verified"] >= 120
    assert RECORDED["figures"]["types_silently_wrong"] == 0


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_planted_mistakes_are_found(mistake: Mistake, digests: bool, tmp_path: Path) -> None:
    if digests or not mistake.harmless:
        assert complaint(mistake, tmp_path, digests=digests) is not None
