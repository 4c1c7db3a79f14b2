"""Copies of the base model's small files.

These are the tokenizer, chat templates, generation settings, processors, the licence and trusted
code. They are copied unchanged. They are recognised by their kind and not by a list of names,
because publishers use names of their own. Every text or tokenizer file of the base's folder is
copied, unless it describes other weights or a training run. Weights in other formats, hidden files,
keys, data and pictures are not copied.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from prunesearch.errors import ModelError
from prunesearch.export.config_file import json_text
from prunesearch.models.guard import guarded_writing
from prunesearch.models.loading import LoadedModel
from prunesearch.models.source import SMALL_KINDS
from prunesearch.runtime.json_values import Json, JsonObject

LARGEST = 128 * 2**20
"""Bytes of the largest companion.

Tokenizers have up to 40 MB, so a larger file of these kinds is data.
"""
_ALWAYS = re.compile(
    r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|generation_config)"
)
_LEGAL = re.compile(
    r"licen[sc]e|notice|copying|copyright|policy|terms|patents|authors|attribution|acknowledg", re.I
)
_LEGAL_KINDS = frozenset(("", ".txt", ".md", ".rst", ".html", ".pdf"))
_CODE_KINDS = frozenset(".py .pyc .pyd .so .dll .pkl .pickle .sh".split())
_TEMPLATES = ("additional_chat_templates", "chat_templates")
_WRITTEN_ANEW = re.compile(
    r"config\.json|readme(\.\w+)?|prunesearch\.json|verification\.json", re.I
)
_OF_OTHER_WEIGHTS = re.compile(r".*\.index\.json|params\.json|adapter_.*|quant(ize)?_config\.json")
_OF_A_TRAINING = re.compile(
    r"trainer_.*|training_.*|.*_results\.json|optimizer.*|scheduler.*|rng_state.*"
)
_WITH_CODE = "config.json"
_NAMES_CODE = ("auto_map", "custom_pipelines")
"""Config fields that name code which `transformers` would run."""


def companions(loaded: LoadedModel) -> list[Path]:
    """Return the base model's small files that belong into an export.

    Raises:
        ModelError: a file is a link to a file outside the model's folder, which may be private.
    """
    folder = _folder_of(loaded)
    if folder is None:
        return []
    if loaded.source.gguf is None:
        found = companions_of(folder, code=loaded.trusted)
    else:
        # A GGUF file contains its tokenizer, so only the licence lies next to it.
        found = sorted(path for path in folder.iterdir() if _is_legal(path.name) and path.is_file())
    # In the Hugging Face cache, the files are links into a folder of blobs.
    own = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        own.append(folder.resolve().parent.parent / "blobs")
    for path in found:
        if not any(path.resolve().is_relative_to(place) for place in own):
            raise ModelError(
                f"{str(path)!r} is a link to a file outside the model's folder and is not copied "
                f"into an export: "
                "put the file itself there, or delete the link"
            )
    return found


def companions_of(folder: Path, *, code: bool) -> list[Path]:
    """Return the small files of a checkpoint's folder that belong to the model.

    Args:
        folder: folder of the checkpoint.
        code: include Python files, also those in subfolders.
    """
    found = [path for path in folder.iterdir() if is_companion(path.name)]
    for name in _TEMPLATES:
        found += (folder / name).glob("*")
    if code:
        for path in folder.rglob("*.py"):
            if not _is_hidden(path.relative_to(folder)):
                found.append(path)
    return sorted(path for path in found if path.is_file() and path.stat().st_size <= LARGEST)


def is_companion(name: str) -> bool:
    """Return whether a file at the top of a checkpoint's folder belongs to the model.

    Weights and code do not count.

    Args:
        name: name of the file.
    """
    kind = Path(name).suffix.lower()
    if name.startswith(".") or kind in _CODE_KINDS or _WRITTEN_ANEW.fullmatch(name):
        return False
    if _ALWAYS.match(name) or _is_legal(name):
        return True
    return (
        kind in SMALL_KINDS
        and not _OF_OTHER_WEIGHTS.fullmatch(name)
        and not _OF_A_TRAINING.fullmatch(name)
    )


def _is_legal(name: str) -> bool:
    """Return whether a file is a licence: ``LICENSE``, ``COPYING.LESSER``,
    ``MODEL_LICENSE.txt``.
    """
    kind = Path(name).suffix.lower()
    return bool(_LEGAL.search(name)) and (kind in _LEGAL_KINDS or name.split(".")[0].isupper())


def copy_companions(loaded: LoadedModel, out: Path, *, own_type: bool) -> None:
    """Copy the base model's small files unchanged, and write those that have no file from memory.

    Code is copied only if the user trusts it. Otherwise the copied configs no longer name it.

    Args:
        loaded: base model.
        out: folder of the export.
        own_type: True if the export has a model type of its own, for which no program knows the
            tokenizer.
    """
    folder = _folder_of(loaded)
    for path in companions(loaded):
        assert folder is not None
        target = out / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if not loaded.trusted and target.name.endswith(_WITH_CODE):
            _drop_code(target)
    # A model from memory or from a GGUF file has no tokenizer files.
    no_files = loaded.source.folder is None
    if no_files or (own_type and not (out / "tokenizer_config.json").exists()):
        with guarded_writing("the tokenizer"):
            loaded.tokenizer.save_pretrained(out)
        _name_tokenizer_for_older_programs(out / "tokenizer_config.json")
    if no_files and loaded.model.generation_config is not None:
        with guarded_writing("the generation config"):
            loaded.model.generation_config.save_pretrained(out)


def _folder_of(loaded: LoadedModel) -> Path | None:
    """Return the folder of a model's files; None for a model that was made in memory."""
    gguf = loaded.source.gguf
    return loaded.source.folder if gguf is None else gguf.parent


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _drop_code(path: Path) -> None:
    """Remove references to code from a config file.

    A file without such references is not rewritten.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        # A program that reads this file refuses it too.
        return
    without = _without_code(document)
    if without != document:
        path.write_text(json_text(without, 2) + "\n", encoding="utf-8")


def without_code(config: Mapping[str, Json]) -> JsonObject:
    """Return a copy of a config in which no part names code."""
    kept: JsonObject = {}
    for name, value in config.items():
        if name not in _NAMES_CODE:
            kept[name] = _without_code(value)
    return kept


def _without_code(value: Json) -> Json:
    """Return a copy of a value in which no part names code."""
    if isinstance(value, list):
        return [_without_code(part) for part in value]
    if isinstance(value, dict):
        return without_code(value)
    return value


def _name_tokenizer_for_older_programs(path: Path) -> None:
    """Rename the settings of a tokenizer's config so that transformers 4 reads them as well as
    transformers 5.
    """
    if not path.is_file():
        return
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("tokenizer_class") == "TokenizersBackend":
        document["tokenizer_class"] = "PreTrainedTokenizerFast"
    # transformers 4 expects a mapping from names to tokens here.
    extra = document.get("extra_special_tokens")
    if isinstance(extra, list):
        del document["extra_special_tokens"]
        document.setdefault("additional_special_tokens", extra)
    path.write_text(json_text(document, 2) + "\n", encoding="utf-8")
