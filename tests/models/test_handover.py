"""What a library was handed comes back as it was, or it is an error."""

import pytest
import torch
from torch import nn

from prunesearch.errors import RunError
from prunesearch.models.handover import tokenizer_copy, tokenizer_digest, unchanged_by
from tests.support.models import byte_tokenizer, tiny


def test_settings_are_put_back() -> None:
    model = tiny()
    said = model.config.to_json_string(), model.generation_config.to_json_string()
    attributes = set(vars(model))
    with unchanged_by("a library", model):
        model.config.use_cache = False
        model.config.rope_parameters["rope_theta"] = 1.0
        model.generation_config.eos_token_id = 7
        model.train()
        model.peft_config = {}
        model.get_input_embeddings().register_forward_hook(lambda *args: None)
    assert said == (model.config.to_json_string(), model.generation_config.to_json_string())
    assert set(vars(model)) == attributes
    assert not any(module.training for module in model.modules())
    assert not model.get_input_embeddings()._forward_hooks


def _write(model: nn.Module) -> None:
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)  # type: ignore[operator, union-attr]


def _move(model: nn.Module) -> None:
    model.lm_head.weight.data = model.lm_head.weight.data.clone()  # type: ignore[union-attr, operator]


def _tie(model: nn.Module) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight  # type: ignore[union-attr]


@pytest.mark.parametrize("change", [_write, _move, _tie])
def test_a_changed_weight_is_an_error(change: object) -> None:
    model = tiny(tie_word_embeddings=False)
    with (
        pytest.raises(RunError, match=r"a library changed 1 weight.*lm_head.weight"),
        unchanged_by("a library", model),
    ):
        change(model)  # type: ignore[operator]


def test_training_may_change_values_but_not_ties() -> None:
    model = tiny(tie_word_embeddings=False)
    with unchanged_by("a library", model, trains=True):
        _write(model)
    with (
        pytest.raises(RunError, match=r"lm_head.weight"),
        unchanged_by("a library", model, trains=True),
    ):
        _tie(model)


def test_weights_cannot_be_tied_meanwhile() -> None:
    model = tiny(tie_word_embeddings=False)
    model.config.tie_word_embeddings = True
    with unchanged_by("a library", model):
        model.tie_weights()
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight, "afterwards it works again"


def test_a_copied_tokenizer_is_another_one() -> None:
    tokenizer = byte_tokenizer()
    digest, copied = tokenizer_digest(tokenizer), tokenizer_copy(tokenizer)
    copied(["a", "bcd"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(copied) == digest, "how it was called last does not count"
    copied.add_special_tokens({"pad_token": "<|pad|>"})
    assert len(copied) == len(tokenizer) + 1
    assert tokenizer_digest(copied) != digest == tokenizer_digest(tokenizer)
