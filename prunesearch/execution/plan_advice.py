"""What a memory plan advises: a command line, and notes."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from prunesearch.execution.hardware import Speed
from prunesearch.execution.plan_inputs import PlannedModel
from prunesearch.execution.plan_types import Asked, Mode

_OF_TOKENS = ("states", "reference logits")
"""Parts of the memory that fewer tokens make smaller."""


def command_of(name: str, asked: Asked, mode: Mode, kl_top: int | None) -> str:
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


def notes_of(
    model: PlannedModel,
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
    if model.gguf:
        notes.append(
            "a GGUF is dequantised into memory: only its safetensors can be streamed (--offload)"
        )
    if kl_top is not None and asked.kl_top is None:
        notes.append(
            f"the dense model's reference of {asked.tokens_in_all} tokens does not fit: KL over "
            f"the {kl_top} likeliest"
        )
    if best is not None and best.spilled:
        notes.append(
            f"{best.spilled / 2**30:.2f} GiB of states do not fit and go to files, to TMPDIR: "
            f"fewer --tokens are faster"
        )
    if best is None:
        notes.append(_nothing_fits(model, asked, min(modes, key=lambda mode: mode.memory)))
    return notes


def _nothing_fits(model: PlannedModel, asked: Asked, least: Mode) -> str:
    """Return what would help if no mode fits.

    Args:
        least: the mode that needs the least memory.
    """
    needs = f"nothing fits: --offload {least.offload} needs {least.memory / 2**30:.2f} GiB"
    # Without its data, would it fit?
    without = sum(bytes_ for name, bytes_ in least.parts.items() if name not in _OF_TOKENS)
    if without <= asked.memory:
        return f"{needs}; give fewer --tokens, or another --dtype"
    weights = least.parts["weights"] / 2**30
    advice = "give more --memory, or a smaller --dtype"
    if model.gguf:
        advice += "; the model as safetensors can be streamed (--offload disk)"
    return f"{needs}, its weights alone {weights:.2f} GiB; {advice}"
