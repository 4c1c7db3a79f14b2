"""Predicts the memory, the bytes read and the time of scoring a generation, before weights are
loaded.

The prediction is made for each place where weights wait (`--offload none`, `disk`, `cpu`).

Memory, in bytes. N: parameters outside the blocks. L: parameters of the largest block. T: tokens in
all. t: tokens at a time. C: candidates. E: hidden size. V: vocabulary. I: width of the MLP. w:
bytes per number as computed. s: bytes per number as stored.

    none     all weights                 w (N + blocks)
    disk     resident weights, 2 blocks  w (N + 2 L), and the largest tensor if it is converted
    cpu      as disk on the device, and s (blocks) in host memory
    each     this process                as it is now, with its libraries
             states                      w E t (C + 2), streamed w E T (C + 2): up to --state-memory
             final states                w E t C, up to --state-memory as well
             one block at work           w t (3 I + 6 E)
             one weight in float32       4 E V, or the largest tensor, if 16-bit products use
             float32 logits                      64 V (w + 16)
             reference logits            w T V, or 8 T K with --kl-top K

Time, in seconds, of an early generation, whose candidates are drawn at random. Candidates of later
generations share more.

    compute  2 (parameters used by distinct states + rows read * E V) / measured products per second
    read     s (blocks) / measured bytes per second, from the disk if the page cache is too small
    stream   the longer of both, and the part of the shorter that the CPU cannot do at the same time
"""

import os
import resource
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from transformers import PretrainedConfig

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError, UnknownNameError
from prunesearch.execution.batches import CHUNK_TOKENS
from prunesearch.execution.hardware import Speed, measure
from prunesearch.execution.shared_forward import HEAD_ROWS
from prunesearch.models.bf16_cpu import widens
from prunesearch.models.loading import device_named, refuse_quantised
from prunesearch.models.safetensors_files import Stored, tensors_of, weight_files
from prunesearch.models.source import is_gguf, resolve
from prunesearch.models.structure import (
    architecture_of,
    meta_model,
    read_config,
    settings_of,
    sizes_of,
)
from prunesearch.space import SearchSpace

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
KL_TOP = 512
"""Tokens of the top-k KL that is proposed if the full reference logits do not fit."""
_SCORED = 1 / 3  # share of a task's tokens that are scored: 10,963 of HellaSwag's 34,867
_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}  # tokens of a task's batch, as in `objectives.task`
_TASK_BYTES = 300 * 2**20  # lm-eval, datasets and a task's documents


@dataclass(frozen=True)
class Asked:
    """The search to plan for.

    Attributes:
        memory: bytes that scoring may take, of the GPU if there is one, otherwise of the machine.
        candidates: candidates of a generation.
        drop: what to drop, as in `search --drop`.
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

    @classmethod
    def of(cls, memory: int | None, *, tokens: int, requests: int | None, **others: Any) -> Self:  # noqa: ANN401
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
                f"--drop {others['drop']}: plan needs a number or a share of blocks, such as 8 or "
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
class Plan:
    """Predicted cost of a generation, and the mode to use.

    Attributes:
        model: the model as it was named.
        source: source of the sizes: ``safetensors`` or ``config``.
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


