"""Checks that the blocks of a model run one after the other, so that they can be run one by one."""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError, ScoringError, one_line
from prunesearch.execution.batches import Rows
from prunesearch.execution.head import Head
from prunesearch.execution.merged_passes import Job
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import pruned

States = Iterator[tuple[int, LayerSubset, torch.Tensor]]
"""Job number, candidate and its state after the last block, shape (B, L, E)."""
_ALIKE = 0.02  # accepted relative difference: more than 16-bit rounding causes
_checked: set[type[PreTrainedModel]] = set()
"""Classes of models that have passed `check_composition`.

The check depends on the code of the class alone, so a class is checked once per process.
"""


def check_composition(model: PreTrainedModel, run: Callable[[Sequence[Job]], States]) -> None:
    """Check that running a model block by block gives the output of its own code.

    A class of models is checked once.

    Args:
        model: the dense model.
        run: function that runs candidates block by block; see `Forward.run`.

    Raises:
        ModelError: the outputs differ, because the blocks pass on more than the hidden state or
            return it in another form.
    """
    kind = type(model)
    if kind in _checked:
        return
    why = ""
    try:
        if not _composes(model, run):
            why = ": what they give differs"
    except (
        ScoringError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        why = f": {one_line(error)}"
    if why:
        raise ModelError(
            f"models of type {model.config.model_type!r} cannot be scored, as their blocks are not "
            f"one after the other{why}"
        )
    _checked.add(kind)


@torch.inference_mode()
def _composes(model: PreTrainedModel, run: Callable[[Sequence[Job]], States]) -> bool:
    """Return True if `run` and the model's own forward pass agree on a short text."""
    n, vocabulary = len(blocks_of(model)), settings_of(model.config).vocab_size
    batch = Rows(torch.arange(1, 17)[None] * 7919 % vocabulary).on(model)
    head = Head(model)
    # Compare the dense model and, if the model has several blocks, one candidate.
    candidates = [LayerSubset.of(n)]
    if n > 1:
        candidates.append(LayerSubset.of(n, (n // 2,)))
    away = []
    for _, candidate, hidden_1LE in run([(batch, candidates)]):
        found_LV = head.logits(head.apply_final_norm(hidden_1LE[0])).float()
        with pruned(model, candidate) as smaller:
            own_LV = smaller(input_ids=batch.ids, use_cache=False).logits[0].float()
        away.append(float((found_LV - own_LV).norm() / own_LV.norm()))
    return all(difference <= _ALIKE for difference in away)
