"""Facts of the table of architectures are respected."""

from typing import Any

import pytest
from transformers import CONFIG_MAPPING, PretrainedConfig

from prunesearch.errors import ModelError
from prunesearch.models.architectures import ARCHITECTURES, Architecture, Sublayer
from prunesearch.models.config_edits import edits
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import architecture_of

COUNT = "num_hidden_layers"


def config_of(model_type: str, **values: Any) -> PretrainedConfig:  # noqa: ANN401 (fields of any config)
    config: PretrainedConfig = CONFIG_MAPPING[model_type](**values)
    return config


def test_a_row_without_facts_has_none() -> None:
    assert dict(Architecture().per_layer_tensors) == dict(Sublayer(("mlp",)).returns) == {}
    with pytest.raises(TypeError):
        Architecture().per_layer_tensors["x"] = 1  # type: ignore[index]


@pytest.mark.parametrize("model_type", ["gemma4_text", "gemma4_unified_text"])
def test_the_last_block_has_the_kind_that_the_type_gives_it(model_type: str) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = config_of(model_type, num_hidden_layers=4, layer_types=kinds)
    assert edits(config, COUNT, (0, 1, 3))[COUNT] == 3
    with pytest.raises(ModelError, match=r"block 2 has sliding attention.*`protect` 3"):
        edits(config, COUNT, (0, 1, 2))


def test_a_first_block_of_its_own_stays() -> None:
    config = config_of("modernbert-decoder", num_hidden_layers=4)
    assert edits(config, COUNT, (0, 2, 3))[COUNT] == 3
    with pytest.raises(ModelError, match=r"block 0 cannot be dropped.*has no norm.*protect 0"):
        edits(config, COUNT, (1, 2, 3))


def test_a_multimodal_model_has_the_facts_of_its_language_model() -> None:
    config = config_of("gemma4_unified")
    text = ARCHITECTURES[settings_of(config).model_type]
    found = architecture_of(config)
    assert found.blocks != text.blocks
    assert (found.last_kind, found.known) == (text.last_kind, text.known)
