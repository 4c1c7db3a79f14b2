"""An export's config is the base's file with only what the removal of blocks changes."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, LlamaConfig

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError
from prunesearch.export.config_file import ConfigFile
from prunesearch.export.edited_config import edited_file
from prunesearch.models.model_configs import read_config

N = 6
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_BY_TWO = ["sliding_attention", "full_attention"] * 3
_BY_THREE = ["sliding_attention", "sliding_attention", "full_attention"] * 2
_LINEAR = ["linear_attention", "linear_attention", "full_attention"] * 2


def edited(
    values: dict[str, Any], *dropped: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The values of the edited file of a model of that type with six blocks."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(values))
        stored, config = ConfigFile.read(Path(folder)), read_config(folder)
    return dict(edited_file(stored, config, LayerSubset.of(N, dropped), dtype).values)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "llama", "rope_theta": 1e5, "rope_scaling": None},
        {
            "model_type": "llama",
            "rope_theta": 5e5,
            "rope_scaling": _LLAMA3,
            "of_the_maker": {"a": [1, 2]},
        },
        {"model_type": "mistral", "rope_theta": 1e6, "sliding_window": None},
        {
            "model_type": "qwen2",
            "rope_theta": 1e6,
            "use_sliding_window": False,
            "max_window_layers": 28,
        },
        {"model_type": "gemma2", "rope_theta": 1e4},
        {
            "model_type": "llama",
            "max_length": 100,
            "repetition_penalty": 1.2,
            "eos_token_id": [5, 3, 1, 2, 4, 0],
        },
    ],
    ids=lambda values: str(values["model_type"]),
)
def test_only_the_number_of_blocks_changes(values: dict[str, Any]) -> None:
    base = {
        "num_hidden_layers": N,
        **values,
        "torch_dtype": "float32",
        "transformers_version": "4.44.0",
    }
    assert edited(base, 4, 5) == {**base, "num_hidden_layers": 4}
    assert list(edited(base, 4, 5)) == list(base), "keys keep their order"
    assert edited(base) == base


@pytest.mark.parametrize("name", ["n_layer", "num_hidden_layers"])
def test_the_number_of_blocks_keeps_the_name_it_has(name: str) -> None:
    assert edited({"model_type": "gpt2", name: N}, 1) == {"model_type": "gpt2", name: 5}


def test_every_name_of_the_number_of_blocks_says_the_same() -> None:
    """llama.cpp, for one, reads ``n_layers`` before ``num_hidden_layers``."""
    llama = {
        "model_type": "llama",
        "num_hidden_layers": N,
        "n_layers": N,
        "num_layers": N,
        "n_layer": 99,
    }
    assert edited(llama, 1) == {**llama, "num_hidden_layers": 5, "n_layers": 5, "num_layers": 5}
    assert edited({"model_type": "gpt2", "n_layer": 12, "num_hidden_layers": N}, 1) == {
        "model_type": "gpt2",
        "n_layer": 5,
        "num_hidden_layers": 5,
    }


@pytest.mark.parametrize("other", ["", "é"])
def test_half_a_surrogate_pair_can_be_written(other: str, tmp_path: Path) -> None:
    text = '{"odd": "\\ud83d", "other": OTHER, "gone": 1}'.replace(
        "OTHER", json.dumps(other, ensure_ascii=False)
    )
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    ConfigFile.read(tmp_path).without("gone").write(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == {
        "odd": "\ud83d",
        "other": other,
    }


@pytest.mark.parametrize(
    ("model_type", "period", "every", "listed", "whole"),
    [
        ("gemma3_text", "sliding_window_pattern", 3, "layer_types", _BY_THREE),
        ("cohere2", "sliding_window_pattern", 2, "layer_types", _BY_TWO),
        ("qwen3_next", "full_attention_interval", 3, "layer_types", _LINEAR),
        ("smollm3", "no_rope_layer_interval", 3, "no_rope_layers", [1, 1, 0, 1, 1, 0]),
    ],
)
@pytest.mark.parametrize("spelled_out", [True, False])
def test_a_period_goes_only_where_it_says_something_else_than_the_list(
    model_type: str, period: str, every: int, listed: str, whole: list[Any], spelled_out: bool
) -> None:
    base = {"model_type": model_type, "num_hidden_layers": N, period: every}
    base |= {listed: whole} if spelled_out else {}
    kept_pattern = edited(base, *range(every))
    assert kept_pattern[period] == every
    assert kept_pattern.get(listed, whole[every:]) == whole[every:]
    assert (listed in kept_pattern) is spelled_out
    broken = edited(base, 0)
    assert period not in broken
    assert broken[listed] == whole[1:]


def test_a_period_that_said_nothing_before_is_left_alone() -> None:
    base = {
        "model_type": "gemma3_text",
        "num_hidden_layers": N,
        "layer_types": _BY_TWO,
        "_sliding_window_pattern": 6,
    }
    assert edited(base, 0) == {**base, "num_hidden_layers": 5, "layer_types": _BY_TWO[1:]}


def test_lists_that_only_the_file_has_are_edited_too() -> None:
    lfm = {"model_type": "lfm2", "num_hidden_layers": N, "full_attn_idxs": [2, 5]}
    assert edited(lfm, 0, 3)["full_attn_idxs"] == [1, 3]
    nemotron = {
        "model_type": "nemotron_h",
        "num_hidden_layers": N,
        "hybrid_override_pattern": "M*-M*-",
    }
    nemotron["time_step_limit"] = [0.0, {"__float__": "Infinity"}]
    assert edited(nemotron, 0, 1, 2) == {
        **nemotron,
        "num_hidden_layers": 3,
        "hybrid_override_pattern": "M*-",
    }


def test_a_default_number_of_blocks_is_spelled_out() -> None:
    assert CONFIG_MAPPING["gpt2"]().num_hidden_layers == 12
    config = CONFIG_MAPPING["gpt2"]()
    stored = ConfigFile({"model_type": "gpt2"}, "{}")
    made = edited_file(stored, config, LayerSubset.of(12, (0,)), torch.float32)
    assert made.values == {"model_type": "gpt2", "n_layer": 11}


def test_the_language_model_of_a_larger_one_is_edited_where_it_is_described() -> None:
    text = {
        "num_hidden_layers": N,
        "layer_types": _BY_THREE,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    }
    base = {
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": {"num_hidden_layers": N},
        "torch_dtype": "float32",
    }
    expected = {**text, "num_hidden_layers": 3, "layer_types": _BY_THREE[3:]}
    assert edited(base, 0, 1, 2) == {**base, "text_config": expected}


def test_precision_follows_the_weights() -> None:
    text, vision = {"num_hidden_layers": N, "torch_dtype": "bfloat16"}, {"torch_dtype": "float32"}
    base = {
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "text_config": text,
        "vision_config": vision,
    }
    assert edited(base, dtype=torch.bfloat16) == base, "it is as the file says"
    changed = edited(base, dtype=torch.float16)
    assert changed["torch_dtype"] == changed["text_config"]["torch_dtype"] == "float16"
    assert changed["vision_config"]["torch_dtype"] == "float16"
    plain = {"model_type": "llama", "num_hidden_layers": N}
    assert edited(plain, dtype=torch.float16) == plain, "the weights say it"


@pytest.mark.parametrize("indent", [2, 4, "\t", None])
@pytest.mark.parametrize("end", ["", "\n"])
def test_the_style_of_the_file_is_kept(indent: int | str | None, end: str, tmp_path: Path) -> None:
    values = {
        "model_type": "llama",
        "num_hidden_layers": N,
        "rope_theta": 1e5,
        "maker": "Å",
        "rms_norm_eps": 1e-05,
    }
    (tmp_path / "config.json").write_text(
        json.dumps(values, indent=indent, ensure_ascii=False) + end, encoding="utf-8"
    )
    stored = ConfigFile.read(tmp_path)
    config = CONFIG_MAPPING["llama"].from_dict(values)
    made = edited_file(stored, config, LayerSubset.of(N, (0,)), torch.float32)
    assert made.text == stored.text.replace('"num_hidden_layers": 6', '"num_hidden_layers": 5')


def test_a_config_made_in_memory_has_the_names_of_transformers_4_too() -> None:
    config = LlamaConfig(rope_parameters={"rope_theta": 5e5, **_LLAMA3}, dtype="bfloat16")
    values = ConfigFile.of(config).values
    assert (values["rope_theta"], values["rope_scaling"], values["torch_dtype"]) == (
        5e5,
        _LLAMA3,
        "bfloat16",
    )
    local = ConfigFile.of(CONFIG_MAPPING["gemma3_text"]()).values
    assert (local["rope_theta"], local["rope_local_base_freq"], local["rope_scaling"]) == (
        1e6,
        1e4,
        None,
    )


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_config_that_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json"):
        ConfigFile.read(tmp_path)


def test_no_path_of_a_machine_travels_in_a_config() -> None:
    base = {
        "model_type": "gemma3",
        "_name_or_path": "/home/me/x",
        "text_config": {"num_hidden_layers": N},
    }
    base["vision_config"] = {"_name_or_path": "google/siglip"}
    assert edited(base) == {**base, "_name_or_path": "x"}
