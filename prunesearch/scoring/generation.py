"""What identifies generated text: all that the model is asked for, its own settings, and the tokenizer."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from prunesearch.errors import InputError, one_line
from prunesearch.model.handover import tokenizer_digest
from prunesearch.scoring.lm_eval_tasks import LM_EVAL
from prunesearch.scoring.objectives import SCORING_VERSION, Chunk, content_digest


def generation_chunk(
    index: int,
    lm: HFLM,
    prompts: Sequence[Instance],
    tokenizer: PreTrainedTokenizerBase,
    numerics: dict[str, str],
) -> Chunk:
    """All texts that a task wants generated, as one chunk; sampled ones are not to be stored.

    Args:
        lm: lm-eval's model.
        tokenizer: as it was loaded.

    Raises:
        InputError: the model has no room for what the task wants generated.
    """
    config = lm.model.generation_config
    settings = {} if config is None else config.to_diff_dict()
    settings.pop("transformers_version", None)
    try:
        asked = requests_for(lm, prompts)
    except AssertionError as error:  # lm-eval's way to say so
        raise InputError(f"the model cannot generate what the task asks for: {one_line(error)}") from None
    sampled = any(request["settings"].get("do_sample", settings.get("do_sample")) for request in asked)
    identity = {
        "kind": "generated text",
        "version": SCORING_VERSION,
        "numerics": {**numerics, "lm-eval": LM_EVAL},
        "requests": content_digest(asked),
        "generation config": content_digest(settings),
        "tokenizer": tokenizer_digest(tokenizer),
    }
    return Chunk(index, identity, 0, stored=not sampled)


def requests_for(lm: HFLM, prompts: Sequence[Instance]) -> list[dict[str, Any]]:
    """What lm-eval asks of the model for each prompt: token ids, stop strings, and the settings of `generate`."""
    asked: list[dict[str, Any]] = []

    def generate(**settings: Any) -> torch.Tensor:  # noqa: ANN401 (what lm-eval passes on)
        ids: torch.Tensor = settings.pop("input_ids")
        del settings["attention_mask"]  # no prompt is padded, as each is a batch
        stops = [criterion.sequence for criterion in settings.pop("stopping_criteria")]
        asked.append({"ids": ids.tolist(), "stops": stops, "settings": settings})
        return ids  # nothing is added to it

    with mock.patch.object(lm.model, "generate", generate):
        for prompt in prompts:  # one by one, since lm-eval sorts what it gets together
            HFLM.generate_until(lm, [prompt], disable_tqdm=True)
    return asked
