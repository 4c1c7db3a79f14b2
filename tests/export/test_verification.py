"""Verification decodes by itself, with a cache, whatever settings come with the model;
and says what it compared.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import VerificationError
from prunesearch.export import export, recheck, reloading
from prunesearch.export.decoding import NEW_TOKENS
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.streaming import open_streamed
from tests.support.models import N_LAYERS, byte_tokenizer, tiny

CANDIDATE = LayerSubset.of(N_LAYERS, (1,))
SETTINGS: tuple[dict[str, Any], ...] = (
    {"stop_strings": ["a"], "token_healing": True},
    {"penalty_alpha": 0.6, "top_k": 4, "use_cache": False},
    {"dola_layers": "high", "max_time": 0.0001},
    {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5, "force_words_ids": [[5]]},
    {"prompt_lookup_num_tokens": 3, "custom_generate": "x/y", "is_assistant": True},
    {"cache_implementation": "quantized", "max_length": 5, "eos_token_id": [*range(200)]},
    {
        "do_sample": True,
        "temperature": 0.6,
        "repetition_penalty": 1.3,
        "guidance_scale": 1.5,
        "constraints": [],
    },
)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_no_setting_for_generation_has_a_say(
    settings: dict[str, Any], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_model()
    text = json.dumps(settings, indent=4)
    (base / "generation_config.json").write_text(text)
    check = export(load(str(base), device="cpu"), CANDIDATE, tmp_path / "out").verification
    assert (check.decoded, check.cached) == (NEW_TOKENS, True)
    assert (tmp_path / "out" / "generation_config.json").read_text() == text
    recheck(tmp_path / "out")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_next"])
def test_a_wrong_number_of_a_cache_is_found_where_the_config_wants_no_cache(
    architecture: str,
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = make_model(architecture, use_cache=False)
    check = export(load(str(base), device="cpu"), CANDIDATE, tmp_path / "right").verification
    assert check.cached
    assert json.loads((tmp_path / "right" / "config.json").read_text())["use_cache"] is False
    card = (tmp_path / "right" / "README.md").read_text()
    assert f"over {NEW_TOKENS} steps of cached decoding" in card

    def sabotaged(*args: Any, **kwargs: Any) -> PreTrainedModel:  # noqa: ANN401
        model = reload(*args, **kwargs)
        for module in model.modules():
            if getattr(module, "layer_idx", None) in (1, 2):
                module.layer_idx = 4  # type: ignore[assignment]
        return model

    reload = reloading.reload
    monkeypatch.setattr(reloading, "reload", sabotaged)
    with pytest.raises(VerificationError):
        export(load(str(base), device="cpu"), CANDIDATE, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_verify_finds_other_decoding_too(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(loaded, CANDIDATE, tmp_path / "out")
    path = tmp_path / "out" / "verification.json"
    report = json.loads(path.read_text())
    report["reference"]["continuation"] = [t + 1 for t in report["reference"]["continuation"]]
    path.write_text(json.dumps(report))
    with pytest.raises(VerificationError, match="generates another text"):
        recheck(tmp_path / "out")


def test_verify_finds_files_that_change_what_is_read_and_said(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    """Weights and logits are the same with another tokenizer."""
    out = tmp_path / "out"
    export(loaded, CANDIDATE, out)
    (out / "README.md").write_text("mine")
    recheck(out)
    path = out / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace('"e"', '"E"'))
    with pytest.raises(VerificationError, match=r"tokenizer\.json' has changed since the export"):
        recheck(out)
    path.unlink()
    with pytest.raises(VerificationError, match=r"tokenizer\.json' is missing"):
        recheck(out)
    path.write_text(text)
    recheck(out)


@pytest.mark.parametrize(
    "damage",
    [
        {"digests": [1]},
        {"files": 5},
        {"reference": 5},
        {"reference": {"prompt": [], "likeliest": [], "continuation": []}},
        {"reference": {"prompt": [99_999], "likeliest": [[[1, 2.0]]], "continuation": []}},
    ],
    ids=str,
)
def test_a_damaged_report_is_one_line(
    damage: dict[str, Any], verified: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(verified, out)
    report = json.loads((out / "verification.json").read_text())
    (out / "verification.json").write_text(json.dumps({**report, **damage}))
    with pytest.raises(VerificationError, match=r"verification\.json' is damaged"):
        recheck(out)


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export."""
    folder = tmp_path_factory.mktemp("verified")
    tiny().save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    export(load(str(folder / "base"), device="cpu"), CANDIDATE, folder / "out")
    return folder / "out"


def test_a_model_type_without_a_cache_and_a_streamed_one_say_so(
    tiny_folder: Path, tmp_path: Path
) -> None:
    check = export(
        open_streamed(str(tiny_folder), device="cpu"), CANDIDATE, tmp_path / "out"
    ).verification
    assert (check.decode_difference, check.decoded, check.cached) == (None, 0, False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "decoding was not compared" in card
    assert "cached decoding" not in card
