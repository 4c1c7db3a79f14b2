"""Export of a pruned checkpoint that loads in standard tools, and proof that it is the scored
candidate.
"""

from prunesearch.export.checkpoint import check_destination, export
from prunesearch.export.manifest import MANIFEST, REPORT
from prunesearch.export.recheck import recheck
from prunesearch.export.results import FORMS, Exported, Verification

__all__ = [
    "FORMS",
    "MANIFEST",
    "REPORT",
    "Exported",
    "Verification",
    "check_destination",
    "export",
    "recheck",
]
