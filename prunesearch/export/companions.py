"""The base model's small files: tokenizer, chat templates, generation settings, processors, licence, and trusted code.

They are copied as they are. Which files these are is decided by kind and not by a list of names, since makers use
names of their own: every text or tokenizer file of the base's folder goes along, unless it is about other weights or
about a training run. Weights in other formats, hidden files, keys, data and pictures stay where they are.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from prunesearch.errors import ModelError
from prunesearch.export.config_file import json_text
from prunesearch.model.guard import guarded_writing
from prunesearch.model.loading import LoadedModel
from prunesearch.model.source import SMALL_KINDS

LARGEST = 128 * 2**20
"""Bytes of the largest companion; a larger file of these kinds is data. Tokenizers have up to 40 MB."""
_ALWAYS = re.compile(r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|generation_config)")
_LEGAL = re.compile(r"licen[sc]e|notice|copying|copyright|policy|terms|patents|authors|attribution|acknowledg", re.I)
_LEGAL_KINDS = frozenset(("", ".txt", ".md", ".rst", ".html", ".pdf"))
_CODE_KINDS = frozenset(".py .pyc .pyd .so .dll .pkl .pickle .sh".split())
_TEMPLATES = ("additional_chat_templates", "chat_templates")
_WRITTEN_ANEW = re.compile(r"config\.json|readme(\.\w+)?|prunesearch\.json|verification\.json", re.I)
_OF_OTHER_WEIGHTS = re.compile(r".*\.index\.json|params\.json|adapter_.*|quant(ize)?_config\.json")
_OF_A_TRAINING = re.compile(r"trainer_.*|training_.*|.*_results\.json|optimizer.*|scheduler.*|rng_state.*")
_WITH_CODE = "config.json"
_NAMES_CODE = ("auto_map", "custom_pipelines")
"""Config fields with names of code that `transformers` would run."""


def companions(loaded: LoadedModel) -> list[Path]:
    """The base model's small files that travel with an export.

    Raises:
        ModelError: one is a link to a file outside the model's folder, which may be meant for nobody else.
    """
    folder = _folder_of(loaded)
    if folder is None:
        return []
    if loaded.source.gguf is None:
        found = companions_of(folder, code=loaded.trusted)
    else:  # it holds its tokenizer itself
        found = sorted(path for path in folder.iterdir() if _is_legal(path.name) and path.is_file())
    own = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":  # in the Hugging Face cache, files are links to the blobs beside it
        own.append(folder.resolve().parent.parent / "blobs")
    for path in found:
        if not any(path.resolve().is_relative_to(place) for place in own):
            raise ModelError(
                f"{str(path)!r} is a link to a file outside the model's folder and is not copied into an export: "
                "put the file itself there, or delete the link"
            )
    return found


def companions_of(folder: Path, *, code: bool) -> list[Path]:
    """The small files of a checkpoint's folder that belong to the model.

    Args:
        code: also Python files, in folders inside it too.
    """
    found = [path for path in folder.iterdir() if is_companion(path.name)]
    for name in _TEMPLATES:
        found += (folder / name).glob("*")
    if code:
        found += [path for path in folder.rglob("*.py") if not _is_hidden(path.relative_to(folder))]
    return sorted(path for path in found if path.is_file() and path.stat().st_size <= LARGEST)


def is_companion(name: str) -> bool:
    """Whether a file of this name, at the top of a checkpoint's folder, belongs to the model; not weights and code."""
    kind = Path(name).suffix.lower()
    if name.startswith(".") or kind in _CODE_KINDS or _WRITTEN_ANEW.fullmatch(name):
        return False
    if _ALWAYS.match(name) or _is_legal(name):
        return True
    return kind in SMALL_KINDS and not _OF_OTHER_WEIGHTS.fullmatch(name) and not _OF_A_TRAINING.fullmatch(name)


def _is_legal(name: str) -> bool:
    """Whether a file is a licence or belongs to one: ``LICENSE``, ``COPYING.LESSER``, ``MODEL_LICENSE.txt``."""
    kind = Path(name).suffix.lower()
    return bool(_LEGAL.search(name)) and (kind in _LEGAL_KINDS or name.split(".")[0].isupper())


def copy_companions(loaded: LoadedModel, out: Path, *, own_type: bool) -> None:
    """Copy the base model's small files as they are; what comes from no file is written from memory.

    Code goes along only if the user trusted it. If not, no config asks for it any more either.

    Args:
        own_type: the export is of a model type of its own, by which no program finds a tokenizer.
    """
    folder = _folder_of(loaded)
    for path in companions(loaded):
        assert folder is not None
        target = out / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if not loaded.trusted and target.name.endswith(_WITH_CODE):
            _drop_code(target)
    no_files = loaded.source.folder is None
    if no_files or (own_type and not (out / "tokenizer_config.json").exists()):
        with guarded_writing("the tokenizer"):
            loaded.tokenizer.save_pretrained(out)
        _name_tokenizer_for_older_programs(out / "tokenizer_config.json")
    if no_files and loaded.model.generation_config is not None:
        with guarded_writing("the generation config"):
            loaded.model.generation_config.save_pretrained(out)


def _folder_of(loaded: LoadedModel) -> Path | None:
    """Where a model's files lie; None of a model that was made in memory."""
    gguf = loaded.source.gguf
    return loaded.source.folder if gguf is None else gguf.parent


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _drop_code(path: Path) -> None:
    """Let a config file no longer name code; one that names none stays as it is."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # its reader refuses it too
        return
    without = without_code(document)
    if without != document:
        path.write_text(json_text(without, 2) + "\n", encoding="utf-8")


def without_code(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """A copy of a config that names no code, in none of its parts."""
    if isinstance(value, list):
        return [without_code(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {name: without_code(part) for name, part in value.items() if name not in _NAMES_CODE}


def _name_tokenizer_for_older_programs(path: Path) -> None:
    """Write a tokenizer's config of transformers 5 in words that transformers 4 knows, and 5 still does."""
    if not path.is_file():
        return
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("tokenizer_class") == "TokenizersBackend":
        document["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = document.get("extra_special_tokens")
    if isinstance(extra, list):  # transformers 4 expects names there
        del document["extra_special_tokens"]
        document.setdefault("additional_special_tokens", extra)
    path.write_text(json_text(document, 2) + "\n", encoding="utf-8")
