"""Export of a candidate as a checkpoint.

The weights are copied from the dense checkpoint's files to the new files, without building a model.
The new checkpoint is written next to the destination, reloaded, compared and synced. Only then it
is renamed into place. So the destination either holds a complete, verified checkpoint or nothing
new.
"""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from prunesearch import events
from prunesearch.cache.location import check_writable
from prunesearch.candidate import LayerSubset
from prunesearch.errors import (
    InputError,
    ModelError,
    StorageError,
    VerificationError,
    one_line,
)
from prunesearch.export import manifest
from prunesearch.export.atomic import (
    cannot_write,
    foreign_writer,
    place_folder,
    replace_folder,
    scratch_beside,
    sync_tree,
)
from prunesearch.export.companions import companions, copy_companions, without_code
from prunesearch.export.config_file import ConfigFile, edited_file
from prunesearch.export.formats.registry import REGISTRY, checkpoint_format
from prunesearch.export.layout import Layout, layout_of
from prunesearch.export.results import Exported, Verification
from prunesearch.export.verification import Expected, compare, compare_streamed, expected_streamed
from prunesearch.export.writer import (
    MAX_SHARD,
    Written,
    digest,
    write_cast,
    write_shards,
)
from prunesearch.models.config_edits import edits
from prunesearch.models.guard import guarded, guarded_writing
from prunesearch.models.handover import unchanged_by
from prunesearch.models.loading import LoadedModel, refuse_incomplete
from prunesearch.models.safetensors_files import (
    Stored,
    misplaced,
    tensors_in,
    tensors_of,
)
from prunesearch.models.streaming import open_streamed, set_aside
from prunesearch.models.structure import (
    architecture_of,
    input_device,
    meta_model,
    settings_of,
)
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import Json

_SHORT_OF_MEMORY = "where memory is short, export with `offload` disk"


