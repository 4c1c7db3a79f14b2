import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from prunesearch.candidate import LayerSubset
from prunesearch.config.objective import ScoreWeights
from prunesearch.runtime.json_values import (
    as_bool,
    as_float,
    as_int,
    as_list,
    as_object,
    as_text,
    json_as,
    to_json,
)


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Cost:
    params: int
    latency_ms: float


@dataclass(frozen=True)
class Found:
    json_properties: ClassVar[tuple[str, ...]] = ("doubled",)

    candidate: LayerSubset = field(metadata=json_as("dropped"))
    costs: tuple[Cost, ...]
    total: Cost = field(metadata=json_as(inline=True))
    work: Path | None = field(default=None, metadata=json_as(omit_none=True))

    @property
    def doubled(self) -> int:
        return 2 * self.total.params


def test_a_dataclass_becomes_an_object_with_names_of_its_own() -> None:
    found = Found(LayerSubset.of(8, [3, 4]), (Cost(1, 2.0),), Cost(3, 4.0))
    assert to_json(found) == {
        "dropped": "3,4",
        "costs": [{"params": 1, "latency_ms": 2.0}],
        "params": 3,
        "latency_ms": 4.0,
        "doubled": 6,
    }


def test_what_json_does_not_know_becomes_what_it_knows() -> None:
    values = [np.float32(0.5), np.int64(3), np.bool_(True), math.nan, -math.inf, Colour.RED, True]
    assert to_json(values) == [0.5, 3, True, None, None, "red", True]
    assert to_json({1: Path("a/b"), "ids": np.array([1, 2])}) == {"1": "a/b", "ids": [1, 2]}
    assert to_json(ScoreWeights()) == {"quality": 1.0, "size": 0.0, "latency": 0.0}


def test_narrowing_returns_the_value_or_names_it() -> None:
    assert as_object({"a": 1}, "x") == {"a": 1}
    assert as_list([1], "x") == [1]
    assert (as_text("a", "x"), as_int(3, "x"), as_float(3, "x")) == ("a", 3, 3.0)
    assert as_bool(False, "x") is False
    for narrow in (as_object, as_list, as_text, as_int, as_float):
        with pytest.raises(ValueError, match="num_layers is not "):
            narrow(True, "num_layers")
