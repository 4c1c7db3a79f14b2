"""Types unlike Llama are scored as they compute, or refused before they are scored wrongly.

Those that once went wrong are tried, and every twelfth of all.
"""

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.models.sizes import sizes_of
from prunesearch.models.structure import blocks_of
from prunesearch.models.surgery import pruned
from prunesearch.objectives.base import ChunkWork
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.metrics.kl import KL
from tests.support.model_types import SAMPLE, tiny_model
from tests.support.models import byte_tokenizer, resident

IDS = torch.randint(1, 90, (2, 24), generator=torch.Generator().manual_seed(1))
REFUSED = dict.fromkeys(
    ("big_bird", "roformer", "xlm-roberta"), "no list of modules could be its blocks"
)
"""The types of the sample that cannot be scored, and the reason that is given."""


def skip_unknown(model_type: str) -> None:
    """Skip a type that the oldest version of transformers does not have."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")


def scored(model_type: str) -> tuple[float, float]:
    """Cross-entropy without block 1 by the scoring engine and by the model's own forward pass, in
    nats per token.
    """
    model = tiny_model(model_type).eval()
    loaded = LoadedModel(
        "tiny", model, byte_tokenizer(), "0" * 64, sizes_of(model), resident(model)
    )
    candidate = LayerSubset.of(len(blocks_of(model)), (1,))
    objective = CalibrationObjective(loaded, IDS, KL())
    (chunk,) = objective.chunks
    work = [ChunkWork(chunk, [candidate])]
    (result,) = objective.score(work, Forward(model, loaded.layers))
    with pruned(model, candidate), torch.inference_mode():
        logits = model(input_ids=IDS, use_cache=False).logits[:, :-1].float()
    own = torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
    return objective.metrics([result.rows]).values["cross_entropy"], float(own)


@pytest.mark.parametrize(
    "model_type",
    ["bamba", "falcon_h1", "gemma3", "gemma4", "gemma4_text", "gpt_neo", "mamba2", "mpt", "trocr"],
)
def test_what_is_scored_is_what_the_model_computes(model_type: str) -> None:
    found, own = scored(model_type)
    assert found == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize("model_type", ["gemma3n_text", "glm_moe_dsa", "inkling2_text", "xlstm"])
def test_blocks_that_hand_on_more_than_the_hidden_state_are_refused(model_type: str) -> None:
    skip_unknown(model_type)
    with pytest.raises(
        ModelError,
        match=f"models of type '{model_type}' cannot be scored, as their blocks are not one",
    ):
        scored(model_type)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_any_type_is_scored_as_it_computes_or_refused(model_type: str) -> None:
    skip_unknown(model_type)
    if model_type in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[model_type]):
            scored(model_type)
        return
    found, own = scored(model_type)
    assert found == pytest.approx(own, abs=1e-4)
