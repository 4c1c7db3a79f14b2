"""What a memory plan is made for, and what it predicts."""

import os
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch

from prunesearch.errors import InputError, UnknownNameError
from prunesearch.execution.hardware import Speed
from prunesearch.models.loading import device_named

Dtype = Literal["auto", "bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class Asked:
    """The search to plan for.

    Attributes:
        memory: bytes that scoring may take, of the GPU if there is one, otherwise of the machine.
        candidates: candidates of a generation.
        drop: what to drop, see `SearchSection.drop`.
        tokens: calibration tokens. None: a task with `requests` requests of `length` tokens each.
        requests: requests of a task.
        length: tokens of a request.
        kl_top: see `Recipe.kl_top`.
        dtype: type to compute in; ``auto``: the model's own.
        device: device to compute on. None: the default device.
    """

    memory: int
    candidates: int = 20
    drop: str = "25%"
    tokens: int | None = 1024
    requests: int = 0
    length: int = 64
    kl_top: int | None = None
    dtype: Dtype = "auto"
    device: str | None = None

    @property
    def tokens_in_all(self) -> int:
        """Number of tokens that a candidate is scored on."""
        if self.tokens is not None:
            return self.tokens
        return self.requests * self.length

    @classmethod
    def of(
        cls,
        memory: int | None,
        *,
        tokens: int,
        requests: int | None,
        **others: Any,  # noqa: ANN401
    ) -> Self:
        """Check the values of the command line.

        Args:
            memory: bytes that scoring may take. None: all memory of the device.
            tokens: calibration tokens, used if `requests` is None.
            requests: requests of a task.
            others: further attributes by name.

        Raises:
            InputError: a number is out of range, or the type or device is unknown.
        """
        if str(others["drop"]).startswith("pareto"):
            raise InputError(
                f"`drop` {others['drop']}: plan needs a number or a share of blocks, such as 8 or "
                f"25%"
            )
        numbers = {"candidates": others["candidates"], "length": others["length"], "tokens": tokens}
        if requests is not None:
            numbers["requests"] = requests
        if others["kl_top"] is not None:
            numbers["kl-top"] = others["kl_top"]
        for name, number in numbers.items():
            if number < 1:
                raise InputError(f"--{name} {number} is too small: it counts from 1")
        if others["dtype"] not in get_args(Dtype):
            raise UnknownNameError("dtype", others["dtype"], get_args(Dtype))
        if memory is None:
            memory = _all_memory(device_named(others["device"]))
        if requests is not None:
            return cls(memory, tokens=None, requests=requests, **others)
        return cls(memory, tokens=tokens, requests=0, **others)


@dataclass(frozen=True)
class Mode:
    """Prediction for one place where weights wait.

    Attributes:
        offload: where weights wait: ``none``, ``disk`` or ``cpu``.
        fits: True if the memory is sufficient.
        memory: bytes of memory.
        host_memory: further bytes of host memory, if the device has its own memory.
        parts: bytes of memory by purpose.
        bytes_read: bytes read from disk per generation. Opening reads the checkpoint once more.
        seconds: time of an early generation.
        spilled: bytes of states that do not fit. They are written to files and read at every block.
        state_memory: bytes for hidden states.
    """

    offload: str
    fits: bool
    memory: int
    host_memory: int
    parts: dict[str, int]
    bytes_read: int
    seconds: float
    spilled: int
    state_memory: int


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted cost of a generation, and the mode to use.

    Attributes:
        model: the model as it was named.
        source: source of the sizes: ``safetensors``, ``gguf`` or ``config``.
        params: number of parameters.
        blocks: number of blocks.
        block_params: parameters of the largest block.
        dtype: type of the numbers, as computed.
        memory: bytes that scoring may take.
        candidates: candidates of a generation.
        drop: what each candidate drops.
        tokens: number of tokens that a candidate is scored on.
        shared: share of the work that the candidates have in common.
        speed: measured speeds of this machine.
        modes: a prediction for each place of the weights.
        use: place of the weights to use. None if nothing fits.
        command: command that uses it. None if nothing fits.
        notes: sentences about the plan.
    """

    model: str
    source: str
    params: int
    blocks: int
    block_params: int
    dtype: str
    memory: int
    candidates: int
    drop: str
    tokens: int
    shared: float
    speed: Speed
    modes: tuple[Mode, ...]
    use: str | None
    command: str | None
    notes: tuple[str, ...]


def _all_memory(device: torch.device) -> int:
    """Return the bytes of memory of a GPU, or of the machine for the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
