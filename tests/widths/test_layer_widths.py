"""Candidates that narrow layers."""

import pytest

from prunesearch.candidate import Use
from prunesearch.errors import InputError
from prunesearch.widths.layer_widths import LayerWidths, described
from prunesearch.widths.shape import WidthShape

SHAPE = WidthShape((48,) * 4, (4,) * 4, (192,) * 4, (3104,) * 4, (192,) * 4, (3072,) * 4, 64)


def test_text_and_uses() -> None:
    candidate = LayerWidths.within(SHAPE, [48, 30, 0, 17], [4, 2, 0, 4], "flap-1")
    assert candidate.text == "1:30/2,2,3:17/4"
    assert candidate.canonical == "widths/4:flap-1:1:30/2,2,3:17/4"
    assert candidate.dropped == (2,)
    uses = [candidate.use(index) for index in range(4)]
    assert uses == [Use(), Use(channels=30, groups=2), None, Use(channels=17)]
    assert LayerWidths.read(candidate.text, SHAPE, "flap-1") == candidate
    assert LayerWidths.read("none", SHAPE, "flap-1").text == "none"


def test_narrowing_params_count_biases() -> None:
    plain = LayerWidths.within(SHAPE, [48, 30, 48, 48], [4, 2, 4, 4], "a")
    assert plain.narrowing_params == 18 * 192 + 2 * 3104
    biased = LayerWidths.within(SHAPE, [48, 30, 48, 48], [4, 2, 4, 4], "a", biases=True)
    assert biased.narrowing_params == plain.narrowing_params - 2 * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3:1024", "cannot read widths"),
        ("3:49/2", "layer 3 cannot keep 49 channels: it has 48"),
        ("3:48/5", "layer 3 cannot keep 5 KV groups: it has 4"),
        ("4:1/1", "layers 0 to 3"),
        ("1:4/4,1", "name each layer once"),
        ("0,1,2,3", "leaves none"),
    ],
)
def test_bad_texts(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LayerWidths.read(text, SHAPE, "a")


def test_widths_that_would_fill_a_line_are_counted() -> None:
    assert described("3,7") == "without layers 3,7"
    assert described("15") == "without layer 15"
    assert described("3:1024/2,7") == "with widths 3:1024/2,7"
    many = ",".join(f"{layer}:1024/2" for layer in range(1, 30))
    assert described(many) == "with 29 narrower layers"
    assert described(f"0,{many},30") == "without layers 0,30, with 29 narrower layers"
    assert described(f"0,{many}") == "without layer 0, with 29 narrower layers"
