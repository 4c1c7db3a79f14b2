"""What healing did, and the work folder in which a run has its checkpoints and is remembered when it is done.

When a run is finished, the best adapter and the report are all that stays there.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from prunesearch.errors import InputError, StorageError, one_line
from prunesearch.store.files import (
    PREFIX,
    cannot_write,
    foreign_writer,
    place_folder,
    replace_folder,
    replaced_file,
    scratch_beside,
    sync_tree,
)
from prunesearch.store.places import refuse_network

WORK = Path("storage/heal")
"""Where work folders lie by default, by digest."""
ADAPTER = "adapter"
"""Folder of the best adapter in a work folder."""
_RUN, _RESULT, _LOCK = "run.json", "result.json", ".lock"

Curve = tuple[tuple[int, float | None], ...]
"""Steps and losses in nats per token; None where the loss was no number."""


@dataclass(frozen=True)
class Healed:
    """What healing did.

    Attributes:
        digest: of everything that determines it.
        steps: taken, of `planned`.
        best_step: whose weights were kept; 0: the pruned model was never beaten.
        training_loss: by step: cross-entropy, KL or their sum, as the recipe says.
        watched_loss: the same on the held-out text, by which the best was chosen; from step 0, the pruned model, on.
        held_out_loss: next-token cross-entropy there, whatever was trained.
        tokens: trained on, repetitions counted.
        seconds: of training, over all processes that took part.
        peak_memory: bytes, of the process, or of the GPU.
        stopped_early: for want of progress.
        diverged: the loss was no number or far above the start; the best before that was kept.
        merge_difference: largest difference of a logit between adapted and merged model.
        cached: it had been done before, and nothing was trained.
        resumed_from: the step that this process went on from.
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
        """The least watched loss, which is that of the weights that were kept."""
        return _number(self.watched_loss, self.best_step)

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "before": self.before, "after": self.after}


def _number(curve: Curve, step: int) -> float:
    loss = dict(curve)[step]
    return math.nan if loss is None else loss


@contextmanager
def held(folder: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Make the run's work folder, or see that it is its own, and keep others out.

    Raises:
        InputError: it belongs to another run, or another process is at work in it.
        StorageError: it cannot be written.
    """
    refuse_network(folder, f"the work folder {str(folder)!r}", "give a folder on this machine's disk with --work")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(f"another process is healing in {str(folder)!r}: wait for it") from None
    except OSError as error:
        raise StorageError(f"cannot use the work folder {str(folder)!r}: {one_line(error)}") from None
    try:
        with foreign_writer():
            _check_owner(folder, identity)
            yield
    except OSError as error:
        raise StorageError(f"{cannot_write(folder, error)}, and run it again: it goes on where it was") from None
    finally:
        lock.release()


def _check_owner(folder: Path, identity: dict[str, Any]) -> None:
    if not (folder / _RUN).exists():
        if any(path.name not in (_LOCK, f".{_RUN}") and not _is_scratch(path) for path in folder.iterdir()):
            raise InputError(f"work folder {str(folder)!r} holds something else: give an empty one, or none")
        _write(folder / _RUN, identity)
        return
    try:
        stored = json.loads((folder / _RUN).read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"work folder {str(folder)!r} is damaged: delete it, or give another") from None
    differing = list(_differing(stored, identity))
    if differing:
        raise InputError(
            f"work folder {str(folder)!r} belongs to another run (it differs in {', '.join(differing)}): "
            "give another folder, or none"
        )


def _differing(stored: dict[str, Any], asked: dict[str, Any]) -> Iterator[str]:
    """What differs between two identities, by name; settings of the recipe with both values."""
    for name in sorted({*stored, *asked}):
        old, new = stored.get(name), asked.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            yield from (f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in changed)
        elif old != new:
            yield f"{name}: {old} there, {new} now" if name == "candidate" else f"the {name.replace('_', '-')}"


def finished(folder: Path) -> Healed | None:
    """The report of a run that is done."""
    try:
        stored = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not (folder / ADAPTER / SAFETENSORS_WEIGHTS_NAME).is_file():
        return None
    for name in ("training_loss", "watched_loss", "held_out_loss"):
        stored[name] = tuple((step, loss) for step, loss in stored[name])
    known = {field.name: stored[field.name] for field in fields(Healed)}
    return Healed(**{**known, "cached": True})


def _is_scratch(path: Path) -> bool:
    """Whether it may be what a process that was killed left; nothing is in its way."""
    return path.name.startswith(PREFIX)


def keep_adapter(folder: Path, save: Callable[[Path], None]) -> None:
    """Keep the best adapter of a run, in place of one that a process which was stopped has kept.

    Args:
        save: writes its files into a folder.

    Raises:
        OSError: it cannot be written.
    """
    adapter = folder / ADAPTER
    with scratch_beside(adapter) as scratch:
        new = scratch / "new" / ADAPTER
        new.mkdir(parents=True)
        save(new)
        sync_tree(new)
        if adapter.exists():
            replace_folder(new, adapter, scratch)
        else:
            place_folder(new, adapter)


def finish(folder: Path, healed: Healed) -> None:
    """Keep the report of a run that is done; its adapter is there already, and all is on disk before the rest goes."""
    _write(folder / _RESULT, healed.document())
    tidy(folder)


def _write(path: Path, document: dict[str, Any]) -> None:
    """Write JSON that is there as a whole or not at all."""
    with replaced_file(path) as scratch:
        scratch.write_text(json.dumps(document, indent=1, sort_keys=True), encoding="utf-8")


def tidy(folder: Path) -> None:
    """Delete the checkpoints of a finished run."""
    for path in checkpoints(folder):
        shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """The folders of a run's checkpoints, whole or not; other names are not the tool's."""
    return [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit() and not path.is_symlink()]
