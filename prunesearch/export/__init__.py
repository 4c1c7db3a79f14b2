"""Export of a pruned checkpoint that loads in standard tools, and proof that it is the scored
candidate.

The public names are imported when first used, so that help texts can list the formats without
torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunesearch.export.checkpoint import check_destination, export
    from prunesearch.export.manifest import MANIFEST, REPORT
    from prunesearch.export.results import Exported, Verification
    from prunesearch.export.reverification import recheck

_HOMES = {
    "MANIFEST": "manifest",
    "REPORT": "manifest",
    "Exported": "results",
    "Verification": "results",
    "check_destination": "checkpoint",
    "export": "checkpoint",
    "recheck": "reverification",
}
__all__ = [
    "MANIFEST",
    "REPORT",
    "Exported",
    "Verification",
    "check_destination",
    "export",
    "recheck",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any public object)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
