"""`ExportRequest`: what an export writes, and where. Its options are checked before any work."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from prunesearch.cache.location import check_writable
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.export import check_destination, hub, other_tools
from prunesearch.export.formats.plain import PLAIN
from prunesearch.export.formats.registry import (
    REGISTRY,
    ExportFormat,
    checkpoint_format,
)
from prunesearch.export.writer import MAX_SHARD
from prunesearch.units import parse_size


@dataclass(frozen=True)
class ExportRequest:
    """Request for an export.

    Attributes:
        out: folder of the checkpoint, or the GGUF file. None after a search: a folder in `root`,
            named by the study.
        export_format: name of a format of `export.formats`. None: the candidate decides.
        max_shard: size of the largest weight file in bytes.
        push_to_hub: name of the repository to upload to.
        public: allow the upload to a public repository.
        program: print a recipe for this program and write nothing.
        root: folder of the exports whose `out` is None.
        replace: replace an earlier export at `out`, once the new one is verified.
    """

    out: Path | None = None
    export_format: str | None = None
    max_shard: int = MAX_SHARD
    push_to_hub: str | None = None
    public: bool = False
    program: str | None = None
    root: Path = Path("storage/exports")
    replace: bool = False

    @property
    def format(self) -> ExportFormat:
        """The export format, with its facts. If the candidate decides, it writes a folder."""
        return REGISTRY.get(self.export_format or PLAIN.name)

    @classmethod
    def parse(
        cls,
        out: str | None,
        export_format: str | None,
        gguf: bool,
        max_shard: str,
        push_to_hub: str | None,
        public: bool,
        program: str | None,
    ) -> Self:
        """Check the fields of a request, before any work. `gguf` selects the format that writes a
        GGUF file; the other arguments are described in `ExportRequest`.

        Raises:
            InputError: options contradict each other, or the destination cannot be written.
        """
        # A format that writes a file has a flag of its own: see `export.formats.registry`.
        chosen = REGISTRY.get("gguf") if gguf else checkpoint_format(export_format or PLAIN.name)
        written = export_format
        if chosen.suffix is not None:
            written = chosen.name
        # Check the destination: a recipe for another program, a GGUF file or a folder.
        if program is not None:
            if program not in other_tools.PROGRAMS:
                raise UnknownNameError("program", program, other_tools.PROGRAMS)
            if out is not None:
                raise InputError(
                    f"`program` {program} prints a recipe and writes nothing: leave out `out`"
                )
        elif out is None:
            raise InputError(
                "`out` is needed: a new folder for the checkpoint, or with `gguf` a new file"
            )
        elif chosen.suffix is not None:
            if Path(out).suffix.lower() != chosen.suffix:
                raise InputError(
                    f"{chosen.field} writes a file, and `out` {out!r} does not name a file: "
                    f"write `out` NAME{chosen.suffix}"
                )
            if os.path.lexists(out):
                raise InputError(
                    f"`out` {out!r} exists already: choose a new file, since none is replaced"
                )
            if export_format not in (None, PLAIN.name) or (
                push_to_hub is not None and not chosen.hub
            ):
                raise InputError(
                    f"{chosen.field} goes neither with `export_format` nor with `push_to_hub`"
                )
            check_writable(Path(out))
        else:
            for other in REGISTRY.entries():
                if other.suffix is not None and Path(out).suffix.lower() == other.suffix:
                    raise InputError(
                        f"`out` {out!r} names a {other.name.upper()} file: add "
                        f"{other.field}, or choose another name for the folder"
                    )
            check_destination(Path(out))
        # Check the upload.
        if public and push_to_hub is None:
            raise InputError("`public` goes with `push_to_hub` OWNER/NAME")
        if push_to_hub is not None:
            hub.check_name(push_to_hub)
            if out is not None and program is None:
                hub.check_access(push_to_hub, Path(out), public)
        size = parse_size(max_shard, "`max_shard`")
        if size < 1:
            raise InputError(f"`max_shard` {max_shard} is not a size: write 5GB or 500MiB")
        return cls(Path(out) if out else None, written, size, push_to_hub, public, program)
