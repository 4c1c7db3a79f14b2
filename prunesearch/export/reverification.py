"""Verification of an existing export, at any time and on any machine."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, VerificationError, one_line
from prunesearch.export.channel_order_file import read_order
from prunesearch.export.formats.registry import REGISTRY
from prunesearch.export.manifest import MANIFEST, REPORT, file_digest
from prunesearch.export.reloading import reload
from prunesearch.export.results import Recheck, Reference
from prunesearch.export.verification import compare, matches
from prunesearch.export.writer import digest
from prunesearch.models.guard import guarded
from prunesearch.models.loading import LoadedModel
from prunesearch.models.reordering import reorder
from prunesearch.models.safetensors_files import misplaced, tensors_in
from prunesearch.models.source import refuse_adapter
from prunesearch.models.width_shape import width_shape_of
from prunesearch.runtime.json_values import Json, JsonObject, as_int, as_list, as_object
from prunesearch.widths.layer_widths import LayerWidths

_MANIFEST = ("form", "base_model", "base_fingerprint", "base_layers", "dropped")
_REPORT = ("digests", "reference")


def recheck(
    folder: Path, base: LoadedModel | None = None, trust_remote_code: bool = False
) -> Recheck:
    """Verify an export: its files, the digests of its weights, its loading, and its output.

    Args:
        folder: folder of the export.
        base: dense model, for a full comparison. Without it the output is compared with the logits
            that were stored at the export.
        trust_remote_code: run code that ships with the export.

    Raises:
        InputError: the folder is not an export, it needs its own code, or `base` is another model.
        VerificationError: the export has changed.
    """
    # Refuse what cannot be verified.
    manifest, report = _read(folder / MANIFEST, _MANIFEST), _read(folder / REPORT, _REPORT)
    refuse_adapter(folder, str(folder))
    export_format, dropped = str(manifest["form"]), str(manifest["dropped"])
    if (REGISTRY.get(export_format).own_code or manifest.get("own_code")) and not trust_remote_code:
        raise InputError(
            f"{str(folder)!r} (export format {export_format}) runs code that it brings along: "
            "add `trust_remote_code`"
        )
    # Compare the files with the report. Reports of older exports have no digests of small files.
    with _using(folder / REPORT):
        digests = _digests_in(report["digests"])
        _check_weights(folder, digests)
        _check_files(folder, _digests_in(report.get("files", {})))
    # Compare the output with the stored one.
    model = reload(folder, base.model if base else None, trust_remote_code)
    with _using(folder / REPORT):
        reference = Reference.from_json(as_object(report["reference"], "reference"))
        difference = matches(model, reference)
    # Compare the output with that of the candidate.
    against_base = None
    if base is not None:
        if changed := manifest.get("changed"):
            words = [str(change) for change in as_list(changed, "changed")]
            raise InputError(
                f"the weights of {str(folder)!r} were {' and '.join(words)}, so they "
                "are no longer the base model's: leave out `base`"
            )
        if base.fingerprint != manifest["base_fingerprint"]:
            raise InputError(
                f"{base.name!r} is not the model that {str(folder)!r} was made from: its weights "
                f"differ"
            )
        with _using(folder / MANIFEST):
            candidate = _candidate(folder, manifest, base)
        against_base = compare(base.model, candidate, model, base.tokenizer)
    return Recheck(
        folder=folder,
        base_model=str(manifest["base_model"]),
        dropped=dropped,
        export_format=export_format,
        weights=len(digests),
        difference=difference,
        against_base=against_base,
    )


def _candidate(folder: Path, manifest: JsonObject, base: LoadedModel) -> LayerSubset:
    """Return the candidate of an export. The channels of the base model are put in its order.

    Raises:
        VerificationError: the channel order is missing or damaged.
    """
    text, layers = str(manifest["dropped"]), as_int(manifest["base_layers"], "base_layers")
    if "order" not in manifest:
        return LayerSubset.parse(text, layers)
    order = read_order(folder, str(manifest["order"]))
    reorder(base.model, order)
    return LayerWidths.read(text, width_shape_of(base.model), order.digest, order.biases)


def _digests_in(value: Json) -> dict[str, str]:
    """Return the digests in a report, by the name of the tensor or file."""
    return {name: str(text) for name, text in as_object(value, "digests").items()}


def _using(report: Path) -> AbstractContextManager[None]:
    """Turn any error that a damaged report causes into a failed verification."""
    return guarded(f"{str(report)!r} is damaged", kind=VerificationError, advice="export again")


def _check_files(folder: Path, digests: dict[str, str]) -> None:
    """Compare the small files with their digests.

    Raises:
        VerificationError: a file is missing or has changed.
    """
    for name, expected in digests.items():
        path = folder / name
        if not path.is_file():
            raise VerificationError(
                f"{str(path)!r} is missing, and was there after the export: put it back"
            )
        if file_digest(path) != expected:
            raise VerificationError(
                f"{str(path)!r} has changed since the export: put it back, or export again"
            )


def _read(path: Path, needed: Sequence[str]) -> JsonObject:
    """Read the manifest or the report of an export.

    Args:
        path: path of the file.
        needed: keys that the file must have.

    Raises:
        InputError: the file is missing.
        VerificationError: the file is damaged.
    """
    try:
        document: Json = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"{str(path.parent)!r} holds no {path.name}: it is not an export of prunesearch"
        ) from None
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{str(path)!r} is damaged: {one_line(error)}") from None
    if not isinstance(document, dict):
        raise VerificationError(f"{str(path)!r} is damaged: it does not say {needed[0]}")
    for name in needed:
        if name not in document:
            raise VerificationError(f"{str(path)!r} is damaged: it does not say {name}")
    return document


def _check_weights(folder: Path, digests: dict[str, str]) -> None:
    """Compare the weights with their digests.

    Raises:
        VerificationError: a tensor is missing, was added or has changed, or it is not where the
            index says.
    """
    stored = tensors_in(folder)
    if (wrong := misplaced(folder)) is not None:
        raise VerificationError(
            f"tensor {wrong} is not in the file where the index says: export again"
        )
    if missing := sorted(set(digests) ^ set(stored)):
        raise VerificationError(
            f"the export has other tensors than were written, the first is {missing[0]}"
        )
    for name, expected in digests.items():
        if digest(stored[name]) != expected:
            raise VerificationError(
                f"tensor {name} in {stored[name].path.name} is not what was written: export again"
            )
