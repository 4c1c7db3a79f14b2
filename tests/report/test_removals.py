"""What a candidate removes, in few words."""

import pytest

from prunesearch.report.removals import Removal


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("3,7a", "without 3,7a"),
        ("3:1024/2,4:960/2", "with 2 narrowed to 960-1024 channels, 2 groups"),
        ("3:1024/2,7", "with 7 dropped; 1 narrowed to 1024 channels, 2 groups"),
    ],
)
def test_progress_says_what_is_left(text: str, phrase: str) -> None:
    assert Removal.of(text).phrase == phrase
