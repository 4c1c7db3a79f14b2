"""What a candidate removes, in few words, from its text.

The text of widths, such as ``3:1024/2,4:960/3,7``, names every layer that is narrowed. Tables and
titles show its range, and one table shows all widths.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Group

from prunesearch.candidate import named_layers
from prunesearch.report.tables import table
from prunesearch.units import noun_for, plural

_WIDTH = re.compile(r"(\d+):(\d+)/(\d+)")
_PER_ROW = 10  # layers in a row of the table of widths


@dataclass(frozen=True)
class Removal:
    """What a candidate removes.

    Attributes:
        text: text of the candidate.
        widths: channels and KV groups that are kept of each narrowed layer.
        dropped: layers that are dropped, as text.
    """

    text: str
    widths: dict[int, tuple[int, int]]
    dropped: str

    @classmethod
    def of(cls, text: str) -> Self:
        """Read the text of a candidate."""
        widths: dict[int, tuple[int, int]] = {}
        others = []
        for word in text.split(","):
            match = _WIDTH.fullmatch(word)
            if match is None:
                others.append(word)
            else:
                widths[int(match[1])] = int(match[2]), int(match[3])
        return cls(text, widths, ",".join(others))

    @property
    def brief(self) -> str:
        """Short form of the text: for widths the number of layers and the range of the widths."""
        if not self.widths:
            return self.text
        channels = [channels for channels, _ in self.widths.values()]
        groups = [groups for _, groups in self.widths.values()]
        words = (
            f"{len(self.widths)} narrowed to {_range(channels)} "
            f"{noun_for(max(channels), 'channel')}, "
            f"{_range(groups)} {noun_for(max(groups), 'group')}"
        )
        if self.dropped:
            words = f"{self.dropped} dropped; {words}"
        return words

    @property
    def phrase(self) -> str:
        """What is left, in few words, such as ``without 3,7``."""
        if not self.widths:
            return f"without {self.brief}"
        return f"with {self.brief}"

    @property
    def sentence(self) -> str:
        """The end of a sentence about the candidate, such as ``drops layers 3,7``."""
        if not self.widths:
            return f"drops {named_layers(self.text)}"
        words = f"narrows {plural(len(self.widths), 'layer')}"
        if self.dropped:
            words += f" and drops {named_layers(self.dropped)}"
        return words

    def table_of_widths(self) -> Group | None:
        """Return a table of the widths of all layers; None if the candidate narrows none."""
        if not self.widths:
            return None
        gone = {int(layer) for layer in self.dropped.split(",") if layer.isdigit()}
        end = max(*self.widths, *gone, 0) + 1
        rows: list[Sequence[object]] = []
        for start in range(0, end, _PER_ROW):
            layers = range(start, min(start + _PER_ROW, end))
            channels, groups = [], []
            for layer in layers:
                kept = ("0", "0") if layer in gone else ("all", "all")
                if layer in self.widths:
                    kept = str(self.widths[layer][0]), str(self.widths[layer][1])
                channels.append(kept[0])
                groups.append(kept[1])
            rows.append((f"{layers[0]}-{layers[-1]}", " ".join(channels), " ".join(groups)))
        return table("Kept of each layer", ("layers", "channels", "KV groups"), rows)


def heading(texts: Iterable[str | None]) -> str:
    """Return the heading of a column with the texts of candidates."""
    if any(text is not None and ":" in text for text in texts):
        return "layers dropped; widths"
    return "layers dropped"


def _range(numbers: Sequence[int]) -> str:
    """Return the smallest and the largest number, or one if they are equal."""
    if min(numbers) == max(numbers):
        return str(min(numbers))
    return f"{min(numbers)}-{max(numbers)}"
