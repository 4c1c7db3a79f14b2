"""Files of tensors that contain the digest of their content.

A damaged or incomplete file counts as missing.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from prunesearch.cache.files import replaced_file

_SHA256 = "sha256"


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file. It replaces an existing file.

    If its folder does not exist, it is created, and only its owner may use it.

    Args:
        path: path of the file.
        tensors: tensors by name.
        notes: short texts by name, which are stored in the file.

    Raises:
        OSError: the file cannot be written. No part of it remains.
    """
    held = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    notes = dict(notes or {})
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replaced_file(path) as scratch:
        save_file(held, scratch, {**notes, _SHA256: _digest(held, notes)})


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Return the tensors and the notes of a file; None if it is missing, damaged or incomplete."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            # The file is not a mapping.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            notes = dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return None
    if notes.pop(_SHA256, None) != _digest(tensors, notes):
        return None
    return tensors, notes


def _digest(tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str]) -> str:
    """Return the digest of tensors and notes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    for name, text in sorted(notes.items()):
        digest.update(f"{name}={text}".encode())
    return digest.hexdigest()
