"""What the attributes of a study hold: its identity, its dense model and the latencies of blocks.

An attribute that is missing or damaged counts as unknown, so that the study can still be read.
"""

import json
from dataclasses import dataclass

from prunesearch.runtime.json_values import Json, JsonObject, as_float, as_list, as_object, as_text


@dataclass(frozen=True)
class BlockLatencies:
    """The stored latency model of a study: milliseconds of one prefill, by part of the model.

    Attributes:
        block_ms: time of each block.
        attention_ms: time of each block's attention.
        other_ms: time of everything else.
    """

    block_ms: tuple[float, ...]
    attention_ms: tuple[float, ...]
    other_ms: float

    @property
    def dense_ms(self) -> float:
        """Predicted time of the dense model."""
        return self.other_ms + sum(self.block_ms)


def stored_object(stored: Json) -> JsonObject:
    """Return a stored attribute, which is a JSON text; empty if it is missing or damaged."""
    try:
        return as_object(json.loads(as_text(stored, "the attribute")), "the attribute")
    except (ValueError, RecursionError):
        return {}


def stored_text(identity: JsonObject, name: str) -> str:
    """Return a text of the identity; empty if it holds none of that name."""
    value = identity.get(name)
    return value if isinstance(value, str) else ""


def dense_metrics(stored: JsonObject) -> tuple[str, dict[str, float]]:
    """Return the name of the searched metric and the metrics of the dense model."""
    name = stored.get("metric")
    return (name if isinstance(name, str) else ""), _numbers(stored.get("metrics"))


def dense_costs(stored: JsonObject) -> dict[str, float]:
    """Return the costs of the dense model; empty in studies of earlier versions."""
    return _numbers(stored.get("costs"))


def _numbers(stored: Json) -> dict[str, float]:
    """Return the numbers of a stored object by name."""
    found: dict[str, float] = {}
    if isinstance(stored, dict):
        for name, value in stored.items():
            if isinstance(value, int | float):
                found[name] = float(value)
    return found


def block_latencies(stored: JsonObject) -> BlockLatencies | None:
    """Return the stored latency model; None if it is missing or damaged."""
    parts: list[tuple[float, ...]] = []
    try:
        for name in ("block_ms", "attention_ms"):
            times = as_list(stored.get(name), name)
            parts.append(tuple(as_float(time, name) for time in times))
        other = as_float(stored.get("other_ms"), "other_ms")
    except ValueError:
        return None
    return BlockLatencies(parts[0], parts[1], other)
