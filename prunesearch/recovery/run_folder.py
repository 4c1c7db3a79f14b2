"""The report of a healing, and the run folder with its checkpoints and its result.

After a run is finished, only the best adapter and the report stay in the folder.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from prunesearch.cache.files import (
    PREFIX,
    cannot_write,
    foreign_writer,
    place_folder,
    replace_folder,
    replaced_file,
    scratch_beside,
    sync_tree,
)
from prunesearch.cache.location import refuse_network
from prunesearch.compat.peft import SAFETENSORS_WEIGHTS_NAME
from prunesearch.errors import InputError, StorageError, one_line
from prunesearch.runtime.json_values import JsonObject, as_object, to_json

RUN_FOLDERS = Path("storage/heal")
"""Default folder of all run folders, which are named by digest."""
ADAPTER = "adapter"
"""Name of the best adapter's folder in a run folder."""
_RUN, _RESULT, _LOCK = "run.json", "result.json", ".lock"

Curve = tuple[tuple[int, float | None], ...]
"""Steps and losses in nats per token. None stands for a loss that is not finite."""


@dataclass(frozen=True)
class Healed:
    """Report of a healing.

    Attributes:
        digest: digest of everything that determines the result.
        steps: number of steps that were taken.
        planned: number of steps in the recipe.
        best_step: step whose weights were kept. 0: no step was better than the pruned model.
        training_loss: training loss by step (cross-entropy, KL or their weighted sum).
        watched_loss: the same loss on the held-out text. It selects the best step. Step 0 is the
            pruned model.
        held_out_loss: next-token cross-entropy on the held-out text, for every training loss.
        tokens: number of training tokens, including repetitions.
        seconds: training time of all processes that took part.
        peak_memory: peak memory of the process or of the GPU, in bytes.
        stopped_early: True if training stopped because there was no new best.
        diverged: True if the loss was not finite or far above the first loss. The best step before
            that was kept.
        merge_difference: largest difference of a logit between adapted and merged model.
        cached: True if the run was finished before and nothing was trained.
        resumed_from: step of the checkpoint from which this process resumed.
    """

    digest: str
    steps: int
    planned: int
    best_step: int
    training_loss: Curve
    watched_loss: Curve
    held_out_loss: Curve
    tokens: int
    seconds: float
    peak_memory: int
    stopped_early: bool
    diverged: bool
    merge_difference: float
    cached: bool = False
    resumed_from: int = 0
    json_properties: ClassVar[tuple[str, ...]] = ("before", "after")

    @property
    def before(self) -> float:
        """Held-out loss of the pruned model."""
        return _number(self.held_out_loss, 0)

    @property
    def after(self) -> float:
        """Held-out loss of the weights that were kept."""
        return _number(self.held_out_loss, self.best_step)

    @property
    def watched(self) -> float:
        """Lowest watched loss, which is that of the weights that were kept."""
        return _number(self.watched_loss, self.best_step)


def _number(curve: Curve, step: int) -> float:
    """Return the loss of a step, or NaN if it is not finite."""
    loss = dict(curve)[step]
    return math.nan if loss is None else loss


@contextmanager
def held(folder: Path, identity: JsonObject) -> Iterator[None]:
    """Create or check the run folder of a run, and lock it inside the ``with`` block.

    Args:
        folder: the run folder.
        identity: everything that determines the result of the run.

    Raises:
        InputError: the folder belongs to another run, or another process uses it.
        StorageError: the folder cannot be written.
    """
    refuse_network(
        folder,
        f"the run folder {str(folder)!r}",
        "give a folder on this machine's disk with `run_folder`",
    )
    # Lock the folder.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(f"another process is healing in {str(folder)!r}: wait for it") from None
    except OSError as error:
        raise StorageError(
            f"cannot use the run folder {str(folder)!r}: {one_line(error)}"
        ) from None
    # Explain every failure to write inside the block.
    try:
        with foreign_writer():
            _check_owner(folder, identity)
            yield
    except OSError as error:
        raise StorageError(
            f"{cannot_write(folder, error)}, and run it again: it goes on where it was"
        ) from None
    finally:
        lock.release()


