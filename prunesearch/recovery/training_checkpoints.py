"""Checkpoints of a training: complete ones are marked, partial ones are deleted."""

import json
import shutil
from pathlib import Path

from prunesearch.compat.trainer import TRAINER_STATE_NAME
from prunesearch.export.atomic import sync
from prunesearch.recovery.loss_history import LossHistory
from prunesearch.recovery.run_folder import checkpoints

WHOLE = "whole.json"
"""Name of the file that is written last into a checkpoint.

It holds the sizes of the other files.
"""
_CHECKPOINT = "checkpoint-"


def mark_whole(checkpoint: Path) -> None:
    """Sync a checkpoint to disk, and then mark it as complete."""
    # Sync all files, and note their sizes.
    sizes = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file():
            sizes[str(path.relative_to(checkpoint))] = path.stat().st_size
            sync(path)
    # The mark appears under its name only after its content is on disk.
    scratch = checkpoint / f".{WHOLE}"
    scratch.write_text(json.dumps(sizes), encoding="utf-8")
    sync(scratch)
    scratch.rename(checkpoint / WHOLE)
    sync(checkpoint)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None.

    Partial checkpoints of killed processes are deleted.
    """
    found = []
    for path in checkpoints(folder):
        if _is_whole(path):
            found.append((int(path.name.removeprefix(_CHECKPOINT)), path))
        else:
            shutil.rmtree(path)
    if not found:
        return None
    return max(found)[1]


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint has its mark, and its files have the noted sizes."""
    try:
        sizes = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def loss_history_of(checkpoint: Path) -> LossHistory:
    """Read the loss curves up to a checkpoint."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return LossHistory(state["log_history"])


def checkpoint_at(folder: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return folder / f"{_CHECKPOINT}{step}"
