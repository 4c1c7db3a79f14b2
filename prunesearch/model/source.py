"""Where a model comes from, resolved once when it is loaded.

Everything that is read of a model later (weights, tokenizer, licence, code) is read from the files named here. A name
is never resolved a second time: a branch may have moved, and two readers may follow different rules.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from prunesearch.errors import InputError, ModelError, one_line
from prunesearch.model.checkpoint import weight_files, weight_names
from prunesearch.model.guard import guarded

ADAPTER = "adapter_config.json"
CONFIG = "config.json"
SMALL_KINDS = tuple(
    ".json .txt .md .model .spm .tiktoken .jinja .jinja2 .vocab .bpe .codes .merges .dict .tsv".split()
)  # fmt: skip
"""Kinds of files that tokenizers, templates, processors, cards and licences are kept in."""
_SMALL = (
    *(f"*{kind}" for kind in SMALL_KINDS), "tokenizer*", "vocab*", "*LICENSE*", "*LICENCE*", "*License*", "*license*",
    "*COPYING*", "*COPYRIGHT*", "*NOTICE*", "*Notice*", "*POLICY*", "*TERMS*", "AUTHORS*", "PATENTS*",
)  # fmt: skip
"""The small files that travel with an export (`export.companions`)."""
_CODE = ("*.py",)
_CONFIGS = (CONFIG, ADAPTER)
_NOT_WANTED = tuple(f"*/*{kind}" for kind in SMALL_KINDS if "jinja" not in kind)  # the same model in other formats
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.gguf)", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ResolvedSource:
    """The files that a model is read from.

    Attributes:
        name: what the user called the model.
        folder: the model's own folder: a local one, or the snapshot of the revision that was asked for in the Hugging
            Face cache. None for a GGUF file, and for a model that was made in memory.
        gguf: the GGUF file; None for a checkpoint.
        from_hub: whether the name is a Hugging Face id.
        revision: branch, tag or commit that was asked for; None: the default branch.
        commit: hash of the commit that the files belong to, where it is known.
        weights: the weight files that are read. Where two hold the same tensor, the later one counts.
    """

    name: str = ""
    folder: Path | None = None
    gguf: Path | None = None
    from_hub: bool = False
    revision: str | None = None
    commit: str | None = None
    weights: tuple[Path, ...] = ()

    @property
    def safetensors(self) -> bool:
        """Whether the weights are in safetensors files, from which tensors can be read one by one."""
        return bool(self.weights) and all(path.suffix == ".safetensors" for path in self.weights)


IN_MEMORY = ResolvedSource()
"""The source of a model that was made by a program and lies nowhere."""


def looks_local(name: str) -> bool:
    """Whether a model name is meant as a path: it exists, or could not be a hub id (``owner/name`` or ``name``)."""
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def is_gguf(name: str) -> bool:
    """Whether a name means a GGUF file: by its suffix, or, as of a blob in the Hugging Face cache, by its content."""
    path = Path(name)
    if path.is_dir():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def resolve(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, config_only: bool = False
) -> ResolvedSource:
    """Find a model's small files; those of a hub id are downloaded. Its weights are found by `with_weights`.

    Args:
        name: a Hugging Face id, a local folder or a ``.gguf`` file.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: download code that ships with the model too.
        config_only: download the config and nothing else.

    Raises:
        ModelError: missing, unreadable, not a whole model, or a folder with an adapter in it.
        InputError: a revision of something that has none.
    """
    if is_gguf(name) or looks_local(name):
        if revision is not None:
            raise InputError(
                f"--revision {revision!r} goes with a Hugging Face id, and {name!r} is a path: leave it out"
            )
        return _local_file(name) if is_gguf(name) else _local_folder(Path(name), name)
    if revision is not None and not revision.strip():
        raise InputError("--revision is empty: name a branch, tag or commit, or leave it out")
    wanted = _CONFIGS if config_only else (*_SMALL, *(_CODE if trust_remote_code else ()))
    folder = _snapshot(name, revision, wanted)
    refuse_adapter(folder, name)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"model {name!r} holds no {CONFIG}: it is not a Hugging Face checkpoint")
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None
    return ResolvedSource(name, folder, None, True, revision, commit)


def with_weights(source: ResolvedSource) -> ResolvedSource:
    """Find the weight files that transformers reads; those of a hub id are downloaded.

    Raises:
        ModelError: there are none, one is missing, or one would lie outside the folder.
    """
    if source.folder is None:
        return source
    if source.from_hub:
        weights = _downloaded_weights(source.name, source.commit or source.revision, source.folder)
    else:
        weights = weight_files(source.folder)
        if not weights:
            known = ", ".join(weight_names(source.folder))
            raise ModelError(f"{source.name!r} holds no weights that transformers reads ({known}): get it again")
    for path in weights:
        if not path.is_file():
            raise ModelError(f"{source.name!r} is not complete: {path.name} is missing; get it again")
    return replace(source, weights=weights)


def _local_file(name: str) -> ResolvedSource:
    path = Path(name)
    if not path.is_file():
        raise ModelError(f"no model file {name!r}: check the path")
    refuse_part(path)
    return ResolvedSource(name, gguf=path, weights=(path,))


def refuse_part(path: Path) -> None:
    """Refuse one of several files that make a GGUF together.

    Raises:
        ModelError: it is one, by its name.
    """
    if (part := _PART.fullmatch(path.name)) is not None:
        first = f"{part[1]}-00001-of-{part[2]}{part[3]}"
        raise ModelError(
            f"{str(path)!r} is one of {int(part[2])} parts of a GGUF: put them together with llama-gguf-split --merge "
            f"{first} {part[1]}{part[3]}, and give that"
        )


def _local_folder(folder: Path, name: str) -> ResolvedSource:
    if not folder.is_dir():
        raise ModelError(f"no model folder or file {name!r}: give a folder, a .gguf file or a Hugging Face id")
    refuse_adapter(folder, name)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{name!r} holds no {CONFIG}: it is not a Hugging Face checkpoint")
    return ResolvedSource(name, folder)


def refuse_adapter(folder: Path, name: str) -> None:
    """Refuse a folder with an adapter: transformers applies it where peft is installed, other readers never do.

    Raises:
        ModelError: there is one.
    """
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{name!r} holds an adapter ({ADAPTER}): merge it into its base model (peft: merge_and_unload) and give "
            "the merged model, or move the adapter's files away"
        )


def _snapshot(name: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    """Download small files of one commit."""
    which = f" at revision {revision!r}" if revision is not None else ""
    with guarded(f"cannot get model {name!r}{which}, which is no local folder or file either"):
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(wanted), ignore_patterns=list(_NOT_WANTED))
        )


def _downloaded_weights(name: str, commit: str | None, folder: Path) -> tuple[Path, ...]:
    """Download the weights that transformers would read of a hub model, and nothing that repeats them."""
    missing: Exception | None = None
    for entry in weight_names(folder):
        try:
            with guarded(f"cannot download the weights of model {name!r}"):
                hf_hub_download(name, entry, revision=commit)
                files = weight_files(folder)
                for path in files:
                    hf_hub_download(name, path.relative_to(folder).as_posix(), revision=commit)
        except ModelError as error:
            if not isinstance(error.__cause__, EntryNotFoundError):
                raise
            missing = missing or error.__cause__  # absent; without network also: not in the cache
            continue
        return files
    raise ModelError(f"cannot find the weights of model {name!r}: {one_line(missing) if missing else 'none'}")
