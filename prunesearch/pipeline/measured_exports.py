"""The checkpoints of a study that are measured beside its candidates."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.study import Study

from prunesearch import events
from prunesearch.errors import InputError
from prunesearch.export.manifest import MANIFEST
from prunesearch.runtime.json_values import Json
from prunesearch.studies import study_recipe
from prunesearch.studies.exports import exports_here

CHANGED_ROLES = ("healed", "compensated")
"""Roles of checkpoints whose weights were changed, the one that counts first."""


@dataclass(frozen=True)
class ExportFolder:
    """A checkpoint that prunesearch wrote.

    Attributes:
        folder: its folder.
        study: name of the study that it was made of; empty if it was made of named layers.
        base: fingerprint of the model that it was made from.
        dropped: what was dropped.
        role: see `studies.measurements.Measurement`.
        own_code: whether it is loaded by code of its own.
        digest: digest of its manifest.
    """

    folder: Path
    study: str
    base: str
    dropped: str
    role: str
    own_code: bool
    digest: str

    @classmethod
    def read(cls, folder: Path) -> "ExportFolder":
        """Read what the manifest of a checkpoint says.

        Raises:
            InputError: the folder holds no checkpoint of prunesearch.
        """
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
            manifest: Mapping[str, Json] = json.loads(text)
            return cls(
                folder=folder,
                study=str(manifest.get("study", "")),
                base=str(manifest["base_fingerprint"]),
                dropped=str(manifest["dropped"]),
                role=role_of_changes(manifest.get("changed")),
                own_code=bool(manifest.get("own_code")),
                digest=hashlib.sha256(text.encode()).hexdigest(),
            )
        except (OSError, ValueError, KeyError, AttributeError):
            raise InputError(
                f"`exported` {str(folder)!r} is not a checkpoint that prunesearch wrote: give the "
                "folder of an export or of a healing"
            ) from None

    def belongs_to(self, study: Study) -> bool:
        """Return whether it was made of a study, or of layers of the model that it searched."""
        same_model = self.base == study_recipe.identity_of(study).get("model content")
        return same_model and self.study in ("", study.study_name)


def role_of_changes(changed: Json) -> str:
    """Return the role of a checkpoint by the changes of its weights."""
    for role in CHANGED_ROLES:
        if isinstance(changed, list | tuple) and role in changed:
            return role
    return "exported"


def exports_of(
    study: Study, given: Sequence[ExportFolder], trust_remote_code: bool
) -> list[ExportFolder]:
    """Return the checkpoints of a study: those that the user names, and those that it knows.

    One that needs code of its own is left out, unless the user allows it to run.

    Args:
        study: the study.
        given: checkpoints that the user names.
        trust_remote_code: whether code of a checkpoint may run.
    """
    # 1. Collect the folders. A known one may hold something else by now.
    found = [export for export in given if export.belongs_to(study)]
    for folder in exports_here(study):
        try:
            known = ExportFolder.read(folder)
        except InputError:
            continue
        if known.belongs_to(study) and known not in found:
            found.append(known)
    # 2. Leave out what may not run.
    allowed = []
    for export in found:
        if export.own_code and not trust_remote_code:
            events.tell(
                events.Message(
                    f"{export.folder} is not measured, because it runs code of its own: allow it "
                    "with `trust_remote_code`"
                )
            )
            continue
        allowed.append(export)
    return allowed


def read_given(folders: Sequence[Path], studies: Sequence[Study]) -> tuple[ExportFolder, ...]:
    """Read the checkpoints that the user names.

    Raises:
        InputError: a folder holds no checkpoint of prunesearch, or one of other studies.
    """
    read = []
    for folder in folders:
        export = ExportFolder.read(folder)
        if not any(export.belongs_to(study) for study in studies):
            made_of = f"study {export.study!r}" if export.study else "another model"
            raise InputError(
                f"`exported` {str(folder)!r} was made of {made_of}, which is not asked for here"
            )
        read.append(export)
    return tuple(read)
