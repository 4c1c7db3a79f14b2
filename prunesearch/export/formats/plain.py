"""A plain checkpoint: the dropped blocks are gone, and nothing else has changed."""

from prunesearch.export.formats.registry import ExportFormat, register

PLAIN = register(
    ExportFormat(
        "plain", "An ordinary checkpoint: whatever loads the base model loads it.", order=10
    )
)
