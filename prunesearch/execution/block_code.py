"""How blocks are run: by the model's own code, with faster attention, or compiled.

A block is compiled once. Its weights are inputs of the compiled code, so that one piece of code
serves all blocks of a kind, all candidates, and batches of all lengths. Compiled and plain blocks
round differently in their last digits. Blocks with a silenced or narrowed sublayer, and blocks that
cannot be compiled as a whole, run by their own code.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunesearch import events
from prunesearch.errors import one_line
from prunesearch.execution.cpu_attention import fast_attention
from prunesearch.execution.head import code_of
from prunesearch.models.bf16_cpu import widens

Compile = Literal["auto", "on", "off"]
"""Whether blocks are compiled. ``auto``: if it pays within the search."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments that the model passes to a block after the hidden state."""

COMPILE_SECONDS = {"cpu": 15.0, "cuda": 45.0}
"""Expected seconds of compiling a block, by device, before one was compiled here."""
_TIMED = 6  # blocks that are timed before the decision
_SAVED = 0.6  # share of the elementwise work that a compiler saves
_WORTH = 1.5  # seconds that must be saved for each second of compiling
_JOINED = frozenset(
    "add cat clone copy div exp gelu mean mul native_layer_norm neg pow relu rsqrt sigmoid silu "
    "sub sum tanh to_copy".split()
)
"""Operations that a compiler joins with their neighbours."""
_count = itertools.count()


@dataclass
class BlockCode:
    """Runs blocks.

    Args:
        compile: ``on``: compile blocks, and use faster attention where it is measured to be
            faster; it rounds more often than torch's. ``auto``: compile them if it pays. ``off``:
            the model's own code as it is.
        planned: forwards that are to come, in blocks times tokens. None: unknown, so that `auto`
            does not compile.

    Attributes:
        compiled: True if blocks run compiled.
        seconds: seconds that compiling took.
        speedup: time of a block by its own code over its time when compiled; 0 if not measured.
    """

    compile: Compile = "off"
    planned: float | None = None
    compiled: bool = False
    seconds: float = 0.0
    speedup: float = 0.0
    _compiler: Callable[..., Any] | None = None
    _decided: bool = False
    _times: list[float] = field(default_factory=list)  # seconds per token of blocks

    @property
    def name(self) -> str:
        """How blocks run: ``own``, ``fast attention`` or ``compiled``."""
        if self.compiled:
            return "compiled"
        return "fast attention" if self.compile == "on" else "own"

    def run(self, block: nn.Module, hidden: torch.Tensor, call: Call, whole: bool) -> torch.Tensor:
        """Return the hidden states after a block.

        Args:
            block: the block.
            hidden: hidden states before it, shape (B, L, E).
            call: further arguments of the block.
            whole: False if a part of the block is silenced or narrowed.
        """
        if self.compile == "off":
            return run_block(block, hidden, call)
        with fast_attention() if self.compile == "on" else nullcontext():
            if whole and not self._decided:
                return self._run_first(block, hidden, call)
            if whole and self.compiled:
                return self._run_compiled(block, hidden, call)
            return run_block(block, hidden, call)

    def _run_first(self, block: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        """Run a block by its own code, and decide after a few of them."""
        start = _now(hidden)
        out = run_block(block, hidden, call)
        tokens = hidden.shape[0] * hidden.shape[1]
        self._times.append((_now(hidden) - start) / tokens)
        # The first block also measures the attention.
        if self.compile == "on" or len(self._times) > _TIMED:
            self._decided = True
            if self.compile == "on" or self._pays(block, hidden, call):
                self._start(block, hidden, call)
        return out

    def _pays(self, block: nn.Module, hidden: torch.Tensor, call: Call) -> bool:
        """Return True if compiling is expected to save more time than it takes."""
        # Products that are computed in float32 take so long that the rest does not count.
        if self.planned is None or (widens() and hidden.device.type == "cpu"):
            return False
        cost = COMPILE_SECONDS.get(hidden.device.type, COMPILE_SECONDS["cpu"])
        # All that is to come must be worth it before the operations of a block are timed.
        if self.planned * statistics.median(self._times[1:]) < _WORTH * cost:
            return False
        with _Elementwise(hidden) as timed:
            run_block(block, hidden, call)
        per_token = timed.seconds / (hidden.shape[0] * hidden.shape[1])
        return bool(self.planned * per_token * _SAVED > _WORTH * cost)

    def _start(self, block: nn.Module, hidden: torch.Tensor, call: Call) -> None:
        """Compile a block, and keep the compiled code unless it is slower."""
        # Every instance has code of its own, as the compiler keeps what it made with the code.
        code: CodeType = _call.__code__.replace(co_name=f"block_{next(_count)}")
        function = FunctionType(code, _call.__globals__)
        self._compiler = torch.compile(function, dynamic=True, fullgraph=True)
        self.compiled = True
        expected = COMPILE_SECONDS.get(hidden.device.type, COMPILE_SECONDS["cpu"])
        events.tell(events.Message(f"compiling a block (about {expected:.0f} s)"))
        start = _now(hidden)
        self._run_compiled(block, hidden, call)
        self.seconds = _now(hidden) - start
        if not self.compiled:
            return
        # Compare the two, in turns. The first time warms up.
        least = [float("inf"), float("inf")]
        for turn in range(3):
            for which, run in enumerate((run_block, self._run_compiled)):
                start = _now(hidden)
                run(block, hidden, call)
                if turn:
                    least[which] = min(least[which], _now(hidden) - start)
        self.speedup = least[0] / least[1]
        if self.compile == "auto" and self.speedup < 1:
            self.compiled = False

    def _run_compiled(self, block: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        """Run a block compiled. If that fails, it and all later blocks run by their own code."""
        assert self._compiler is not None, "the block was compiled"
        try:
            return _first(self._compiler(block, hidden, *call))
        except (RuntimeError, OSError, ImportError, NotImplementedError) as error:
            self.compiled = False
            events.tell_or_log(
                f"blocks are not compiled ({one_line(error)}); their own code is used"
            )
        return run_block(block, hidden, call)


def run_block(block: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """Return the hidden states after a block, by its own code."""
    with code_of(block):
        return _first(_call(block, hidden, *call))


def _call(
    block: nn.Module, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:  # noqa: ANN401
    return block(hidden, *args, **kwargs)


def _first(out: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the hidden states of a block's output."""
    # Some blocks return the hidden states together with attention weights.
    return out if isinstance(out, torch.Tensor) else out[0]


class _Elementwise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times the operations that a compiler joins into few.

    Attributes:
        seconds: seconds that they took.
    """

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds = 0.0
        self._like = like

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        start = _now(self._like)
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.strip("_") in _JOINED:
            self.seconds += _now(self._like) - start
        return out


def _now(hidden: torch.Tensor) -> float:
    """Return the time in seconds when all work on the device of a tensor is done."""
    if hidden.device.type == "cuda":
        torch.cuda.synchronize(hidden.device)
    return time.perf_counter()
