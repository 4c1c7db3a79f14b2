"""The result of an export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunesearch.candidate import LayerSubset
from prunesearch.export.verification import Verification

FORMS = ("plain", "zeroed", "deci", "remote-code")
"""The forms in which a candidate can be written; see `sublayers`."""


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        folder: folder of the checkpoint.
        candidate: candidate that was exported.
        form: one of `FORMS`.
        params: number of parameters of the checkpoint as it is loaded.
        bytes: bytes of the weight files.
        verification: result of the comparison with the scored candidate.
        changed: changes that were made to the weights before they were written. Empty if the
            weights are those of the base model.
    """

    folder: Path
    candidate: LayerSubset
    form: str
    params: int
    bytes: int
    verification: Verification
    changed: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the export as JSON values."""
        return {
            "folder": str(self.folder),
            "dropped": self.candidate.text,
            "form": self.form,
            "params": self.params,
            "bytes": self.bytes,
            "verification": self.verification.document(),
        }
