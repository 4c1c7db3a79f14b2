"""What the tests of healing share."""

from pathlib import Path

import pytest

from prunesearch.recovery import HealRecipe


@pytest.fixture
def recipe(prose: Path) -> HealRecipe:
    """A run of a second."""
    return HealRecipe(
        data=str(prose),
        held_out_tokens=256,
        window=32,
        steps=12,
        batch_size=4,
        learning_rate=1e-2,
        eval_every=4,
    )
