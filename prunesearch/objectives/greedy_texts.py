"""Texts that models generate greedily after a few fixed prompts.

Multiple choice hides damage that a text shows at once. Every model gets the same prompts.
"""

import torch

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import text_key
from prunesearch.candidate import LayerSubset
from prunesearch.execution.greedy import generate
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel
from prunesearch.models.structure import input_device, most_positions
from prunesearch.models.surgery import pruned
from prunesearch.objectives.identity import numerics_of
from prunesearch.runtime import stopping
from prunesearch.runtime.json_values import as_text

PROMPTS = (
    "The capital of France is",
    "Water boils when it is heated to",
    "Question: Anna has three apples and buys four more. How many apples does she have?\nAnswer:",
    "Once upon a time, an old lighthouse keeper",
    "def fibonacci(n):\n",
)
TOKENS = 48
"""Largest number of tokens after a prompt."""


def greedy_texts(
    loaded: LoadedModel, candidate: LayerSubset, cache: EvaluationCache
) -> tuple[tuple[str, str], ...]:
    """Return the prompts, and what a candidate writes after each of them.

    A prompt that does not fit into the model's table of positions is left out.

    Args:
        loaded: the model, with its weights in memory.
        candidate: the candidate.
        cache: the texts are looked up there, and kept.

    Raises:
        StopRequested: a stop was requested.
    """
    longest = most_positions(loaded.model)
    # 1. Tokenise the prompts that fit.
    prompts, rows = [], []
    for prompt in PROMPTS:
        ids: list[int] = loaded.tokenizer(prompt)["input_ids"]
        if longest is None or len(ids) + TOKENS <= longest:
            prompts.append(prompt)
            rows.append(ids)
    if not rows or not loaded.model.can_generate():
        return ()

    def generate() -> list[str]:
        return [_continued(loaded, candidate, ids) for ids in rows]

    # 2. Generate, or find the texts of an earlier run.
    numerics = numerics_of(loaded.model)
    key = text_key(loaded.content, candidate.canonical, numerics, rows, TOKENS)
    found = cache.once(key, generate)
    texts = [as_text(text, "a generated text") for text in found]
    return tuple(zip(prompts, texts, strict=True))


@wide_products()
def _continued(loaded: LoadedModel, candidate: LayerSubset, ids: list[int]) -> str:
    """Return what a candidate writes after the token ids of a prompt."""
    stopping.check()
    prompt_1L = torch.tensor([ids], device=input_device(loaded.model))
    with pruned(loaded.model, candidate) as model:
        written = generate(model, prompt_1L, TOKENS, end=loaded.tokenizer.eos_token_id)
    return str(loaded.tokenizer.decode(written, skip_special_tokens=True))
