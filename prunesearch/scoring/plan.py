"""What scoring a generation takes with each place of the weights: memory, bytes read, and time, before any is loaded.

Memory, in bytes, with N parameters beside the blocks, L in the largest block, T tokens in all and t at a time, C
candidates, E hidden size, V vocabulary, w bytes a number as computed and s as stored:

    memory   all weights                 w (N + blocks)
    stream   what stays + two blocks     w (N + 2 L), and the largest tensor where it is converted on the way
    host     as stream on the device, and s (blocks) in host memory
    each     this process                as it is now, libraries and all
             states                      w E t (C + 2), streamed w E T (C + 2): up to --state-memory
             final states                w E t C, up to --state-memory as well
             one block at work           w t (3 I + 6 E), I the width of its MLP
             one weight in float32       4 E V, or the largest tensor's, where 16-bit products go through it
             logits                      64 V (w + 16)
             dense answers               w T V, or 8 T K with --kl-top K

Time, in seconds, of an early generation, whose candidates are drawn at random: those of later ones share more.

    compute  2 (L-forwards of distinct states + rows read * E V) / measured products a second
    read     s (blocks) / measured bytes a second: of the disk where the page cache cannot hold them
    stream   the longer of both, and of the shorter what 2 of the CPU's threads cannot do beside it
"""

import os
import resource
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from transformers import PretrainedConfig

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError, UnknownNameError
from prunesearch.model.anatomy import family_of, read_config, settings_of, sizes_of, skeleton
from prunesearch.model.arithmetic import widens
from prunesearch.model.checkpoint import Stored, tensors_of, weight_files
from prunesearch.model.loading import device_named, refuse_quantised
from prunesearch.model.source import is_gguf, resolve
from prunesearch.scoring.forward import HEAD_ROWS
from prunesearch.scoring.objectives import CHUNK_TOKENS
from prunesearch.scoring.speed import Speed, measure
from prunesearch.space import SearchSpace

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
KL_TOP = 512
"""Of the dense model's answers, where all of them do not fit."""
_SCORED = 1 / 3  # of a task's tokens that are read: of HellaSwag's 34,867, 10,963
_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}  # of a task, as `scoring.harness` has it
_TASK_BYTES = 300 * 2**20  # lm-eval, datasets and a task's documents


@dataclass(frozen=True)
class Asked:
    """What is to be planned for.

    Attributes:
        memory: bytes that scoring may take: of the GPU, or of the machine where there is none.
        tokens: calibration tokens; None: `requests` of a task of `length` tokens each.
        kl_top: see `Recipe.kl_top`.
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
        """From the command line; `memory` None: all there is.

        Raises:
            InputError: a number that cannot be planned with, or an unknown type or device.
        """
        numbers = {"candidates": others["candidates"], "length": others["length"], "tokens": tokens}
        numbers |= {name: n for name, n in (("requests", requests), ("kl-top", others["kl_top"])) if n is not None}
        for name, number in numbers.items():
            if number < 1:
                raise InputError(f"--{name} {number} is too small: it counts from 1")
        if others["dtype"] not in get_args(Dtype):
            raise UnknownNameError("dtype", others["dtype"], get_args(Dtype))
        if memory is None:
            memory = _all_memory(device_named(others["device"]))
        return cls(memory, tokens=tokens if requests is None else None, requests=requests or 0, **others)


@dataclass(frozen=True)
class Mode:
    """One place of the weights.

    Attributes:
        parts: of the memory, in bytes.
        host_memory: bytes beside it in host memory, where the device has its own.
        bytes_read: from disk, a generation; opening reads the checkpoint once more.
        seconds: of an early generation.
        spilled: bytes of states that do not fit and go to files and back at every block.
    """

    weights: str
    fits: bool
    memory: int
    host_memory: int
    parts: dict[str, int]
    bytes_read: int
    seconds: float
    spilled: int
    state_memory: int


@dataclass(frozen=True)
class _Model:
    """What a plan must know of a model."""

    name: str
    config: PretrainedConfig
    blocks: tuple[int, ...]  # parameters
    other: int
    largest: int  # parameters of the largest tensor of a block
    size: int  # bytes a number, as computed
    dtype: torch.dtype
    stored: dict[str, Stored]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the blocks as stored."""
        if not self.stored:
            declared = self.config.dtype if isinstance(self.config.dtype, torch.dtype) else torch.float32
            return sum(self.blocks) * declared.itemsize
        path = "." + family_of(self.config).blocks.rpartition(".")[2] + "."
        return sum(s.nbytes for name, s in self.stored.items() if path in "." + name)

    @property
    def converted(self) -> bool:
        """Whether a stored number is not what is computed with."""
        return any(s.dtype != self.dtype for s in self.stored.values())