def export(
    loaded: LoadedModel,
    candidate: LayerSubset,
    out: Path,
    facts: Mapping[str, Json] | None = None,
    *,
    export_format: str = "plain",
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
            formats are for dropped sublayers.
        changed: changes that were made to the weights in memory, such as ``compensated``. If there
            are any, the weights in memory are written instead of those in the files.
        replace: replace an earlier export at `out`, once the new one is verified.
        max_shard: bytes of the largest weight file.

    Raises:
        InputError: the candidate cannot be written in this form.
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
        InputError: the candidate cannot be written in this form.
        StorageError: `out` is not empty or cannot be written.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        candidate: LayerSubset,
        out: Path,
        *,
        export_format: str = "plain",
        changed: Sequence[str] = (),
        replace: bool = False,
        max_shard: int = MAX_SHARD,
    ) -> None:
        # Refuse what cannot succeed before any work is done.
        check_export_format(loaded.model.config, candidate, export_format)
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
        with self._failures():
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
        with self._failures():
            self._written, self._layout = _write(
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
        with self._failures():
            _check_digests(self._new, self._written)
            verification, params = _reload_and_compare(
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
        with self._failures():
            manifest.write(self._new, self._loaded, exported, digests, unread, facts or {})
            sync_tree(self._new)
            if self._replace and not manifest.foreign_files(self._place):
                replace_folder(self._new, self._place, self._scratch)
            else:
                place_folder(self._new, self._place)
        return exported

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise a `StorageError` for a file that cannot be written."""
        try:
            with foreign_writer():
                yield
        except OSError as error:
            raise StorageError(cannot_write(self._out, error)) from None


def check_export_format(
    config: PretrainedConfig, candidate: LayerSubset, export_format: str
) -> None:
    """Refuse a candidate that cannot be written in a form, before any work is done.

    Raises:
        InputError: the format is unknown, it cannot express the candidate, or the model is
        quantised.
    """
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


def write_checkpoint(
    stored: Mapping[str, Stored],
    config: PretrainedConfig,
    file: ConfigFile,
    candidate: LayerSubset,
    out: Path,
    export_format: str = "plain",
    max_shard: int = MAX_SHARD,
    trust_remote_code: bool = False,
) -> tuple[Written, Layout]:
    """Write the config and the weights of a candidate in safetensors, without verifying them.

    Args:
        stored: tensors of the dense checkpoint by name.
        config: config of the dense model.
        file: config file to edit.
        candidate: candidate of the dense model.
        out: folder to write into.
        export_format: name of an export format.
        max_shard: bytes of the largest weight file.
        trust_remote_code: build the model with code that ships with it.

    Raises:
        ModelError: the checkpoint is damaged, or no config can describe the kept blocks.
        OSError: the checkpoint cannot be read, or `out` cannot be written.
    """
    # Plan the tensors. Dropped sublayers of kept blocks are zeroed or left out, as the form
    # demands.
    chosen = REGISTRY.get(export_format)
    model = meta_model(config, trust_remote_code)
    silent = LayerSubset(candidate.n_layers, (), candidate.attention, candidate.mlp)
    layout = layout_of(
        model,
        stored,
        candidate,
        zeroed=chosen.zeroed_parameters(model, silent),
        dropped=chosen.left_out_parameters(model, silent),
    )
    # The config comes first: it fails early if it cannot describe the candidate.
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else model.dtype
    edited = edited_file(file, config, candidate, dtype)
    chosen.write_config(edited, config, candidate, out)
    return write_shards(layout.entries, out, max_shard), layout


def _write(
    loaded: LoadedModel,
    candidate: LayerSubset,
    export_format: str,
    new: Path,
    dense: Path,
    max_shard: int,
    changed: Sequence[str],
) -> tuple[Written, Layout]:
    """Write everything but the manifest.

    Weights that are not stored in safetensors, or not in the dtype in which they were scored, are
    first written to such a checkpoint.

    Args:
        loaded: dense model.
        candidate: candidate of the dense model.
        export_format: name of an export format.
        new: folder to write into.
        dense: folder for a temporary copy of the dense checkpoint.
        max_shard: bytes of the largest weight file.
        changed: changes that were made to the weights in memory.
    """
    config, source = loaded.model.config, loaded.source
    stored: dict[str, Stored] = {}
    if source.safetensors:
        stored = tensors_of(source.weights)
    stored_as_scored = bool(stored) and _precision(stored) == loaded.model.dtype
    copy_companions(loaded, new, own_type=REGISTRY.get(export_format).own_code)
    file = ConfigFile.of(config) if source.folder is None else ConfigFile.read(source.folder)
    # Make a temporary copy of the dense weights if the stored ones are not those that were scored.
    if not stored_as_scored and loaded.layers.streamed_once:
        write_cast(loaded.model, stored, dense)
        stored = tensors_in(dense)
    elif not stored_as_scored or changed:
        with guarded_writing("the model in memory"), unchanged_by("transformers", loaded.model):
            loaded.model.save_pretrained(dense)
        stored = tensors_in(dense)
        file = file.of_part(config, type(loaded.model).__name__)
    # An export does not name code that the user did not trust.
    if not loaded.trusted:
        file = file.with_values(without_code(dict(file.values)))
    try:
        return write_checkpoint(
            stored, config, file, candidate, new, export_format, max_shard, loaded.trusted
        )
    finally:
        shutil.rmtree(dense, ignore_errors=True)


def _precision(stored: Mapping[str, Stored]) -> torch.dtype:
    """Return the dtype in which most of the bytes are stored."""
    nbytes: Counter[torch.dtype] = Counter()
    for place in stored.values():
        nbytes[place.dtype] += place.nbytes
    return max(nbytes, key=lambda dtype: nbytes[dtype], default=torch.float32)


def _check_digests(folder: Path, written: Written) -> None:
    """Read the new files again, and compare them with the index and the digests of their sources.

    Raises:
        VerificationError: a tensor is not where the index says, or its content is not that of its
            source.
    """
    stored = tensors_in(folder)
    if (wrong := misplaced(folder)) is not None:
        raise VerificationError(
            f"tensor {wrong} is not in the file where the index says: the export was not kept"
        )
    for name, expected in written.digests.items():
        stopping.check()
        if name not in stored or digest(stored[name]) != expected:
            raise VerificationError(
                f"the written tensor {name} is not what was read: the export was not kept"
            )


def _reload_and_compare(
    loaded: LoadedModel, candidate: LayerSubset, export_format: str, folder: Path
) -> tuple[Verification, int]:
    """Reload a new checkpoint, and compare it with the candidate.

    Returns:
        The verification, and the number of parameters of the reloaded model.
    """
    # A streamed model and its export do not fit into memory together, so one is closed before the
    # other opens.
    if loaded.layers.streamed_once:
        if not REGISTRY.get(export_format).streamed:
            raise InputError(
                f"`export_format` {export_format} is verified in memory: leave out `offload`"
            )
        expected = expected_streamed(loaded, candidate)
        device = str(input_device(loaded.model))
        with set_aside(loaded):
            return _reopen_and_compare(expected, folder, device, loaded.trusted)
    model = reload(folder, loaded.model, REGISTRY.get(export_format).own_code or loaded.trusted)
    verification = compare(loaded.model, candidate, model, loaded.tokenizer)
    return verification, sum(p.numel() for p in model.parameters())


def _reopen_and_compare(
    expected: Expected, folder: Path, device: str, trusted: bool
) -> tuple[Verification, int]:
    """Open a streamed checkpoint, and compare it.

    The checkpoint is closed when this function returns.
    """
    found = open_streamed(str(folder), device=device, trust_remote_code=trusted)
    return compare_streamed(expected, found), found.sizes.params()


def reload(
    folder: Path, beside: PreTrainedModel | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a checkpoint as any user would.

    Args:
        folder: folder of the checkpoint.
        beside: model in memory whose device is used.
        trust_remote_code: run code that ships with the checkpoint.

    Raises:
        VerificationError: the checkpoint does not load, or some of its weights are missing.
    """
    # A model that is spread over several devices is compared with one that is spread as well.
    devices = set(getattr(beside, "hf_device_map", {}).values())
    spread = {"device_map": "auto"} if len(devices) > 1 else {}
    try:
        with guarded(
            "the export could not be reloaded",
            folder,
            advice=_SHORT_OF_MEMORY,
            kind=VerificationError,
        ):
            reloaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, trust_remote_code=trust_remote_code, **spread
            )
        found, report = reloaded
        refuse_incomplete(folder.name, report)
        if beside is not None and not spread:
            found.to(input_device(beside))
    except ModelError as error:
        raise VerificationError(f"the export is not complete: {one_line(error)}") from None
    except RuntimeError as error:  # raised by torch when memory runs out
        raise VerificationError(
            f"the export could not be reloaded: {one_line(error)}; {_SHORT_OF_MEMORY}"
        ) from None
    model: PreTrainedModel = found.eval()
    return model
