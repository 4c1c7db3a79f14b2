"""The files that a model comes from, which are resolved once when it is loaded.

Everything that is read later (weights, tokenizer, licence, code) is read from these files. A name
is never resolved a second time: a branch may have moved, and two programs may resolve a name
differently.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from prunesearch.errors import InputError, ModelError, one_line
from prunesearch.models.guard import guarded
from prunesearch.models.weight_files import weight_files, weight_names

ADAPTER = "adapter_config.json"
CONFIG = "config.json"
SMALL_KINDS = tuple(
    """.json .txt .md .model .spm .tiktoken .jinja .jinja2 .vocab .bpe .codes .merges .dict
    .tsv""".split()
)
"""File name endings of tokenizers, templates, processors, cards and licences."""
_SMALL = (
    *(f"*{kind}" for kind in SMALL_KINDS), "tokenizer*", "vocab*", "*LICENSE*", "*LICENCE*",
    "*License*", "*license*", "*COPYING*", "*COPYRIGHT*", "*NOTICE*", "*Notice*",
    "*POLICY*", "*TERMS*", "AUTHORS*", "PATENTS*",
)  # fmt: skip
"""Patterns of the small files that are copied into an export (`export.companions`)."""
_CODE = ("*.py",)
_CONFIGS = (CONFIG, ADAPTER)
# Small files in subfolders describe the same model in other formats.
_NOT_WANTED = tuple(f"*/*{kind}" for kind in SMALL_KINDS if "jinja" not in kind)
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.gguf)", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ResolvedSource:
    """The files that a model is read from.

    Attributes:
        name: name that the user gave.
        folder: folder of the model: a local folder, or the snapshot of the requested revision in
            the Hugging Face cache. None for a GGUF file and for a model that was made in memory.
        gguf: path of the GGUF file; None for a checkpoint.
        from_hub: True if the name is a Hugging Face id.
        revision: requested branch, tag or commit; None for the default branch.
        commit: hash of the commit that the files belong to, if it is known.
        weights: weight files that are read. If two contain the same tensor, the later one counts.
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
        """Return whether the weights are in safetensors files, from which single tensors can be
        read.
        """
        return bool(self.weights) and all(path.suffix == ".safetensors" for path in self.weights)


IN_MEMORY = ResolvedSource()
"""The source of a model that a program made and that has no files."""


def looks_local(name: str) -> bool:
    """Return whether a model name is a path.

    It is one if it exists, or if it cannot be a Hugging Face id (``owner/name`` or ``name``).
    """
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def is_gguf(name: str) -> bool:
    """Return whether a name is a GGUF file, judged by its suffix or by its content.

    A blob in the Hugging Face cache has no suffix.
    """
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
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    config_only: bool = False,
) -> ResolvedSource:
    """Find the small files of a model. Those of a Hugging Face id are downloaded.

    `with_weights` finds the weights.

    Args:
        name: a Hugging Face id, a local folder or a ``.gguf`` file.
        revision: branch, tag or commit of a Hugging Face id.
        trust_remote_code: download code that ships with the model too.
        config_only: download the config and nothing else.

    Raises:
        ModelError: the model is missing, unreadable or incomplete, or its folder contains an
            adapter.
        InputError: a revision was given for a path, or the revision is empty.
    """
    if is_gguf(name) or looks_local(name):
        if revision is not None:
            raise InputError(
                f"`revision` {revision!r} goes with a Hugging Face id, and {name!r} is a path: "
                f"leave it out"
            )
        if is_gguf(name):
            return _local_file(name)
        return _local_folder(Path(name), name)
    if revision is not None and not revision.strip():
        raise InputError("`revision` is empty: name a branch, tag or commit, or leave it out")
    # Download the wanted files, and check that they are those of a model.
    wanted: tuple[str, ...] = _SMALL
    if config_only:
        wanted = _CONFIGS
    elif trust_remote_code:
        wanted = (*_SMALL, *_CODE)
    folder = _snapshot(name, revision, wanted)
    refuse_adapter(folder, name)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"model {name!r} holds no {CONFIG}: it is not a Hugging Face checkpoint")
    # The folder of a snapshot is named after its commit.
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None
    return ResolvedSource(name, folder, None, True, revision, commit)


