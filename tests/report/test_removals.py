"""What a candidate removes, in few words."""

import pytest

from prunesearch.report.removals import Removal


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("3,7a", "without 3,7a"),
        ("3:1024/2,4:960/2", "with 2 narrowed to 960-1024 channels, 2 groups"),
        ("3:1024/2,7", "with 7 dropped; 1 narrowed to 1024 channels, 2 groups"),
        ("3:1024/1", "with 1 narrowed to 1024 channels, 1 group"),
    ],
)
def test_progress_says_what_is_left(text: str, phrase: str) -> None:
    assert Removal.of(text).phrase == phrase


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("15", "drops layer 15"),
        ("7a", "drops layer 7a"),
        ("3,7", "drops layers 3,7"),
        ("3:1024/2,7", "narrows 1 layer and drops layer 7"),
        ("3:1024/2,4:960/2,7,8", "narrows 2 layers and drops layers 7,8"),
    ],
)
def test_sentences_fit_one_layer_and_several(text: str, sentence: str) -> None:
    assert Removal.of(text).sentence == sentence
