"""Exporting a candidate as a checkpoint.

The weights go from the dense checkpoint's files to the new ones without a model being built. All is written beside the
destination, reloaded, compared, synced and only then renamed into place: it is complete and verified, or not there.
"""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from prunesearch import events, stopping
from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError, StorageError, UnknownNameError, VerificationError, one_line
from prunesearch.export import manifest, sublayers
from prunesearch.export.atomic import cannot_write, place_folder, replace_folder, scratch_beside, sync_tree
from prunesearch.export.companions import companions, copy_companions, without_code
from prunesearch.export.config_file import ConfigFile, edited_file
from prunesearch.export.layout import Layout, layout_of
from prunesearch.export.verification import Expected, Verification, compare, compare_streamed, expected_streamed
from prunesearch.export.writer import MAX_SHARD, Written, digest, write_cast, write_shards
from prunesearch.model.anatomy import family_of, input_device, settings_of, skeleton
from prunesearch.model.checkpoint import Stored, misplaced, tensors_in, tensors_of
from prunesearch.model.fields import edits
from prunesearch.model.guard import guarded, guarded_writing
from prunesearch.model.handover import unchanged_by
from prunesearch.model.loading import LoadedModel, refuse_incomplete
from prunesearch.model.streaming import open_streamed, set_aside
from prunesearch.model.surgery import check_removable
from prunesearch.store.places import check_writable

FORMS = ("plain", "zeroed", "deci", "remote-code")
"""How a candidate can be written; see `sublayers`."""