def plan(name: str, asked: Asked, *, revision: str | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """Predict what a generation takes and say which mode to use.

    Args:
        name: a model folder, a bare ``config.json`` or a Hugging Face id, of which only the config is fetched.

    Returns:
        A document of JSON values: the modes, the one to use, and the command that does.

    Raises:
        ModelError: the model is missing, damaged or of an unsupported type.
        InputError: more is to be dropped than there is.
    """
    device = device_named(asked.device)
    model = _examine(name, asked.dtype, revision, trust_remote_code)
    space = SearchSpace.parse(len(model.blocks), asked.drop)
    generation = draw(space, asked.candidates)
    chunk = _BATCH_TOKENS if asked.tokens is None else CHUNK_TOKENS
    at_once = min(chunk.get(device.type, chunk["cpu"]), _tokens(asked))
    types = {model.dtype} | ({torch.float32} if device.type == "cpu" else set())
    speed = measure(
        device, int(settings_of(model.config).hidden_size), min(at_once, 256), types, list(model.stored.values())
    )
    need = _Need(model, asked, generation, speed, device, at_once)
    modes = need.modes(asked.kl_top)
    top = asked.kl_top
    if top is None and asked.tokens is not None and not any(mode.fits for mode in modes):
        top = KL_TOP
        modes = need.modes(top)
    fitting = sorted((mode for mode in modes if mode.fits), key=lambda mode: mode.seconds)
    best = fitting[0] if fitting else None
    return {
        "model": name,
        "source": "safetensors" if model.stored else "config",
        "params": model.other + sum(model.blocks),
        "blocks": len(model.blocks),
        "block_params": max(model.blocks),
        "dtype": str(model.dtype).removeprefix("torch."),
        "memory": asked.memory,
        "candidates": asked.candidates,
        "drop": asked.drop,
        "tokens": _tokens(asked),
        "shared": round(1 - need.forwards / need.separate, 4),
        "speed": {key: value for key, value in asdict(speed).items() if value != float("inf")},
        "modes": [asdict(mode) for mode in modes],
        "use": best.weights if best else None,
        "command": _command(name, asked, best, top) if best else None,
        "notes": _notes(model, asked, speed, modes, best, top),
    }


def draw(space: SearchSpace, candidates: int) -> list[LayerSubset]:
    """An early generation: subsets at random, the same ones every time."""
    rng = np.random.Generator(np.random.Philox(key=0))
    return [space.candidate(rng.choice(space.droppable, space.k, replace=False).tolist()) for _ in range(candidates)]


def distinct_forwards(generation: Sequence[LayerSubset], weights: Sequence[float]) -> float:
    """Sum of `weights` over the blocks of a generation's trie: each distinct state goes through a block once."""
    seen = {(index, c.path[: index + 1]) for c in generation for index in c.kept}
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
        self.separate = sum(model.blocks[i] for c in generation for i in c.kept)

    def modes(self, kl_top: int | None) -> list[Mode]:
        """All places of the weights."""
        return [self._mode(place, kl_top) for place in ("memory", "stream", "host")]

    def _mode(self, place: str, kl_top: int | None) -> Mode:
        model, asked = self._model, self._asked
        streamed = place != "memory"
        parts = self._fixed(streamed, kl_top)
        in_host = model.stored_bytes if place == "host" else 0
        if self._on_cpu and in_host:
            parts["blocks in memory"] = in_host
        state = int(settings_of(model.config).hidden_size) * model.size
        wanted = state * (self._tokens if streamed else self._at_once) * (asked.candidates + 2)
        room = max(asked.memory - sum(parts.values()), 0)
        final = state * self._at_once * asked.candidates
        state_memory = min(wanted, max(room - final, room // 2))
        parts["states"] = state_memory + min(final, state_memory)
        spilled = max(0, wanted - state_memory) if streamed else 0
        enough = state_memory >= state * self._at_once  # else not even one candidate's fits
        total = sum(parts.values())
        read = model.stored_bytes if place == "stream" else 0
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
        model, config, t = self._model, settings_of(self._model.config), self._at_once
        vocabulary, hidden = int(config.vocab_size), int(config.hidden_size)
        inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
        parts = {"this process": _resident() if self._on_cpu else 600 * 2**20}  # a CUDA context, by and large
        if self._asked.tokens is None:
            parts["task"] = _TASK_BYTES if self._on_cpu else 0
        parts["weights"] = model.size * (model.other + (2 * max(model.blocks) if streamed else sum(model.blocks)))
        if streamed and (model.converted or not self._on_cpu):
            parts["weights"] += model.largest * max((s.dtype.itemsize for s in model.stored.values()), default=2)
        if self._on_cpu and model.size == 2 and widens():
            parts["widened weight"] = 4 * max(model.largest, vocabulary * hidden)
        parts["block at work"] = model.size * t * (3 * inner + 6 * hidden)
        parts["logits"] = HEAD_ROWS["cpu" if self._on_cpu else "cuda"] * vocabulary * (model.size + 12)
        if self._asked.tokens is not None:
            answers = vocabulary * model.size if kl_top is None else 8 * kl_top
            parts["dense answers"] = self._tokens * answers
        return parts

    def _seconds(self, read: int, in_host: int, spilled: int, memory: int) -> float:
        model, speed = self._model, self._speed
        rows = self._asked.candidates * self._tokens * (1.0 if self._asked.tokens is not None else _SCORED)
        head = rows * int(settings_of(model.config).hidden_size) * int(settings_of(model.config).vocab_size)
        compute = 2 * (self.forwards * self._tokens + head) / speed.flops[str(model.dtype).removeprefix("torch.")]
        cached = read + memory < speed.free
        reading = read / (speed.cached if cached else speed.disk)
        reading += 2 * spilled * len(model.blocks) / speed.disk
        if not self._on_cpu:
            reading = max(reading, (read + in_host) / speed.to_device)
        threads = torch.get_num_threads() if self._on_cpu else 2
        return max(compute, reading) + (min(compute, reading) / threads if cached and self._on_cpu else 0.0)


def _tokens(asked: Asked) -> int:
    return asked.tokens if asked.tokens is not None else asked.requests * asked.length


def _examine(name: str, dtype: str, revision: str | None, trust_remote_code: bool) -> _Model:
    if is_gguf(name):
        raise ModelError(f"{name!r} is a GGUF, which is dequantised into memory: plan its safetensors or config.json")
    weights: tuple[Path, ...] = ()
    if name.endswith(".json"):
        config = read_config(name, trust_remote_code)
    else:
        source = resolve(name, revision=revision, trust_remote_code=trust_remote_code, config_only=True)
        assert source.folder is not None
        config = read_config(str(source.folder), trust_remote_code)
        weights = () if source.from_hub else weight_files(source.folder)
    family_of(config, trust_remote_code)
    refuse_quantised(config, name)
    stored = tensors_of(weights) if all(path.suffix == ".safetensors" for path in weights) else {}
    model = skeleton(config, trust_remote_code)
    sizes = sizes_of(model)
    wanted = model.dtype if dtype == "auto" else getattr(torch, dtype)
    prefix = family_of(config).blocks + "."
    largest = max(p.numel() for n, p in model.named_parameters() if n.startswith(prefix))
    return _Model(name, config, sizes.block_params, sizes.other_params, largest, wanted.itemsize, wanted, stored)


def _all_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _resident() -> int:
    """Bytes of memory that this process takes: Python, torch and transformers, as a search's does before its model."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _command(name: str, asked: Asked, mode: Mode, kl_top: int | None) -> str:
    model = "MODEL" if Path(name).suffix == ".json" else name  # a config alone cannot be searched
    words = ["prunesearch", "search", model, "--drop", asked.drop, "--population", str(asked.candidates)]
    words += ["--weights", mode.weights, "--state-memory", f"{-(-mode.state_memory // 2**20)}MiB"]
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
    model: _Model, asked: Asked, speed: Speed, modes: Sequence[Mode], best: Mode | None, kl_top: int | None
) -> list[str]:
    notes = []
    own = speed.flops[str(model.dtype).removeprefix("torch.")]
    if model.dtype != torch.float32 and speed.flops.get("float32", 0) > 1.5 * own:
        ratio = speed.flops["float32"] / own
        slow = str(model.dtype).removeprefix("torch.")
        notes.append(f"float32 is multiplied {ratio:.1f} times as fast here as {slow}: see what --dtype float32 takes")
    if kl_top is not None and asked.kl_top is None:
        notes.append(f"the dense model's answers to {_tokens(asked)} tokens do not fit: KL over its {kl_top} likeliest")
    if best is not None and best.spilled:
        notes.append(
            f"{best.spilled / 2**30:.2f} GiB of states do not fit and go to files, to TMPDIR: fewer --tokens are faster"
        )
    if best is None:
        least = min(modes, key=lambda mode: mode.memory)
        notes.append(
            f"nothing fits: --weights {least.weights} needs {least.memory / 2**30:.2f} GiB; "
            "give fewer --tokens, or another --dtype"
        )
    return notes
