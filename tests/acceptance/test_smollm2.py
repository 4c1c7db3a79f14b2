"""The main job on SmolLM2-135M-Instruct: real weights, a real study, a checkpoint that reloads."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunesearch.candidate import LayerSubset
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import load
from prunesearch.models.surgery import pruned
from prunesearch.objectives.calibration_data import read_jsonl
from prunesearch.objectives.task import TaskObjective
from tests.support.cli import refused, run
from tests.support.models import results_of
from tests.support.paths import HELLASWAG


def prunesearch(here: Path, *words: object) -> tuple[dict[str, Any], str]:
    """Run a command in a folder. Return its JSON document, and what it said."""
    with contextlib.chdir(here):
        done = run(*words, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def home(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that already has the model."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(smollm2, folder / "storage" / "models" / smollm2.name)
    return folder


@pytest.fixture(scope="module")
def demo(home: Path) -> dict[str, Any]:
    return prunesearch(home, "demo", "--trials", 8)[0]


def test_the_demo_ends_with_a_smaller_model_that_works(demo: dict[str, Any], home: Path) -> None:
    first, second = demo["searches"]
    assert (first["sampler"], second["sampler"]) == ("pso", "woa")
    assert first["computed"] == 8
    assert second["hits"] >= 6, "the second sampler finds the first's start in the cache"
    assert demo["dense"]["params"] == 134_515_008
    assert demo["pruned"]["params"] == 134_515_008 - 6 * 3_540_096
    assert demo["pruned"]["kl"] == min(first["value"], second["value"]) < 2.0
    assert demo["pruned"]["held_out_perplexity"] < 8 * demo["dense"]["held_out_perplexity"]
    # Latency is measured, so other work on the machine may decide which is larger.
    assert demo["pruned"]["latency_ms"] > 0
    assert demo["dense"]["latency_ms"] > 0
    assert demo["export"]["verification"]["prefill_difference"] == 0


def test_the_demo_again_scores_nothing(demo: dict[str, Any], home: Path) -> None:
    again, said = prunesearch(home, "demo", "--trials", 8)
    assert [run["computed"] for run in again["searches"]] == [0, 0]
    assert again["pruned"]["kl"] == demo["pruned"]["kl"]
    assert again["seconds"] < 40
    assert "downloading" not in said


@torch.inference_mode()
def test_plain_transformers_gives_the_candidates_logits_and_text(
    demo: dict[str, Any], home: Path
) -> None:
    loaded = load(str(home / "storage" / "models" / "SmolLM2-135M-Instruct"))
    reloaded: Any = AutoModelForCausalLM.from_pretrained(home / demo["export"]["folder"])
    tokenizer = AutoTokenizer.from_pretrained(home / demo["export"]["folder"])
    chat = [{"role": "user", "content": "Why is the sea salty?"}]
    ids: Any = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with pruned(loaded.model, LayerSubset.parse(demo["export"]["dropped"], 30)) as candidate:
        assert torch.equal(reloaded(**ids).logits, candidate(**ids).logits)
        models: tuple[Any, Any] = (reloaded, candidate)
        texts = [
            model.generate(**ids, do_sample=False, min_new_tokens=24, max_new_tokens=24)
            for model in models
        ]
    assert texts[0].shape[1] == ids["input_ids"].shape[1] + 24
    assert torch.equal(*texts)


def test_the_gguf_itself_is_the_same_model(
    gguf: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loading the .gguf gives the fingerprint of the converted checkpoint, so both share the
    cache.
    """
    checkpoint = load(str(home / "storage" / "models" / "SmolLM2-135M-Instruct"))
    assert load(str(gguf)).fingerprint == checkpoint.fingerprint
    capsys.readouterr()  # progress of what was loaded
    cut = home / "cut.gguf"
    with gguf.open("rb") as file:
        cut.write_bytes(file.read(50_000_000))
    assert "get it again" in refused(capsys, monkeypatch, "search", cut, "--drop", 2)


@pytest.mark.skipif(not HELLASWAG.exists(), reason="the HellaSwag file is not on this machine")
def test_hellaswag_equals_lm_eval(home: Path) -> None:
    """bfloat16: other batches round otherwise, but not so far that an answer changes here."""
    loaded = load(str(home / "storage" / "models" / "SmolLM2-135M-Instruct"))
    objective = TaskObjective(loaded, "hellaswag", data=str(HELLASWAG), limit=12)
    dense = LayerSubset.of(30)
    ours = objective.metrics(*results_of(loaded, objective, dense))
    splits = {"validation": datasets.Dataset.from_list(read_jsonl(HELLASWAG))}
    with contextlib.redirect_stderr(io.StringIO()), wide_products():
        task = {"task": "hellaswag", "custom_dataset": lambda **_: splits, "training_split": None}
        # The index of one folder. That of all tasks takes seconds to read.
        folder = Path(lm_eval.tasks.__file__).parent / "hellaswag"
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        tasks = manager.load([{"group": "g", "task": [task]}])["tasks"]
        lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=16)
        found = lm_eval.simple_evaluate(
            lm, tasks=list(tasks.values()), limit=12, task_manager=manager
        )
    results = found["results"]["hellaswag"]
    for metric in ("acc", "acc_norm"):
        assert ours.values[metric] == results[f"{metric},none"]
        assert ours.stderr[metric] == results[f"{metric}_stderr,none"]
