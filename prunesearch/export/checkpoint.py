"""Export of a candidate as a checkpoint.

The weights are copied from the dense checkpoint's files to the new files, without building a model.
The new checkpoint is written next to the destination, reloaded, compared and synced. Only then is
it renamed into place. So the destination either holds a complete, verified checkpoint or nothing
new.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from transformers import PretrainedConfig

from prunesearch import events
from prunesearch.cache.location import check_writable
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, StorageError
from prunesearch.export import manifest
from prunesearch.export.atomic import (
    cannot_write,
    foreign_writer,
    place_folder,
    replace_folder,
    scratch_beside,
    sync_tree,
)
from prunesearch.export.checkpoint_files import write_files
from prunesearch.export.companions import companions
from prunesearch.export.formats.registry import checkpoint_format, default_format
from prunesearch.export.reloading import check_digests, reload_and_compare
from prunesearch.export.results import Exported
from prunesearch.export.writer import MAX_SHARD
from prunesearch.models.config_edits import edits
from prunesearch.models.loading import LoadedModel
from prunesearch.models.model_configs import settings_of
from prunesearch.models.reordering import check_order
from prunesearch.models.structure import architecture_of
from prunesearch.runtime.json_values import Json


def export(
    loaded: LoadedModel,
    candidate: LayerSubset,
    out: Path,
    facts: Mapping[str, Json] | None = None,
    *,
    export_format: str | None = None,
    changed: Sequence[str] = (),
    replace: bool = False,
    max_shard: int = MAX_SHARD,
) -> Exported:
    """Write a candidate: weights, config, tokenizer, chat template, model card, manifest,
    verification.

    Args:
        loaded: dense model.
        candidate: candidate of the dense model.
        out: folder of the new checkpoint.
        facts: facts about the candidate (recipe, metrics). They are kept in the manifest and shown
            on the card.
        export_format: ``plain`` removes the blocks, and any program loads the result. The other
            formats are for dropped sublayers and narrow layers. None: ``plain``, or ``widths`` for
            narrow layers.
        changed: changes that were made to the weights in memory, such as ``compensated``. If there
            are any, the weights in memory are written instead of those in the files.
        replace: replace an earlier export at `out`, once the new one is verified.
        max_shard: bytes of the largest weight file.

    Raises:
        InputError: the candidate cannot be written in this format.
        StorageError: `out` is not empty or cannot be written.
        VerificationError: the reloaded checkpoint does not equal the candidate.
        RunError: something else was put at `out` in the meantime. It stays, and the message names
            the folder that the export is in.
    """
    with UnpublishedCheckpoint(
        loaded,
        candidate,
        out,
        export_format=export_format,
        changed=changed,
        replace=replace,
        max_shard=max_shard,
    ) as checkpoint:
        checkpoint.write()
        checkpoint.verify()
        return checkpoint.publish(facts)


class UnpublishedCheckpoint:
    """A checkpoint in a scratch folder next to its destination.

    It is written, verified and only then moved to the destination. Nothing is ever seen there that
    was not verified. As a context manager it makes the scratch folder, and deletes it at the end.

    Args:
        loaded: dense model.
        candidate: candidate of the dense model.
        out: destination.
        export_format, changed, replace, max_shard: see `export`.

    Raises:
        InputError: the candidate cannot be written in this format.
        StorageError: `out` is not empty or cannot be written.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        candidate: LayerSubset,
        out: Path,
        *,
        export_format: str | None = None,
        changed: Sequence[str] = (),
        replace: bool = False,
        max_shard: int = MAX_SHARD,
    ) -> None:
        if export_format is None:
            export_format = default_format(candidate).name
        # Refuse what cannot succeed before any work is done.
        check_export_format(loaded.model.config, candidate, export_format)
        check_order(loaded.model, candidate)
        companions(loaded)
        self._replace = replace and (out / manifest.MANIFEST).is_file()
        if self._replace:
            manifest.check_replaceable(out)
        else:
            check_destination(out)
        self.candidate = candidate
        self._loaded, self._out, self._export_format = loaded, out, export_format
        self._changed, self._max_shard = tuple(changed), max_shard
        # If `out` is a link to a folder, the link stays and the folder is filled.
        self._place = out.resolve()
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with self._storage_errors():
            self._place.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = self._opened.enter_context(scratch_beside(self._place))
            self._new = self._scratch / "new" / self._place.name
            self._new.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def write(self) -> None:
        """Write config, tokenizer and weights into the scratch folder."""
        events.tell(events.StageProgress(f"writing the checkpoint to {self._out}"))
        with self._storage_errors():
            self._written, self._layout = write_files(
                self._loaded,
                self.candidate,
                self._export_format,
                self._new,
                self._scratch / "dense",
                self._max_shard,
                self._changed,
            )

    def verify(self) -> None:
        """Read the files again, reload the checkpoint, and compare it with the candidate.

        Raises:
            VerificationError: the checkpoint does not equal the candidate.
        """
        events.tell(events.StageProgress("verifying it: files, then its logits after reloading"))
        with self._storage_errors():
            check_digests(self._new, self._written)
            verification, params = reload_and_compare(
                self._loaded, self.candidate, self._export_format, self._new
            )
        self._verification = dataclasses.replace(verification, weights=len(self._written.digests))
        self._params = params

    def publish(self, facts: Mapping[str, Json] | None = None) -> Exported:
        """Write card and manifest, and move the verified checkpoint to its destination.

        Args:
            facts: see `export`.

        Raises:
            RunError: something else was put there in the meantime. It stays, and the message names
                the folder that the export is in.
        """
        exported = Exported(
            self._out,
            self.candidate,
            self._export_format,
            self._params,
            self._written.nbytes,
            self._verification,
            self._changed,
        )
        digests, unread = self._written.digests, self._layout.unread
        with self._storage_errors():
            manifest.write(self._new, self._loaded, exported, digests, unread, facts or {})
            sync_tree(self._new)
            if self._replace and not manifest.foreign_files(self._place):
                replace_folder(self._new, self._place, self._scratch)
            else:
                place_folder(self._new, self._place)
        return exported

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Raise a `StorageError` for a file that cannot be written."""
        try:
            with foreign_writer():
                yield
        except OSError as error:
            raise StorageError(cannot_write(self._out, error)) from None


def check_export_format(
    config: PretrainedConfig, candidate: LayerSubset, export_format: str | None
) -> None:
    """Refuse a candidate that cannot be written in a format, before any work is done.

    Raises:
        InputError: the format is unknown, it cannot express the candidate, or the model is
        quantised.
    """
    chosen = default_format(candidate)
    if export_format is not None:
        chosen = checkpoint_format(export_format)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(
            "the weights are quantised: export the unquantised model and quantise the result"
        )
    chosen.check(config, candidate)
    # Fails if no config can describe the kept blocks.
    edits(settings_of(config), architecture_of(config).count, candidate.kept)


def check_destination(out: Path) -> None:
    """Refuse a destination that holds something or cannot be written, before any work is done.

    Raises:
        StorageError: the destination is a file or a folder that is not empty, or nothing can be
            written there.
    """
    check_writable(out)
    if out.exists() and any(out.iterdir()):
        raise StorageError(
            f"`out` {str(out)!r} is not empty: choose a new folder, or empty it first"
        )
    if out.is_mount() or out.resolve() == Path.cwd():
        raise StorageError(
            f"`out` {str(out)!r} is a folder that cannot be renamed: name a new folder inside it"
        )
