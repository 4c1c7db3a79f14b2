"""Exports compute the same in transformers 4.57 as their bases do there without the dropped blocks.

It lies in a folder that the environment variable PRUNESEARCH_TRANSFORMERS4 names, installed as
`.ci/run` does it. All exports are loaded by one process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunesearch.candidate import LayerSubset
from prunesearch.export import export, gguf_write
from prunesearch.models.loading import load
from tests.support.models import N_LAYERS, byte_tokenizer, tiny

FOLDER = os.environ.get("PRUNESEARCH_TRANSFORMERS4", "")
pytestmark = pytest.mark.skipif(
    not Path(FOLDER).is_dir() or not FOLDER, reason="PRUNESEARCH_TRANSFORMERS4 names no folder"
)

READER = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

ids = torch.arange(1, 200)[None]

def hand_on(module, args, kwargs, output):
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

def refusal(folder):
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    except ImportError as error:
        return str(error)

found = {"refused": [refusal(folder) for folder in json.loads(sys.argv[2])]}
for name, base, export, dropped in json.loads(sys.argv[1]):
    exported = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(export)("the ship")["input_ids"]
    difference = None
    if base is not None:
        dense = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        for number in dropped:
            dense.model.layers[number].register_forward_hook(hand_on, with_kwargs=True)
        with torch.inference_mode():
            logits = [model(ids, use_cache=False).logits for model in (dense, exported)]
        difference = float((logits[0] - logits[1]).abs().max())
    found[name] = {"difference": difference, "tokens": tokens, "theta": exported.config.rope_theta}
print(json.dumps({"version": transformers.__version__, "found": found}))
"""
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_PATTERN = ["sliding_attention", "sliding_attention", "full_attention"] * 2
BASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "llama": ("llama", (1,), {"rope_theta": 1e5, "rope_scaling": None}),
    "llama3 scaling": ("llama", (1,), {"rope_theta": 5e5, "rope_scaling": _LLAMA3}),
    "mistral": ("mistral", (0, 3), {"rope_theta": 1e6}),
    "gemma3, by periods": (
        "gemma3_text",
        (0, 1, 2),
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 3},
    ),
    "gemma3, period left out": (
        "gemma3_text",
        (0,),
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 3},
    ),
    "qwen3": (
        "qwen3",
        (5,),
        {"rope_theta": 1e6, "use_sliding_window": False, "max_window_layers": N_LAYERS},
    ),
    "bin": ("llama", (2,), {"rope_theta": 1e5}),
}


def _base(folder: Path, architecture: str, fields: dict[str, Any]) -> Path:
    """A checkpoint whose config is as transformers 4 writes it."""
    changes: dict[str, Any] = {"layer_types": _PATTERN} if architecture.startswith("gemma3") else {}
    tiny(architecture, **changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    said = folder / "tokenizer_config.json"
    said.write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<s>"}
        )
    )
    config = json.loads((folder / "config.json").read_text())
    gone = ("rope_parameters", "dtype", "_sliding_window_pattern")
    older = {name: value for name, value in config.items() if name not in gone}
    (folder / "config.json").write_text(
        json.dumps({**older, **fields, "torch_dtype": "float32"}, indent=2)
    )
    return folder


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What transformers 4 makes of the exports."""
    home = tmp_path_factory.mktemp("transformers4")
    work: list[tuple[str, str | None, str, tuple[int, ...]]] = []
    for number, (name, (architecture, dropped, fields)) in enumerate(BASES.items()):
        base = _base(home / f"base{number}", architecture, fields)
        if name == "bin":
            torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
            (base / "model.safetensors").unlink()
        out = home / f"out{number}"
        export(load(str(base), device="cpu"), LayerSubset.of(N_LAYERS, dropped), out)
        work.append((name, str(base), str(out), dropped))
    tokenizer = byte_tokenizer(("t", "h"), ascii_only=True)
    rope = {"rope_type": "default", "rope_theta": 1e5}
    tiny(vocab_size=len(tokenizer), rope_parameters=rope).save_pretrained(home / "dense")
    tokenizer.save_pretrained(home / "dense")
    whole = LayerSubset.of(N_LAYERS)
    gguf_write.write(
        load(str(home / "dense"), device="cpu"), whole, home / "dense.gguf", compare=False
    )
    export(
        load(str(home / "dense.gguf"), device="cpu"), LayerSubset.of(N_LAYERS, (1,)), home / "gguf"
    )
    work.append(("gguf", None, str(home / "gguf"), (1,)))
    folders = [str(home / export_format) for export_format in ("remote-code", "deci")]
    without = LayerSubset.of(N_LAYERS, attention=(2,), mlp=(4,))
    dense = load(str(home / "dense"), device="cpu")
    for folder in folders:
        export(dense, without, Path(folder), export_format=Path(folder).name)
    done = subprocess.run(
        [sys.executable, "-c", READER, json.dumps(work), json.dumps(folders)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": FOLDER, "HF_MODULES_CACHE": str(home / "modules")},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["version"].startswith("4.")
    found: dict[str, Any] = told["found"]
    return found


@pytest.mark.parametrize("name", BASES)
def test_an_export_computes_what_its_base_does_without_the_blocks(
    name: str, read: dict[str, Any]
) -> None:
    assert read[name]["difference"] < 1e-4
    assert read[name]["tokens"] == byte_tokenizer()("the ship")["input_ids"]


def test_an_export_of_a_gguf_is_read_with_its_rotary_embedding(read: dict[str, Any]) -> None:
    assert read["gguf"]["theta"] == 1e5
    assert (
        read["gguf"]["tokens"]
        == byte_tokenizer(("t", "h"), ascii_only=True)("the ship")["input_ids"]
    )


def test_exports_with_code_say_what_they_need(read: dict[str, Any]) -> None:
    assert all("needs transformers 5 or newer, and this is 4." in told for told in read["refused"])
