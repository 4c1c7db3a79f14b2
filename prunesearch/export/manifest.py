"""The files that describe an export: the manifest, the verification and the model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import transformers
import xxhash

from prunesearch.candidate import LayerSubset
from prunesearch.errors import StorageError
from prunesearch.export import card
from prunesearch.export.channel_order_file import write_order
from prunesearch.export.formats.registry import narrows
from prunesearch.export.results import Exported
from prunesearch.models.loading import LoadedModel
from prunesearch.models.reordering import order_of
from prunesearch.models.weight_files import INDEX
from prunesearch.runtime.json_values import Json, JsonObject, to_json
from prunesearch.runtime.version import __version__
from prunesearch.widths.layer_widths import LayerWidths

MANIFEST = "prunesearch.json"
REPORT = "verification.json"
_LOOKED_AT_OTHERWISE = ("config.json", INDEX, "README.md", MANIFEST, REPORT)


def write(
    folder: Path,
    loaded: LoadedModel,
    exported: Exported,
    digests: Mapping[str, str],
    unread: Sequence[str],
    facts: Mapping[str, Json],
) -> None:
    """Write the manifest, the verification and the model card.

    Args:
        folder: folder of the export.
        loaded: base model.
        exported: finished export.
        digests: digest of each tensor.
        unread: stored tensors that were left out because the model does not read them.
        facts: facts about the candidate (recipe, metrics).
    """
    candidate, check = exported.candidate, exported.verification
    order = order_of(loaded.model)
    if narrows(candidate):
        assert order is not None, "the candidate was compared with the order of the model"
        write_order(folder, order)
    versions = {"prunesearch": __version__, "transformers": transformers.__version__}
    report: JsonObject = {
        **asdict(check),
        "versions": versions,
        "digests": dict(digests),
        "files": _digests(folder),
    }
    _write_json(folder / REPORT, report)
    (folder / "README.md").write_text(
        card.text_of(loaded, exported, facts, MANIFEST, REPORT), encoding="utf-8"
    )
    _write_json(
        folder / MANIFEST,
        {
            "base_model": card.base_name(loaded),
            "base_revision": loaded.source.revision,
            "base_commit": loaded.source.commit,
            "base_fingerprint": loaded.fingerprint,
            "base_layers": candidate.n_layers,
            "dropped": candidate.text,
            **_of_widths(candidate),
            "form": exported.export_format,
            "own_code": card.own_code(loaded, exported.export_format),
            "changed": list(exported.changed),
            "params": exported.params,
            "bytes": exported.bytes,
            "left_out": list(unread),
            "verification": to_json(check),
            "files": _sizes(folder),
            **facts,
        },
    )


def _of_widths(candidate: LayerSubset) -> JsonObject:
    """Return what the manifest says of narrow layers beside their widths."""
    if not isinstance(candidate, LayerWidths) or not narrows(candidate):
        return {}
    criterion = candidate.order.rpartition("-")[0]
    return {"order": candidate.order, "criterion": criterion, "biases": candidate.biases}


def file_digest(path: Path) -> str:
    """Return the xxh3-128 digest of a small file.

    Raises:
        OSError: the file cannot be read.
    """
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def _digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file whose changes affect neither logits nor weights.

    These are the tokenizer, the chat template, the licence and code. The model card is left out,
    because people edit it.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix != ".safetensors" and name not in _LOOKED_AT_OTHERWISE:
            found[name] = file_digest(path)
    return found


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file except the manifest, by its path inside the folder."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            sizes[str(path.relative_to(folder))] = path.lstat().st_size
    sizes.pop(MANIFEST, None)
    return sizes


def foreign_files(folder: Path) -> list[str]:
    """Return the files of an export's folder that the export did not write, or that have changed
    since.
    """
    try:
        written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return [name for name, size in _sizes(folder).items() if written.get(name) != size]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # Without a readable manifest it is not known which files were written.
        return [MANIFEST]


def check_replaceable(folder: Path) -> None:
    """Refuse to replace an export if the user has added or changed a file in its folder.

    Raises:
        StorageError: a file was added or changed.
    """
    if foreign := foreign_files(folder):
        raise StorageError(
            f"{str(folder)!r} would be replaced, and it holds {foreign[0]!r}, which this version "
            f"did not write: "
            "move the folder away"
        )


def _write_json(path: Path, document: Mapping[str, Json]) -> None:
    """Write a JSON document with sorted keys."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