@dataclass(frozen=True)
class _Model:
    """Properties of a model that a plan is made from.

    Attributes:
        name: the model's folder, config file or id.
        config: its config.
        blocks: parameters of each block.
        other: parameters outside the blocks.
        largest: parameters of the largest tensor of a block.
        size: bytes per number, as computed.
        dtype: type of the numbers, as computed.
        stored: the checkpoint's tensors; empty if they are not known.
    """

    name: str
    config: PretrainedConfig
    blocks: tuple[int, ...]
    other: int
    largest: int
    size: int
    dtype: torch.dtype
    stored: dict[str, Stored]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the blocks as stored."""
        # Without a checkpoint, assume the type that the config names.
        if not self.stored:
            declared = (
                self.config.dtype if isinstance(self.config.dtype, torch.dtype) else torch.float32
            )
            return sum(self.blocks) * declared.itemsize
        path = "." + architecture_of(self.config).blocks.rpartition(".")[2] + "."
        total = 0
        for name, tensor in self.stored.items():
            if path in "." + name:
                total += tensor.nbytes
        return total

    @property
    def converted(self) -> bool:
        """True if a stored tensor has another type than the one that is computed in."""
        return any(s.dtype != self.dtype for s in self.stored.values())


def plan(
    name: str, asked: Asked, *, revision: str | None = None, trust_remote_code: bool = False
) -> Plan:
    """Predict the cost of a generation, and choose the place of the weights.

    Args:
        name: model folder, ``config.json`` file or Hugging Face id. Only the config of an id is
            fetched.
        asked: the search to plan for.
        revision: revision of a Hugging Face id.
        trust_remote_code: run code from the checkpoint.

    Raises:
        ModelError: the model is missing, damaged or of an unsupported type.
        InputError: more is to be dropped than the model has.
    """
    # Draw a generation and measure the machine.
    device = device_named(asked.device)
    model = _examine(name, asked.dtype, revision, trust_remote_code)
    space = SearchSpace.parse(len(model.blocks), asked.drop)
    generation = draw(space, asked.candidates)
    chunk = _BATCH_TOKENS if asked.tokens is None else CHUNK_TOKENS
    at_once = min(chunk.get(device.type, chunk["cpu"]), _tokens(asked))
    types = {model.dtype}
    if device.type == "cpu":
        types.add(torch.float32)
    hidden = int(settings_of(model.config).hidden_size)
    speed = measure(device, hidden, min(at_once, 256), types, list(model.stored.values()))
    # Predict all modes. If none fits with full reference logits, try the top-k KL.
    need = _Need(model, asked, generation, speed, device, at_once)
    modes = need.modes(asked.kl_top)
    top = asked.kl_top
    if top is None and asked.tokens is not None and not any(mode.fits for mode in modes):
        top = KL_TOP
        modes = need.modes(top)
    # Use the fastest mode that fits.
    best: Mode | None = None
    for mode in modes:
        if mode.fits and (best is None or mode.seconds < best.seconds):
            best = mode
    return Plan(
        model=name,
        source="safetensors" if model.stored else "config",
        params=model.other + sum(model.blocks),
        blocks=len(model.blocks),
        block_params=max(model.blocks),
        dtype=str(model.dtype).removeprefix("torch."),
        memory=asked.memory,
        candidates=asked.candidates,
        drop=asked.drop,
        tokens=_tokens(asked),
        shared=round(1 - need.forwards / need.separate, 4),
        speed=speed,
        modes=tuple(modes),
        use=best.offload if best else None,
        command=_command(name, asked, best, top) if best else None,
        notes=tuple(_notes(model, asked, speed, modes, best, top)),
    )


def draw(space: SearchSpace, candidates: int) -> list[LayerSubset]:
    """Return an early generation: random subsets, which are the same in every call."""
    rng = np.random.Generator(np.random.Philox(key=0))
    generation = []
    for _ in range(candidates):
        generation.append(
            space.candidate(rng.choice(space.droppable, space.k, replace=False).tolist())
        )
    return generation


def distinct_forwards(generation: Sequence[LayerSubset], weights: Sequence[float]) -> float:
    """Return the sum of `weights` over the blocks of a generation's trie.

    Each distinct state passes through a block once.
    """
    seen = set()
    for candidate in generation:
        for index in candidate.kept:
            seen.add((index, candidate.path[: index + 1]))
    return sum(weights[index] for index, _ in seen)


class _Need:
    """The formulas of this module's docstring."""

    def __init__(
        self,
        model: _Model,
        asked: Asked,
        generation: Sequence[LayerSubset],
        speed: Speed,
        device: torch.device,
        at_once: int,
    ) -> None:
        self._model, self._asked, self._speed, self._at_once = model, asked, speed, at_once
        self._on_cpu = device.type == "cpu"
        self._tokens = _tokens(asked)
        self.forwards = distinct_forwards(generation, model.blocks)
        self.separate = 0
        for candidate in generation:
            for index in candidate.kept:
                self.separate += model.blocks[index]

    def modes(self, kl_top: int | None) -> list[Mode]:
        """Return the prediction for each place of the weights."""
        return [self._mode(place, kl_top) for place in ("none", "disk", "cpu")]

    def _mode(self, place: str, kl_top: int | None) -> Mode:
        """Return the prediction for one place of the weights."""
        model, asked = self._model, self._asked
        streamed = place != "none"
        parts = self._fixed(streamed, kl_top)
        in_host = model.stored_bytes if place == "cpu" else 0
        if self._on_cpu and in_host:
            parts["blocks in memory"] = in_host
        # Give the states what is left, but keep room for the final states of one chunk.
        state = int(settings_of(model.config).hidden_size) * model.size
        tokens = self._tokens if streamed else self._at_once
        wanted = state * tokens * (asked.candidates + 2)
        room = max(asked.memory - sum(parts.values()), 0)
        final = state * self._at_once * asked.candidates
        state_memory = min(wanted, max(room - final, room // 2))
        parts["states"] = state_memory + min(final, state_memory)
        spilled = max(0, wanted - state_memory) if streamed else 0
        enough = state_memory >= state * self._at_once  # room for at least one candidate
        total = sum(parts.values())
        read = model.stored_bytes if place == "disk" else 0
        return Mode(
            place,
            total <= asked.memory and enough,
            total,
            0 if self._on_cpu else in_host,
            parts,
            read,
            round(self._seconds(read, in_host, spilled, total), 3),
            spilled,
            state_memory,
        )

    def _fixed(self, streamed: bool, kl_top: int | None) -> dict[str, int]:
        """Return the bytes by purpose of everything but the states."""
        model, config, t = self._model, settings_of(self._model.config), self._at_once
        vocabulary, hidden = int(config.vocab_size), int(config.hidden_size)
        inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
        # Libraries and documents. On a GPU, 600 MiB is about the size of a CUDA context.
        parts = {"this process": _resident() if self._on_cpu else 600 * 2**20}
        if self._asked.tokens is None:
            parts["task"] = _TASK_BYTES if self._on_cpu else 0
        # Weights: two blocks at a time if they are streamed, and a tensor that is being converted.
        in_blocks = 2 * max(model.blocks) if streamed else sum(model.blocks)
        parts["weights"] = model.size * (model.other + in_blocks)
        if streamed and (model.converted or not self._on_cpu):
            parts["weights"] += model.largest * max(
                (s.dtype.itemsize for s in model.stored.values()), default=2
            )
        # Intermediate results of a block and of the head.
        if self._on_cpu and model.size == 2 and widens():
            parts["widened weight"] = 4 * max(model.largest, vocabulary * hidden)
        parts["block at work"] = model.size * t * (3 * inner + 6 * hidden)
        head_rows = HEAD_ROWS["cpu" if self._on_cpu else "cuda"]
        parts["logits"] = head_rows * vocabulary * (model.size + 12)
        # Reference logits, of which the top-k KL keeps an index and a value per token.
        if self._asked.tokens is not None:
            answers = vocabulary * model.size if kl_top is None else 8 * kl_top
            parts["dense answers"] = self._tokens * answers
        return parts

    def _seconds(self, read: int, in_host: int, spilled: int, memory: int) -> float:
        """Return the time of a generation."""
        model, speed = self._model, self._speed
        # Time to compute the blocks, and the head for the rows that are scored.
        scored = 1.0 if self._asked.tokens is not None else _SCORED
        rows = self._asked.candidates * self._tokens * scored
        head = (
            rows
            * int(settings_of(model.config).hidden_size)
            * int(settings_of(model.config).vocab_size)
        )
        compute = (
            2
            * (self.forwards * self._tokens + head)
            / speed.flops[str(model.dtype).removeprefix("torch.")]
        )
        # Time to read the weights, and to write and read states that do not fit.
        cached = read + memory < speed.free
        reading = read / (speed.cached if cached else speed.disk)
        reading += 2 * spilled * len(model.blocks) / speed.disk
        if not self._on_cpu:
            reading = max(reading, (read + in_host) / speed.to_device)
        # Both run at the same time. A CPU core that copies from the page cache computes nothing.
        if cached and self._on_cpu:
            return max(compute, reading) + min(compute, reading) / torch.get_num_threads()
        return max(compute, reading)


def _tokens(asked: Asked) -> int:
    """Return the number of tokens in all."""
    if asked.tokens is not None:
        return asked.tokens
    return asked.requests * asked.length


def _examine(name: str, dtype: str, revision: str | None, trust_remote_code: bool) -> _Model:
    """Read a model's config and the headers of its checkpoint."""
    if is_gguf(name):
        raise ModelError(
            f"{name!r} is a GGUF, which is dequantised into memory: plan its safetensors or "
            f"config.json"
        )
    # Find the config and the weight files. Weights are never fetched.
    weights: tuple[Path, ...] = ()
    if name.endswith(".json"):
        config = read_config(name, trust_remote_code)
    else:
        source = resolve(
            name, revision=revision, trust_remote_code=trust_remote_code, config_only=True
        )
        assert source.folder is not None
        config = read_config(str(source.folder), trust_remote_code)
        weights = () if source.from_hub else weight_files(source.folder)
    architecture_of(config, trust_remote_code)
    refuse_quantised(config, name)
    # Only safetensors files list their tensors.
    stored: dict[str, Stored] = {}
    if all(path.suffix == ".safetensors" for path in weights):
        stored = tensors_of(weights)
    # Count parameters on a model without weights.
    model = meta_model(config, trust_remote_code)
    sizes = sizes_of(model)
    wanted = model.dtype if dtype == "auto" else getattr(torch, dtype)
    prefix = architecture_of(config).blocks + "."
    largest = 0
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.startswith(prefix):
            largest = max(largest, parameter.numel())
    return _Model(
        name,
        config,
        sizes.block_params,
        sizes.other_params,
        largest,
        wanted.itemsize,
        wanted,
        stored,
    )


def _all_memory(device: torch.device) -> int:
    """Return the bytes of memory of a GPU, or of the machine for the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _resident() -> int:
    """Return the bytes of memory of this process.

    It has loaded Python, torch and transformers, as a search has before it loads its model.
    """
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _command(name: str, asked: Asked, mode: Mode, kl_top: int | None) -> str:
    """Return the command line of the planned search."""
    # A config alone cannot be searched, so a placeholder stands for the model.
    model = "MODEL" if Path(name).suffix == ".json" else name
    words = [
        "prunesearch",
        "search",
        model,
        "--drop",
        asked.drop,
        "--population",
        str(asked.candidates),
    ]
    words += ["--offload", mode.offload, "--state-memory", f"{-(-mode.state_memory // 2**20)}MiB"]
    if asked.tokens is None:
        words += ["--task", "TASK"]
    else:
        words += ["--tokens", str(asked.tokens)]
    if kl_top is not None and asked.tokens is not None:
        words += ["--kl-top", str(kl_top)]
    if asked.dtype != "auto":
        words += ["--dtype", asked.dtype]
    if asked.device is not None:
        words += ["--device", asked.device]
    return shlex.join(words)


def _notes(
    model: _Model,
    asked: Asked,
    speed: Speed,
    modes: Sequence[Mode],
    best: Mode | None,
    kl_top: int | None,
) -> list[str]:
    """Return advice about the plan, one sentence each."""
    notes = []
    own = speed.flops[str(model.dtype).removeprefix("torch.")]
    if model.dtype != torch.float32 and speed.flops.get("float32", 0) > 1.5 * own:
        ratio = speed.flops["float32"] / own
        slow = str(model.dtype).removeprefix("torch.")
        notes.append(
            f"float32 is multiplied {ratio:.1f} times as fast here as {slow}: see what --dtype "
            f"float32 takes"
        )
    if kl_top is not None and asked.kl_top is None:
        notes.append(
            f"the dense model's answers to {_tokens(asked)} tokens do not fit: KL over its "
            f"{kl_top} likeliest"
        )
    if best is not None and best.spilled:
        notes.append(
            f"{best.spilled / 2**30:.2f} GiB of states do not fit and go to files, to TMPDIR: "
            f"fewer --tokens are faster"
        )
    if best is None:
        least = min(modes, key=lambda mode: mode.memory)
        notes.append(
            f"nothing fits: --offload {least.offload} needs {least.memory / 2**30:.2f} GiB; "
            "give fewer --tokens, or another --dtype"
        )
    return notes