def _check_owner(folder: Path, identity: JsonObject) -> None:
    """Write the identity into an empty folder, or compare it with the stored one.

    Raises:
        InputError: the folder belongs to another run, is damaged or holds something else.
    """
    # A new folder may only hold files of the lock and of killed processes.
    if not (folder / _RUN).exists():
        for path in folder.iterdir():
            if path.name not in (_LOCK, f".{_RUN}") and not _is_scratch(path):
                raise InputError(
                    f"run folder {str(folder)!r} holds something else: give an empty one, or none"
                )
        _write(folder / _RUN, identity)
        return
    # An existing folder must hold the same identity.
    try:
        stored = json.loads((folder / _RUN).read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(
            f"run folder {str(folder)!r} is damaged: delete it, or give another"
        ) from None
    differing = list(_differing(stored, identity))
    if differing:
        raise InputError(
            f"run folder {str(folder)!r} belongs to another run (it differs in "
            f"{', '.join(differing)}): "
            "give another folder, or none"
        )


def _differing(stored: JsonObject, asked: JsonObject) -> Iterator[str]:
    """Yield the differences of two identities by name.

    Settings of the recipe come with both values.
    """
    for name in sorted({*stored, *asked}):
        old, new = stored.get(name), asked.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            for key in sorted({*old, *new}):
                if old.get(key) != new.get(key):
                    yield f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        elif old != new and name == "candidate":
            yield f"{name}: {old} there, {new} now"
        # The other values are digests, which say nothing to a reader.
        elif old != new:
            yield f"the {name.replace('_', '-')}"


def finished(folder: Path) -> Healed | None:
    """Read the report of a finished run. None if the run is not finished."""
    try:
        stored = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not (folder / ADAPTER / SAFETENSORS_WEIGHTS_NAME).is_file():
        return None
    # JSON has no tuples.
    for name in ("training_loss", "watched_loss", "held_out_loss"):
        stored[name] = tuple((step, loss) for step, loss in stored[name])
    known = {field.name: stored[field.name] for field in fields(Healed)}
    return Healed(**{**known, "cached": True})


def _is_scratch(path: Path) -> bool:
    """Return whether a path may be a scratch file of a killed process. Such files do no harm."""
    return path.name.startswith(PREFIX)


def keep_adapter(folder: Path, save: Callable[[Path], None]) -> None:
    """Store the best adapter of a run. It replaces the adapter that a stopped process stored.

    Args:
        folder: the run folder.
        save: function that writes the files of the adapter into a folder.

    Raises:
        OSError: the files cannot be written.
    """
    adapter = folder / ADAPTER
    with scratch_beside(adapter) as scratch:
        # Write the files into a scratch folder first, so that the adapter is never incomplete.
        new = scratch / "new" / ADAPTER
        new.mkdir(parents=True)
        save(new)
        sync_tree(new)
        if adapter.exists():
            replace_folder(new, adapter, scratch)
        else:
            place_folder(new, adapter)


def finish(folder: Path, healed: Healed) -> None:
    """Store the report of a finished run, and delete its checkpoints.

    The adapter is stored already. Report and adapter are on disk before a checkpoint is deleted.
    """
    _write(folder / _RESULT, as_object(to_json(healed), "healed"))
    remove_checkpoints(folder)


def _write(path: Path, document: JsonObject) -> None:
    """Write a JSON file atomically."""
    with replaced_file(path) as scratch:
        scratch.write_text(json.dumps(document, indent=1, sort_keys=True), encoding="utf-8")


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished run."""
    for path in checkpoints(folder):
        shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, complete or not.

    Folders with other names, and links, were not made by the tool.
    """
    found = []
    for path in folder.glob("checkpoint-*"):
        if path.name[11:].isdigit() and not path.is_symlink():
            found.append(path)
    return found
