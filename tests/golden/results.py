"""Keys of every kind, a cache, an exchange file, and JSON documents of commands: what other
versions read.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.cache.keys import canonical_json, evaluation_key, latency_key
from prunesearch.cache.location import CacheLocation
from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import cli
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.pipeline.search_loop import search
from prunesearch.pipeline.session import load_for, objective_for
from prunesearch.samplers import build
from tests.support.formula import FITNESS, SPACE, Log, engine_for
from tests.support.models import byte_tokenizer

# What the stored cache has results of.
CANDIDATES = (
    (0, 3, 6, 8, 9, 10),
    (4, 12, 17, 18, 19, 22),
    (1, 11, 14, 15, 16, 23),
    (2, 5, 7, 13, 20, 21),
    (2, 3, 5, 12, 18, 21),
    (1, 8, 9, 13, 14, 16),
    (8, 9, 10, 12, 13, 14),
    (8, 9, 14, 16, 17, 19),
    (4, 6, 8, 9, 13, 14),
    (8, 9, 11, 12, 13, 14),
    (9, 13, 14, 16, 17, 18),
    (0, 1, 8, 9, 14, 18),
    (0, 1, 4, 6, 8, 14),
    (1, 4, 6, 8, 9, 18),
    (0, 1, 4, 8, 9, 22),
    (1, 4, 8, 9, 14, 19),
    (0, 1, 4, 8, 14, 23),
    (1, 6, 8, 14, 19, 22),
)
TRIALS = len(CANDIDATES)
FINGERPRINT = "0" * 64
_VERSIONS = ("torch", "transformers", "lm_eval")


def write_model(folder: Path) -> None:
    """Write a tiny Llama whose weights are made from whole numbers, the same on every machine."""
    config = LlamaConfig(
        vocab_size=264, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    state = {}
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        steps = (torch.arange(tensor.numel()) * (7919 + 2 * number)) % 1021
        state[name] = ((steps - 510).float() / 2048).view(tensor.shape)
        if name.endswith("norm.weight"):
            state[name] = torch.ones_like(tensor)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def write_data(folder: Path) -> tuple[Path, Path]:
    """Write a text, and rows of a task."""
    prose, rows = folder / "prose.txt", folder / "rows.jsonl"
    prose.write_text(
        " ".join(
            f"Sentence {i} tells of {i * i} ships that left the harbour at dawn."
            for i in range(120)
        )
    )
    lines = []
    for i in range(12):
        row = {
            "ind": i,
            "activity_label": "Sailing",
            "ctx_a": f"Boat {i} leaves the harbour.",
            "ctx_b": "the crew",
            "endings": [
                f"rows {i} miles.",
                "sings a song.",
                f"eats {i} fish and sleeps.",
                "waits.",
            ],
            "label": str(i % 4),
        }
        lines.append(json.dumps(row) + "\n")
    rows.write_text("".join(lines))
    return prose, rows


def keys(folder: Path, prose: Path, documents: Path) -> dict[str, list[Any]]:
    """The pre-images of the keys of every kind of data, with the versions of libraries left out."""
    text = {"calibration": str(prose), "tokens": 256, "window": 64}
    task = {"task": "hellaswag", "task_data": str(documents), "limit": 6}
    recipes = {
        "kl": {**text},
        "kl, top 8": {**text, "kl_top": 8},
        "perplexity": {**text, "objective": "perplexity"},
        "task": {**task, "objective": "task"},
        "mix": {**text, "objective": "kl=1,hellaswag=1", "task_data": str(documents), "limit": 6},
    }
    candidate = LayerSubset.of(6, [1, 4])
    found = {}
    for name, settings in recipes.items():
        recipe = Recipe(model=str(folder), drop="2", **settings)
        options = RunOptions(device="cpu")
        loaded = load_for(recipe.model, options)
        objective = objective_for(recipe.objective, recipe.data, loaded, options)
        preimages = []
        for chunk in objective.chunks:
            preimages.append(
                _without_versions(
                    json.loads(
                        evaluation_key(
                            loaded.fingerprint, candidate.canonical, chunk.identity
                        ).preimage
                    )
                )
            )
        found[name] = preimages
    numerics = {"dtype": "float32", "device": "cpu"}
    found["latency"] = [json.loads(latency_key(FINGERPRINT, "a machine", numerics, 256).preimage)]
    found["digest"] = [
        evaluation_key(FINGERPRINT, "blocks/6:1,4", {"kind": "kl", "tokens": "t"}).digest
    ]
    return found


def _without_versions(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    if not isinstance(value, dict):
        return value
    return {
        name: "VERSION" if name in _VERSIONS else _without_versions(part)
        for name, part in value.items()
    }


def fill_cache(folder: Path) -> tuple[int, int]:
    """Search a formula through a cache;
    how many results were found there and how many were computed.
    """
    location = CacheLocation.parse(str(folder))
    log = Log(folder.with_name("log"))
    with EvaluationCache(location) as cache:
        engine = engine_for(cache, location, log, 2, 0.0)
        study = optuna.create_study()
        first = [LayerSubset(SPACE.n_layers, dropped) for dropped in CANDIDATES]
        sampler = build("pso", SPACE, seed=0, first=first)
        result = asyncio.run(search(study, sampler, engine, FITNESS, TRIALS))
    return result.hits, result.computed


def documents(folder: Path, prose: Path, rows: Path) -> dict[str, Any]:
    """The shape of the JSON document of every command: names and kinds of values, not the
    values.
    """
    text = ["--calibration", prose, "--tokens", 256, "--window", 64]
    task = ["--task", "hellaswag", "--task-data", rows, "--limit", 6]
    small = [
        "--steps",
        2,
        "--batch-size",
        2,
        "--window",
        32,
        "--held-out-tokens",
        64,
        "--eval-every",
        1,
    ]
    Path("recipe.yaml").write_text(
        f"model: {folder}\nsearch: {{drop: 1, sampler: random}}\nrun: {{trials: 2, study: r}}\n"
        f"data: {{calibration: {prose}, tokens: 128, window: 64}}\n"
    )
    commands: dict[str, list[object]] = {
        "analyze": ["analyze", folder],
        "plan": ["plan", folder, "--memory", "64GiB"],
        "search": ["search", folder, "--drop", 2, "--trials", 8, *text, "--study", "s"],
        "search, grid": [
            "search",
            folder,
            "--drop",
            "1,2",
            "--sampler",
            "random",
            "--trials",
            2,
            *text,
        ],
        "search, pareto": [
            "search",
            folder,
            "--drop",
            "pareto",
            "--trials",
            8,
            *text,
            "--study",
            "p",
        ],
        "search, task": ["search", folder, "--drop", 1, "--trials", 3, *task],
        "study list": ["study", "list"],
        "study show": ["study", "show", "s"],
        "study show, pareto": ["study", "show", "p"],
        "study best": ["study", "best", "s"],
        "study layers": ["study", "layers", "s"],
        "evaluate": ["evaluate", folder, *text],
        "evaluate, task": ["evaluate", folder, *task],
        "export": ["export", "s", "--out", "exported"],
        "verify": ["verify", "exported"],
        "compensate": [
            "compensate",
            folder,
            "--layers",
            3,
            *text,
            "--held-out-tokens",
            256,
            "--out",
            "compensated",
        ],
        "heal": ["heal", folder, "--layers", 3, "--data", prose, *small, "--out", "healed"],
        "run": ["run", "recipe.yaml", "--out", "made"],
        "cache stats": ["cache", "stats"],
        "cache verify": ["cache", "verify"],
        "cache export": ["cache", "export", "all.jsonl.gz"],
        "cache import": ["cache", "import", "all.jsonl.gz", "--cache", "other"],
        "cache gc": ["cache", "gc", "--older-than", "900d"],
        "cache path": ["cache", "path"],
        "doctor": ["doctor"],
        "study rm": ["study", "rm", "s", "--yes"],
        "an error": ["study", "show", "nosuch"],
    }
    found = {}
    for name, words in commands.items():
        result = CliRunner().invoke(cli, [*map(str, words), "--json"], standalone_mode=False)
        if result.exception is not None and name != "an error":
            raise result.exception
        text_of = result.stdout
        found[name] = shape(json.loads(text_of)) if text_of.strip() else "nothing on stdout"
    return found


def shape(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """The names in a JSON value and the kinds of its parts; of a list, those of its first part."""
    if isinstance(value, Mapping):
        return {str(name): shape(part) for name, part in value.items()}
    if isinstance(value, list):
        # How many texts a list has may depend on the machine, such as the notes of a plan.
        if all(isinstance(part, str) for part in value):
            return "texts"
        return [shape(value[0])]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return "null" if value is None else type(value).__name__


def canonical(value: Any) -> str:  # noqa: ANN401 (any JSON value)
    """One spelling for each JSON value, over several lines."""
    canonical_json(value)
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def offline() -> None:
    """No library may look for a hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
