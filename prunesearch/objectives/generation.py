"""The identity of generated text: the requests to the model, the model's settings and the
tokenizer.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from prunesearch.errors import InputError, one_line
from prunesearch.models.handover import tokenizer_digest
from prunesearch.objectives.base import Chunk, Identity
from prunesearch.objectives.digests import content_digest
from prunesearch.objectives.identity import SCORING_VERSION
from prunesearch.objectives.lm_eval_tasks import LM_EVAL
from prunesearch.runtime.json_values import JsonObject
from prunesearch.runtime.patching import replaced


class GenerationCall(TypedDict):
    """lm-eval's call of `generate` for one prompt.

    Attributes:
        ids: token ids of the prompt.
        stops: texts at which the model stops.
        settings: further arguments.
    """

    ids: list[list[int]]
    stops: list[str]
    settings: JsonObject


def generation_chunk(
    index: int,
    lm: HFLM,
    prompts: Sequence[Instance],
    tokenizer: PreTrainedTokenizerBase,
    numerics: dict[str, str],
) -> Chunk:
    """Return all generated texts of a task as one chunk. Sampled texts are not stored.

    Args:
        index: number of the chunk.
        lm: lm-eval's model.
        prompts: lm-eval's requests for texts.
        tokenizer: tokenizer as it was loaded, without lm-eval's changes.
        numerics: class of arithmetic, see `objectives.identity.numerics_of`.

    Raises:
        InputError: the prompt and the generated text do not fit the model.
    """
    # Collect the settings of the model and the requests.
    config = lm.model.generation_config
    settings = {} if config is None else config.to_diff_dict()
    settings.pop("transformers_version", None)
    try:
        asked = requests_for(lm, prompts)
    except AssertionError as error:  # lm-eval asserts that the request fits
        raise InputError(
            f"the model cannot generate what the task asks for: {one_line(error)}"
        ) from None
    # A request's own settings come before the model's.
    sampled = any(
        request["settings"].get("do_sample", settings.get("do_sample")) for request in asked
    )
    identity: Identity = {
        "kind": "generated text",
        "version": SCORING_VERSION,
        "numerics": {**numerics, "lm-eval": LM_EVAL},
        "requests": content_digest(asked),
        "generation config": content_digest(settings),
        "tokenizer": tokenizer_digest(tokenizer),
    }
    return Chunk(index, identity, 0, cacheable=not sampled)


def requests_for(lm: HFLM, prompts: Sequence[Instance]) -> list[GenerationCall]:
    """Return lm-eval's call of `generate` for each prompt: token ids, stop strings and settings."""
    asked: list[GenerationCall] = []

    def generate(**settings: Any) -> torch.Tensor:  # noqa: ANN401 (what lm-eval passes on)
        ids: torch.Tensor = settings.pop("input_ids")
        del settings["attention_mask"]  # each prompt is a batch of its own, so none is padded
        stops = [criterion.sequence for criterion in settings.pop("stopping_criteria")]
        asked.append({"ids": ids.tolist(), "stops": stops, "settings": settings})
        return ids  # the prompt without any new token

    # Pass the prompts one by one, because lm-eval would sort a list.
    with replaced(lm.model, "generate", generate):
        for prompt in prompts:
            HFLM.generate_until(lm, [prompt], disable_tqdm=True)
    return asked
