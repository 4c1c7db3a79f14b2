"""Predicts the memory, the bytes read and the time of scoring a generation, before weights are
loaded.

The formulas are in `execution.plan_formulas`.
"""

import numpy as np
import torch

from prunesearch.candidate import LayerSubset
from prunesearch.execution.batches import CHUNK_TOKENS, TASK_BATCH_TOKENS
from prunesearch.execution.hardware import measure
from prunesearch.execution.plan_advice import command_of, notes_of
from prunesearch.execution.plan_formulas import PlanFormulas
from prunesearch.execution.plan_inputs import examine
from prunesearch.execution.plan_types import Asked, MemoryPlan, Mode
from prunesearch.models.loading import device_named
from prunesearch.models.model_configs import settings_of
from prunesearch.space import SearchSpace

KL_TOP = 512
"""Tokens of the top-k KL that is proposed if the whole reference of KL does not fit."""


def plan_memory(
    name: str, asked: Asked, *, revision: str | None = None, trust_remote_code: bool = False
) -> MemoryPlan:
    """Predict the cost of a generation, and choose the place of the weights.

    Args:
        name: model folder, ``.gguf`` or ``config.json`` file, or Hugging Face id. Only the
            config of an id is fetched.
        asked: the search to plan for.
        revision: revision of a Hugging Face id.
        trust_remote_code: run code from the checkpoint.

    Raises:
        ModelError: the model is missing, damaged or of an unsupported type.
        InputError: more is to be dropped than the model has.
    """
    # Draw a generation and measure the machine.
    device = device_named(asked.device)
    model = examine(name, asked.dtype, revision, trust_remote_code)
    space = SearchSpace.parse(len(model.blocks), asked.drop)
    generation = draw(space, asked.candidates)
    chunk = TASK_BATCH_TOKENS if asked.tokens is None else CHUNK_TOKENS
    at_once = min(chunk.get(device.type, chunk["cpu"]), asked.tokens_in_all)
    types = {model.dtype}
    if device.type == "cpu":
        types.add(torch.float32)
    hidden = int(settings_of(model.config).hidden_size)
    speed = measure(device, hidden, min(at_once, 256), types, list(model.stored.values()))
    # Predict all modes. If none fits with the whole reference of KL, try the top-k KL.
    formulas = PlanFormulas(model, asked, generation, speed, device, at_once)
    modes = formulas.modes(asked.kl_top)
    top = asked.kl_top
    if top is None and asked.tokens is not None and not any(mode.fits for mode in modes):
        smaller = formulas.modes(KL_TOP)
        if any(mode.fits for mode in smaller):
            top, modes = KL_TOP, smaller
    # Use the fastest mode that fits.
    best: Mode | None = None
    for mode in modes:
        if mode.fits and (best is None or mode.seconds < best.seconds):
            best = mode
    return MemoryPlan(
        model=name,
        source=model.source,
        params=model.other + sum(model.blocks),
        blocks=len(model.blocks),
        block_params=max(model.blocks),
        dtype=str(model.dtype).removeprefix("torch."),
        memory=asked.memory,
        candidates=asked.candidates,
        drop=asked.drop,
        tokens=asked.tokens_in_all,
        shared=round(1 - formulas.forwards / formulas.separate, 4),
        speed=speed,
        modes=tuple(modes),
        use=best.offload if best else None,
        command=command_of(name, asked, best, top) if best else None,
        notes=tuple(notes_of(model, asked, speed, modes, best, top)),
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
