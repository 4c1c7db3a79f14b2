"""Generated texts and task documents."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def prose(sentences: int) -> str:
    """Sentences about ships; each has other numbers."""
    told = [
        f"Sentence {i} tells of {i * i} ships that left the harbour at dawn."
        for i in range(sentences)
    ]
    return " ".join(told)


def hellaswag_rows(count: int) -> list[Mapping[str, int | str | list[str]]]:
    """Documents with HellaSwag's fields."""
    rows: list[Mapping[str, int | str | list[str]]] = []
    for i in range(count):
        rows.append(
            {
                "ind": i,
                "activity_label": "Sailing",
                "ctx_a": f"Boat {i} leaves the harbour.",
                "ctx_b": "the crew",
                "endings": [
                    f"rows {i} miles.",
                    "sings a song.",
                    f"eats {i} fish and sleeps.",
                    "waits.",
                ],
                "label": str(i % 4),
            }
        )
    return rows


def write_lines(path: Path, rows: Sequence[Mapping[str, int | str | list[str]]]) -> Path:
    """Write rows as lines of JSON and return the file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
