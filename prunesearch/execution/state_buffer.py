"""A buffer for hidden states between blocks.

States over a limit are spilled to host memory or disk.
"""

import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prunesearch.errors import RunError, one_line
from prunesearch.runtime.closing import Closing

_NAME = "state"


class StateBuffer(Closing):
    """Keeps tensors by number.

    Args:
        limit: bytes of tensors that stay on their device. Further tensors are spilled: from a GPU
            to host memory, and from host memory to temporary files. None: no limit.

    Attributes:
        spilled: bytes that were spilled so far.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.spilled = 0
        self._limit = limit
        self._held: dict[int, torch.Tensor] = {}
        self._spilled: dict[int, tuple[torch.device, torch.Tensor | Path]] = {}
        self._bytes = self._next = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, tensor: torch.Tensor) -> int:
        """Keep a tensor and return its number.

        Raises:
            RunError: the tensor must be spilled and its file cannot be written.
        """
        self._next += 1
        if self._limit is None or self._bytes + tensor.nbytes <= self._limit:
            self._bytes += tensor.nbytes
            self._held[self._next] = tensor
        else:
            self.spilled += tensor.nbytes
            self._spilled[self._next] = (tensor.device, self._spill(tensor))
        return self._next

    def get(self, number: int) -> torch.Tensor:
        """Return a tensor on the device that it was put on."""
        if number in self._held:
            return self._held[number]
        device, spilled = self._spilled[number]
        if isinstance(spilled, Path):
            return load_file(spilled)[_NAME]
        return spilled.to(device)

    def drop(self, number: int) -> None:
        """Forget a tensor."""
        if number in self._held:
            self._bytes -= self._held.pop(number).nbytes
            return
        _, spilled = self._spilled.pop(number)
        if isinstance(spilled, Path):
            spilled.unlink()

    def take(self, number: int) -> torch.Tensor:
        """Return a tensor and forget it."""
        tensor = self.get(number)
        self.drop(number)
        return tensor

    def _spill(self, tensor: torch.Tensor) -> torch.Tensor | Path:
        """Spill a tensor, and return its copy in host memory or the path of its file."""
        if tensor.device.type != "cpu":
            return tensor.cpu()
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="prunesearch-states-")
            path = Path(self._folder.name) / f"{self._next}.safetensors"
            save_file({_NAME: tensor.contiguous()}, path)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"cannot put hidden states aside in {tempfile.gettempdir()!r} ({one_line(error)}): "
                f"raise "
                "`state_memory`, or set TMPDIR to a folder on a disk with more space"
            ) from None
        return path

    def close(self) -> None:
        """Delete the temporary files."""
        if self._folder is not None:
            self._folder.cleanup()
