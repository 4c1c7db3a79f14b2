"""Every causal-LM type is exported and verified, or refused; and what tools get wrong is found.

The benchmark tries all types; a fixed sample of them is tried here.
"""

from pathlib import Path

import pytest

from tests.support.exports import MISTAKES, Mistake, complaint, try_type
from tests.support.model_types import SAMPLE

REFUSED = {
    "big_bird": "no list of modules could be its blocks",
    "qwen3_5_moe_text": "blocks 3 are all that have attention",
    "roformer": "no list of modules could be its blocks",
    "xlm-roberta": "no list of modules could be its blocks",
}
"""The types of the sample that cannot lose blocks 0 and 3, and the reason that is given."""


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_type_is_exported_and_verified_or_refused(model_type: str, tmp_path: Path) -> None:
    tried = try_type(model_type, "0,3", tmp_path)
    if model_type in REFUSED:
        assert tried.outcome == "refused", tried.reason
        assert REFUSED[model_type] in tried.reason
    else:
        assert tried.outcome == "verified", tried.reason


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_digests_and_logits_find_every_mistake(mistake: Mistake, tmp_path: Path) -> None:
    assert complaint(mistake, tmp_path) is not None


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_logits_find_every_mistake_that_changes_them(mistake: Mistake, tmp_path: Path) -> None:
    said = complaint(mistake, tmp_path, digests=False)
    assert (said is None) == mistake.harmless, said
