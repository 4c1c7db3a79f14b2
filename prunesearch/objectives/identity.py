"""What identifies a result beside the weights and the candidate: data, arithmetic and version."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from prunesearch.cache.keys import minor
from prunesearch.compat.transformers import attention_name
from prunesearch.models.reordering import order_of
from prunesearch.models.structure import input_device

SCORING_VERSION = 2
"""Increased whenever a change of this package may change a stored number."""


def numerics_of(model: PreTrainedModel) -> dict[str, str]:
    """Return the class of arithmetic that results are computed in.

    The cache keeps results of different classes apart. The order of channels is a part of it,
    because sums in another order differ in their last digits.
    """
    numerics = {
        "attention": attention_name(model.config),
        "device": input_device(model).type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": minor(torch.__version__),
        "transformers": minor(transformers.__version__),
    }
    order = order_of(model)
    if order is not None:
        numerics["channels"] = order.digest
    return numerics


def tokens_digest(sequences: Sequence[Any]) -> str:
    """Return the digest of nested lists of token ids.

    Spaces are ignored. Use `digests.content_digest` for values that contain text.
    """
    return hashlib.sha256(repr(sequences).replace(" ", "").encode()).hexdigest()
