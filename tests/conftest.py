"""Fixtures: tiny random models built in milliseconds, and SmolLM2 for the acceptance tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prunesearch.candidate import LayerSubset
from prunesearch.errors import DownloadError
from prunesearch.model.anatomy import blocks_of
from prunesearch.model.demo_weights import obtain
from prunesearch.model.layers import ResidentLayers
from prunesearch.model.loading import LoadedModel, load
from prunesearch.scoring.forward import Forward
from prunesearch.scoring.objectives import Objective

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"
HELLASWAG = SHARED / "data" / "hellaswag_val_a.jsonl.bz2"
LANDSCAPE = SHARED / "landscapes" / "smollm2-135m_k3_kl.json"
N_LAYERS = 6

torch.set_num_threads(2)
optuna.logging.set_verbosity(optuna.logging.ERROR)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; 0 begins and ends texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<s>": 0} | {letter: i + 1 for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>", model_max_length=512
    )


FAMILIES: dict[str, tuple[type, type]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def tiny(family: str = "llama", seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of six small blocks, whose blocks differ enough that their order matters."""
    config_class, model_class = FAMILIES[family]
    settings = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "initializer_range": 0.3,
        **changes,
    }
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(config_class(**settings))
    return model.eval()


def resident(model: PreTrainedModel) -> ResidentLayers:
    """A model's blocks, as they are in memory."""
    return ResidentLayers(blocks_of(model))


def results_of(loaded: LoadedModel, objective: Objective, *candidates: LayerSubset) -> list[list[Any]]:
    """Score candidates together, on all chunks; for each its results chunk by chunk, or why there are none."""
    work = [(chunk, candidates) for chunk in objective.chunks]
    scored = {(index, c): found for index, c, found in objective.score(work, Forward(loaded.model, loaded.layers))}
    return [[scored[chunk.index, c] for chunk in objective.chunks] for c in candidates]


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny model with its tokenizer and return the folder."""

    def make(family: str = "llama", name: str = "tiny", **changes: object) -> Path:
        folder = tmp_path / name
        tiny(family, **changes).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk, shared by tests that do not change it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def loaded(tiny_folder: Path) -> LoadedModel:
    """The tiny Llama, loaded afresh."""
    return load(str(tiny_folder), device="cpu")


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of a few thousand bytes."""
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(" ".join(f"Sentence {i} tells of {i * i} ships that left the harbour at dawn." for i in range(120)))
    return path


@pytest.fixture(scope="session")
def hellaswag_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents with HellaSwag's fields."""
    path = tmp_path_factory.mktemp("task") / "documents.jsonl"
    rows = [
        {
            "ind": i,
            "activity_label": "Sailing",
            "ctx_a": f"Boat {i} leaves the harbour.",
            "ctx_b": "the crew",
            "endings": [f"rows {i} miles.", "sings a song.", f"eats {i} fish and sleeps.", "waits."],
            "label": str(i % 4),
        }
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, downloaded once into the repository's ``storage/models``."""
    try:
        return obtain(REPOSITORY / "storage" / "models")
    except DownloadError as error:
        pytest.skip(str(error))
