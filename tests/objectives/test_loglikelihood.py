"""Every architecture gives lm-eval's own log-likelihoods, packed where that is exact and plain
where it is not.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from prunesearch.candidate import LayerSubset
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.surgery import pruned
from prunesearch.objectives.loglikelihood import (
    LogLikelihood,
    ScoredBatch,
    inputs_of,
    lay_out_rows,
    lay_out_trees,
    supports_trees,
)
from tests.support.models import ARCHITECTURES, N_LAYERS

CONTEXTS = ("The boat leaves the harbour at dawn and the crew", "The boat leaves the harbour and")
ENDINGS = (" rows.", " rows on.", " sings a song.", " eats fish and sleeps.")
REQUESTS = [(context, ending) for context in CONTEXTS for ending in ENDINGS]
CANDIDATES = [
    LayerSubset.of(N_LAYERS),
    LayerSubset.of(N_LAYERS, [0, 3]),
    LayerSubset.of(N_LAYERS, [4]),
]
PACKED = {
    "llama",
    "qwen2",
    "qwen3",
    "phi",
    "gpt_neox",
    "olmo2",
    "mixtral",
    "qwen3_moe",
    "smollm3",
    "opt",
}


def lm_evals(loaded: LoadedModel, candidate: LayerSubset) -> list[LogLikelihood]:
    """What lm-eval's own model answers, one request a batch."""
    requests = [Instance("loglikelihood", {}, request, i) for i, request in enumerate(REQUESTS)]
    with pruned(loaded.model, candidate) as model:
        lm = HFLM(pretrained=model, tokenizer=loaded.tokenizer, batch_size=1)
        return list(lm.loglikelihood(requests, disable_tqdm=True))


def ours(loaded: LoadedModel, batches: list[ScoredBatch]) -> dict[LayerSubset, list[LogLikelihood]]:
    """Answers of all candidates, scored together."""
    forward, head = Forward(loaded.model, loaded.layers), Head(loaded.model)
    found: dict[LayerSubset, dict[int, LogLikelihood]] = {c: {} for c in CANDIDATES}
    placed = [batch.on(loaded.model) for batch in batches]
    for job, candidate, state in forward.run([(batch.batch, CANDIDATES) for batch in placed]):
        found[candidate].update(placed[job].answers(head, state))
    return {c: [answers[i] for i in range(len(REQUESTS))] for c, answers in found.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_likelihoods_are_lm_evals(architecture: str, make_model: Callable[..., Path]) -> None:
    loaded = load(str(make_model(architecture)), device="cpu")
    pairs = [tuple(map(loaded.tokenizer.encode, pair)) for pair in REQUESTS]
    sequences = inputs_of(pairs, 512)
    packs = supports_trees(loaded.model, Forward(loaded.model, loaded.layers))
    ways = {"plain": lay_out_rows(pairs, sequences, 128)}
    if packs:
        ways["packed"] = lay_out_trees(pairs, sequences, 128)
        assert sum(r.batch.tokens for r in ways["packed"]) < 0.6 * sum(
            r.batch.tokens for r in ways["plain"]
        )
    assert packs or architecture not in PACKED, (
        "an architecture for which packing is exact takes the plain path"
    )
    expected = {candidate: lm_evals(loaded, candidate) for candidate in CANDIDATES}
    for way, batches in ways.items():
        for candidate, answers in ours(loaded, batches).items():
            values = torch.tensor([value for value, _ in answers])
            theirs = torch.tensor([value for value, _ in expected[candidate]])
            torch.testing.assert_close(
                values, theirs, atol=1e-3, rtol=1e-4, msg=partial("{}: {}".format, way)
            )
            assert [greedy for _, greedy in answers] == [
                greedy for _, greedy in expected[candidate]
            ]