def with_weights(source: ResolvedSource) -> ResolvedSource:
    """Find the weight files that transformers reads. Those of a Hugging Face id are downloaded.

    Raises:
        ModelError: there are no weight files, one is missing, or one would lie outside the folder.
    """
    if source.folder is None:
        return source
    if source.from_hub:
        weights = _downloaded_weights(source.name, source.commit or source.revision, source.folder)
    else:
        weights = weight_files(source.folder)
        if not weights:
            known = ", ".join(weight_names(source.folder))
            raise ModelError(
                f"{source.name!r} holds no weights that transformers reads ({known}): get it again"
            )
    for path in weights:
        if not path.is_file():
            raise ModelError(
                f"{source.name!r} is not complete: {path.name} is missing; get it again"
            )
    return replace(source, weights=weights)


def _local_file(name: str) -> ResolvedSource:
    """Return the source of a GGUF file."""
    path = Path(name)
    if not path.is_file():
        raise ModelError(f"no model file {name!r}: check the path")
    refuse_part(path)
    return ResolvedSource(name, gguf=path, weights=(path,))


def refuse_part(path: Path) -> None:
    """Refuse a file that is one of several parts of a GGUF.

    Raises:
        ModelError: the file is named like a part.
    """
    if (part := _PART.fullmatch(path.name)) is not None:
        first = f"{part[1]}-00001-of-{part[2]}{part[3]}"
        raise ModelError(
            f"{str(path)!r} is one of {int(part[2])} parts of a GGUF: put them together with "
            f"llama-gguf-split --merge "
            f"{first} {part[1]}{part[3]}, and give that"
        )


def _local_folder(folder: Path, name: str) -> ResolvedSource:
    """Return the source of a checkpoint in a local folder."""
    if folder.is_file():
        raise ModelError(
            f"{name!r} is not a model: give a folder with a {CONFIG}, a .gguf file or a Hugging "
            f"Face id"
        )
    if not folder.is_dir():
        raise ModelError(
            f"no model folder or file {name!r}: give a folder, a .gguf file or a Hugging Face id"
        )
    refuse_adapter(folder, name)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{name!r} holds no {CONFIG}: it is not a Hugging Face checkpoint")
    return ResolvedSource(name, folder)


def refuse_adapter(folder: Path, name: str) -> None:
    """Refuse a folder that contains an adapter.

    transformers applies the adapter if peft is installed. Other programs never apply it.

    Raises:
        ModelError: the folder contains an adapter.
    """
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{name!r} holds an adapter ({ADAPTER}): merge it into its base model (peft: "
            f"merge_and_unload) and give "
            "the merged model, or move the adapter's files away"
        )


def _snapshot(name: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    """Download the small files of one commit, and return their folder."""
    which = f" at revision {revision!r}" if revision is not None else ""
    hint = "" if "/" in name else "if this is a study, export it and give the folder"
    with guarded(
        f"cannot get model {name!r}{which}, which is not a local folder or file either", advice=hint
    ):
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(wanted),
                ignore_patterns=list(_NOT_WANTED),
            )
        )


def _downloaded_weights(name: str, commit: str | None, folder: Path) -> tuple[Path, ...]:
    """Download the weights that transformers would read, without the same weights in other
    formats.
    """
    missing: Exception | None = None
    # Try the names in the order of transformers. An index names further files.
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
            # The repository lacks the file. Without a network this also means that the cache lacks
            # it.
            missing = missing or error.__cause__
            continue
        return files
    raise ModelError(
        f"cannot find the weights of model {name!r}: {one_line(missing) if missing else 'none'}"
    )
