"""What every part of `benchmarks.gpu` shares: the device, the time left, and how work is timed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.gpu_parts.shapes import ModelShape, random_model
from benchmarks.support.record import Record
from prunesearch.errors import PruneSearchError
from prunesearch.models.loading import LoadedModel

FAILURES = (
    PruneSearchError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a part may fail with. The other parts run all the same."""


@dataclass
class Meter:
    """The state of a run.

    Attributes:
        record: figures.
        device: device that is measured.
        big: shape of the large model.
        small: shape of the small model.
        until: time of `time.monotonic` at which the run must have ended.
        data: HellaSwag documents. None: requests of the same lengths are made up.
        tokenizer: tokenizer for the documents.
        peaks: measured operations per second of a shape's matrices, by the shape's name.
    """

    record: Record
    device: torch.device
    big: ModelShape
    small: ModelShape
    until: float
    data: Path | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    peaks: dict[str, float] = field(default_factory=dict)
    _models: dict[str, LoadedModel] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.monotonic()

    def model(self, shape: ModelShape) -> LoadedModel:
        """Return the model of a shape in bfloat16. It is made once."""
        if shape.name not in self._models:
            self._models[shape.name] = random_model(
                shape, self.device, torch.bfloat16, self.tokenizer
            )
        return self._models[shape.name]

    def forget(self, shape: ModelShape) -> None:
        """Free the memory of a model."""
        self._models.pop(shape.name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int = 3, warm: int = 1) -> float:
        """Return the median time of a piece of work."""
        for _ in range(warm):
            work()
        times: list[float] = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
            if self.left < 0:
                break
        return statistics.median(times)

    def free_bytes(self) -> int:
        """Return the free memory of the device, with what torch holds and does not use."""
        if self.device.type != "cuda":
            return 2**30
        free, _ = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + unused

    def memory_peak(self, name: str) -> None:
        """Record the most memory that was taken since the last call."""
        if self.device.type == "cuda":
            gib = torch.cuda.max_memory_allocated(self.device) / 2**30
            self.record.add(f"{name}_peak_gib", gib)
            torch.cuda.reset_peak_memory_stats(self.device)