_SHORT_OF_MEMORY = "where memory is short, export with --weights stream"


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        form: one of `FORMS`.
        params, bytes: of the checkpoint as it is loaded, and of its weight files.
        changed: what was done to the weights before they were written; empty: they are the base model's.
    """

    folder: Path
    candidate: LayerSubset
    form: str
    params: int
    bytes: int
    verification: Verification
    changed: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "folder": str(self.folder),
            "dropped": self.candidate.text,
            "form": self.form,
            "params": self.params,
            "bytes": self.bytes,
            "verification": self.verification.document(),
        }


def export(
    loaded: LoadedModel,
    candidate: LayerSubset,
    out: Path,
    facts: Mapping[str, Any] | None = None,
    *,
    form: str = "plain",
    changed: Sequence[str] = (),
    replace: bool = False,
    max_shard: int = MAX_SHARD,
) -> Exported:
    """Write the candidate: weights, config, tokenizer, chat template, model card, manifest, verification.

    Args:
        facts: what is known of the candidate (recipe, metrics); kept in the manifest and shown on the card.
        form: ``plain``: the blocks are gone, any program loads it; the others are for dropped sublayers.
        changed: what was done to the weights in memory, as ``compensated``; then these are written, not the files'.
        replace: an earlier export at `out` gives way, after the new one was verified.
        max_shard: bytes of the largest weight file.

    Raises:
        InputError: the candidate cannot be written in this form.
        StorageError: `out` is not empty or cannot be written.
        VerificationError: the reloaded checkpoint does not equal the candidate.
        RunError: something was put at `out` meanwhile. It stays, and the export has another name, which is said.
    """
    check_form(loaded.model.config, candidate, form)
    companions(loaded)
    replace = replace and (out / manifest.MANIFEST).is_file()
    if replace:
        manifest.check_replaceable(out)
    else:
        check_destination(out)
    place = out.resolve()  # a link to a folder stays, and the folder is filled
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(place) as scratch:
            new = scratch / "new" / place.name
            new.mkdir(parents=True)
            events.tell(f"writing the checkpoint to {out}")
            written, layout = _write(loaded, candidate, form, new, scratch / "dense", max_shard, changed)
            events.tell("verifying it: files, then its logits after reloading")
            _check_digests(new, written)
            verification, params = _reload_and_compare(loaded, candidate, form, new)
            verification = dataclasses.replace(verification, weights=len(written.digests))
            exported = Exported(out, candidate, form, params, written.nbytes, verification, tuple(changed))
            manifest.write(new, loaded, exported, written.digests, layout.unread, facts or {})
            sync_tree(new)
            if replace and not manifest.foreign_files(place):
                replace_folder(new, place, scratch)
            else:
                place_folder(new, place)
    except OSError as error:
        raise StorageError(cannot_write(out, error)) from None
    return exported


def check_form(config: PretrainedConfig, candidate: LayerSubset, form: str) -> None:
    """Refuse what cannot be written, before any work is done.

    Raises:
        InputError: an unknown form, a candidate that it has no place for, or a quantised model.
    """
    if form not in FORMS:
        raise UnknownNameError("form of export", form, FORMS)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError("the weights are quantised: export the unquantised model and quantise the result")
    if form == "plain":
        check_removable(candidate)
    else:
        sublayers.check(config, candidate, form)
    edits(settings_of(config), family_of(config).count, candidate.kept)


def check_destination(out: Path) -> None:
    """Refuse a destination that holds something or cannot be written, before any work is done.

    Raises:
        StorageError: it is a file, a folder that is not empty, or nothing can be written there.
    """
    check_writable(out)
    if out.exists() and any(out.iterdir()):
        raise StorageError(f"--out {str(out)!r} is not empty: choose a new folder, or empty it first")
    if out.is_mount() or out.resolve() == Path.cwd():
        raise StorageError(f"--out {str(out)!r} is a folder that cannot be renamed: name a new folder inside it")


def write_checkpoint(
    stored: Mapping[str, Stored],
    config: PretrainedConfig,
    file: ConfigFile,
    candidate: LayerSubset,
    out: Path,
    form: str = "plain",
    max_shard: int = MAX_SHARD,
    trust_remote_code: bool = False,
) -> tuple[Written, Layout]:
    """Write config and weights of a candidate of a dense checkpoint in safetensors; nothing is verified.

    Args:
        stored: the dense checkpoint's tensors.
        config: of the dense model.
        file: the config file that is edited.
        trust_remote_code: the model may be built with code that ships with it.

    Raises:
        ModelError: the checkpoint is damaged, or no config says what would be left.
        OSError: it cannot be read, or `out` not written.
    """
    model = skeleton(config, trust_remote_code)
    silent = LayerSubset(candidate.n_layers, (), candidate.attention, candidate.mlp)
    layout = layout_of(
        model,
        stored,
        candidate,
        zeroed=sublayers.zeroed_parameters(model, silent, form),
        dropped=sublayers.dropped_parameters(model, silent, form),
    )
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else model.dtype
    edited = edited_file(file, config, candidate, dtype)
    sublayers.write_config(edited, config, candidate, form, out)
    return write_shards(layout.entries, out, max_shard), layout


def _write(
    loaded: LoadedModel,
    candidate: LayerSubset,
    form: str,
    new: Path,
    dense: Path,
    max_shard: int,
    changed: Sequence[str],
) -> tuple[Written, Layout]:
    """Write all but the manifest; weights that are in no safetensors, or not as scored, are stored as such first."""
    config, source = loaded.model.config, loaded.source
    stored = tensors_of(source.weights) if source.safetensors else {}
    stored_as_scored = bool(stored) and _precision(stored) == loaded.model.dtype
    copy_companions(loaded, new, own_type=sublayers.trusts(form))
    file = ConfigFile.of(config) if source.folder is None else ConfigFile.read(source.folder)
    if not stored_as_scored and loaded.layers.one_pass:
        write_cast(loaded.model, stored, dense)
        stored = tensors_in(dense)
    elif not stored_as_scored or changed:
        with guarded_writing("the model in memory"), unchanged_by("transformers", loaded.model):
            loaded.model.save_pretrained(dense)
        stored = tensors_in(dense)
        file = file.of_part(config, type(loaded.model).__name__)
    if not loaded.trusted:
        file = file.with_values(without_code(dict(file.values)))
    try:
        return write_checkpoint(stored, config, file, candidate, new, form, max_shard, loaded.trusted)
    finally:
        shutil.rmtree(dense, ignore_errors=True)


def _precision(stored: Mapping[str, Stored]) -> torch.dtype:
    """In which type most of the bytes are stored."""
    nbytes: Counter[torch.dtype] = Counter()
    for place in stored.values():
        nbytes[place.dtype] += place.nbytes
    return max(nbytes, key=lambda dtype: nbytes[dtype], default=torch.float32)


def _check_digests(folder: Path, written: Written) -> None:
    """Read the new files again: each tensor must be where the index says and hold what its source held.

    Raises:
        VerificationError: one does not.
    """
    stored = tensors_in(folder)
    if (wrong := misplaced(folder)) is not None:
        raise VerificationError(f"tensor {wrong} is not in the file where the index says: the export was not kept")
    for name, expected in written.digests.items():
        stopping.check()
        if name not in stored or digest(stored[name]) != expected:
            raise VerificationError(f"the written tensor {name} is not what was read: the export was not kept")


def _reload_and_compare(
    loaded: LoadedModel, candidate: LayerSubset, form: str, folder: Path
) -> tuple[Verification, int]:
    if loaded.layers.one_pass:
        if form in ("deci", "remote-code"):
            raise InputError(f"--as {form} is verified in memory: leave out --weights")
        expected, device = expected_streamed(loaded, candidate), str(input_device(loaded.model))
        with set_aside(loaded):
            return _reopen_and_compare(expected, folder, device, loaded.trusted)
    model = reload(folder, loaded.model, sublayers.trusts(form) or loaded.trusted)
    return compare(loaded.model, candidate, model, loaded.tokenizer), sum(p.numel() for p in model.parameters())


def _reopen_and_compare(expected: Expected, folder: Path, device: str, trusted: bool) -> tuple[Verification, int]:
    """Nothing of the opened checkpoint is left behind this."""
    found = open_streamed(str(folder), device=device, trust_remote_code=trusted)
    return compare_streamed(expected, found), found.sizes.params()


def reload(folder: Path, beside: PreTrainedModel | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a checkpoint as any user would.

    Args:
        beside: a model that is in memory, on whose device it goes.

    Raises:
        VerificationError: it does not load, or not all of its weights.
    """
    spread = {"device_map": "auto"} if len(set(getattr(beside, "hf_device_map", {}).values())) > 1 else {}
    try:
        with guarded("the export could not be reloaded", folder, advice=_SHORT_OF_MEMORY, kind=VerificationError):
            reloaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, trust_remote_code=trust_remote_code, **spread
            )
        found, report = reloaded
        refuse_incomplete(folder.name, report)
        if beside is not None and not spread:
            found.to(input_device(beside))
    except ModelError as error:
        raise VerificationError(f"the export is not complete: {one_line(error)}") from None
    except RuntimeError as error:  # torch: out of memory
        raise VerificationError(f"the export could not be reloaded: {one_line(error)}; {_SHORT_OF_MEMORY}") from None
    model: PreTrainedModel = found.eval()
    return model
