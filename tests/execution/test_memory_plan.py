"""What `prunesearch plan_memory` predicts, against formulas, published sizes and what happens."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import cli
from prunesearch.errors import InputError, ModelError, UnknownNameError
from prunesearch.execution import memory_plan, plan_formulas
from prunesearch.execution.batches import Rows
from prunesearch.execution.hardware import Speed
from prunesearch.execution.memory_plan import draw, plan_memory
from prunesearch.execution.plan_formulas import distinct_forwards
from prunesearch.execution.plan_types import Asked, MemoryPlan, Mode
from prunesearch.execution.shared_forward import Forward
from prunesearch.export import gguf_write
from prunesearch.models.layers import StreamedLayers
from prunesearch.models.loading import load
from prunesearch.models.streaming import open_streamed
from prunesearch.space import SearchSpace
from tests.support.models import LLAMA_70B, N_LAYERS

GIB = 2**30
SPEED = Speed("cpu", {"bfloat16": 1e12, "float32": 5e11}, 1e9, 1e10, float("inf"), 32 * GIB)


@pytest.fixture
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed does not vary."""
    monkeypatch.setattr(memory_plan, "measure", lambda *_: SPEED)
    monkeypatch.setattr(plan_formulas, "resident_bytes", lambda: GIB // 2)
    monkeypatch.setattr(plan_formulas, "widens", lambda: False)


@pytest.fixture
def llama_70b(tmp_path: Path) -> str:
    LLAMA_70B.architectures = ["LlamaForCausalLM"]
    LLAMA_70B.save_pretrained(tmp_path)
    return str(tmp_path / "config.json")


def mode(planned: MemoryPlan, weights: str) -> Mode:
    return next(m for m in planned.modes if m.offload == weights)


def test_llama_70b_is_streamed_in_24_gib(known_speed: None, llama_70b: str) -> None:
    document = plan_memory(llama_70b, Asked(24 * GIB, 20))
    assert (document.use, document.source, document.block_params) == (
        "disk",
        "config",
        855_654_400,
    )
    memory, stream = mode(document, "none"), mode(document, "disk")
    assert memory.parts["weights"] == 2 * 70_553_706_496
    assert not memory.fits
    other = 70_553_706_496 - 80 * 855_654_400
    assert stream.parts["weights"] == 2 * (other + 2 * 855_654_400)
    assert stream.parts["reference logits"] == 1024 * (8192 * 2 + 520)
    assert stream.state_memory == 22 * 1024 * 8192 * 2
    assert stream.fits and 7 * GIB < stream.memory < 10 * GIB
    assert stream.memory == sum(stream.parts.values())
    assert stream.bytes_read == 80 * 2 * 855_654_400
    compute = 2 * 1024 * 20 * (60 * 855_654_400 * (1 - document.shared) + 8192 * 128_256) / 1e12
    assert stream.seconds == pytest.approx(max(compute, stream.bytes_read / 1e9), rel=1e-3)
    assert document.command is not None
    assert "--offload disk --state-memory 352MiB --tokens 1024" in document.command
    assert document.command.startswith("prunesearch search MODEL --drop 25% --population 20")


def test_a_cpu_that_widens_needs_a_weight_in_float32(
    known_speed: None, llama_70b: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mode(plan_memory(llama_70b, Asked(24 * GIB)), "disk")
    monkeypatch.setattr(plan_formulas, "widens", lambda: True)
    after = mode(plan_memory(llama_70b, Asked(24 * GIB)), "disk")
    assert after.memory - before.memory == 4 * 128_256 * 8192
    assert after.fits


def test_what_fits_is_kept_in_memory(known_speed: None, llama_70b: str) -> None:
    document = plan_memory(llama_70b, Asked(200 * GIB))
    assert document.use == "none"
    assert document.command is not None
    assert document.command.endswith("--offload none --state-memory 352MiB --tokens 1024")


def test_too_many_tokens_spill_states_and_need_top_k(known_speed: None, llama_70b: str) -> None:
    document = plan_memory(llama_70b, Asked(16 * GIB, 20, tokens=2**20))
    stream = mode(document, "disk")
    assert document.use == "disk"
    assert document.command is not None
    assert "--kl-top 512" in document.command
    assert stream.parts["reference logits"] == 2**20 * 512 * 8
    assert stream.spilled == 22 * 2**20 * 8192 * 2 - stream.state_memory
    assert stream.memory <= 16 * GIB
    assert any("likeliest" in note for note in document.notes)
    assert any("TMPDIR" in note for note in document.notes)


def test_where_nothing_fits_it_says_what_would(known_speed: None, llama_70b: str) -> None:
    document = plan_memory(llama_70b, Asked(2 * GIB))
    assert document.use is None and document.command is None
    assert re.search(r"nothing fits: --offload disk needs \d+\.\d\d GiB", document.notes[-1])
    # Fewer tokens would not help, and the top-k KL would not either.
    assert "its weights alone" in document.notes[-1]
    assert "tokens" not in document.notes[-1]
    assert not any("likeliest" in note for note in document.notes)


def test_a_task_has_requests_and_no_reference_logits(known_speed: None, llama_70b: str) -> None:
    document = plan_memory(llama_70b, Asked(24 * GIB, tokens=None, requests=800, length=50))
    assert document.tokens == 40_000
    assert "reference logits" not in mode(document, "disk").parts
    assert document.command is not None
    assert "--task TASK" in document.command


def test_a_faster_type_is_pointed_out(monkeypatch: pytest.MonkeyPatch, llama_70b: str) -> None:
    slow = Speed("cpu", {"bfloat16": 1e10, "float32": 8e10}, 1e9, 1e10, float("inf"), 32 * GIB)
    monkeypatch.setattr(memory_plan, "measure", lambda *_: slow)
    document = plan_memory(llama_70b, Asked(24 * GIB))
    assert any(
        "float32 is multiplied 8.0 times as fast here as bfloat16" in note
        for note in document.notes
    )


def test_shared_work_is_counted_as_the_forward_pass_does_it(tiny_folder: Path) -> None:
    generation = draw(SearchSpace(N_LAYERS, 2), 7)
    assert generation == draw(SearchSpace(N_LAYERS, 2), 7)
    streamed = open_streamed(str(tiny_folder), device="cpu")
    forward = Forward(streamed.model, streamed.layers)
    batch = Rows(torch.arange(16)[None])
    list(forward.run([(batch, generation)]))
    distinct = set(generation)
    assert forward.work_counter.computed == 16 * distinct_forwards(generation, [1] * N_LAYERS)
    assert forward.work_counter.separate == 16 * sum(len(c.kept) for c in distinct)
    one = [LayerSubset.of(3, [1])]
    assert distinct_forwards(one, [1, 10, 100]) == 101


def test_bytes_read_are_those_that_a_generation_reads(known_speed: None, tiny_folder: Path) -> None:
    document = plan_memory(str(tiny_folder), Asked(GIB, 8, drop="2"))
    streamed = open_streamed(str(tiny_folder), device="cpu")
    forward = Forward(streamed.model, streamed.layers)
    list(forward.run([(Rows(torch.arange(16)[None]), draw(SearchSpace(N_LAYERS, 2), 8))]))
    assert isinstance(streamed.layers, StreamedLayers)
    assert mode(document, "disk").bytes_read == streamed.layers.bytes_read
    assert document.source == "safetensors"
    assert mode(document, "none").parts["weights"] == streamed.sizes.bytes()


def test_converting_needs_a_tensor_more(known_speed: None, make_model: Callable[..., Path]) -> None:
    folder = str(make_model())
    plain, converted = (
        mode(plan_memory(folder, Asked(GIB, dtype=d)), "disk").parts["weights"]
        for d in ("auto", "bfloat16")
    )
    assert converted == plain // 2 + 4 * 32 * 64


def test_on_the_command_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "plan",
        str(tiny_folder),
        "--memory",
        "4GiB",
        "--candidates",
        "6",
        "--drop",
        "2",
        "--tokens",
        "128",
    ]
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 0, shown.output
    for place in ("none", "disk", "cpu"):
        assert f"\n{place} " in shown.output
    assert "in 4.00 GiB" in shown.output
    command = next(line for line in shown.output.splitlines() if "prunesearch search" in line)
    document = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    assert document["speed"]["flops"]["float32"] > 1e8
    assert document["speed"]["disk"] > 1e6
    assert list(tmp_path.iterdir()) == [], "nothing is stored"
    searched = CliRunner().invoke(
        cli, [*command.split()[1:], "--window", "64", "--trials", "6", "--json"]
    )
    assert json.loads(searched.stdout)["trials"] == 6, "the command that is printed runs"


def test_a_gguf_is_planned_from_its_header(
    known_speed: None, tiny_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    loaded = load(str(tiny_folder), device="cpu")
    gguf_write.write(loaded, LayerSubset.of(N_LAYERS, ()), path, compare=False)
    planned = plan_memory(str(path), Asked(4 * GIB, 4, drop="2"))
    assert planned.source == "gguf" and planned.dtype == "bfloat16"
    assert planned.params == sum(loaded.sizes.block_params) + loaded.sizes.other_params
    # Its weights cannot be streamed, so they are in memory.
    (only,) = planned.modes
    assert (only.offload, planned.use) == ("none", "none")
    assert only.parts["weights"] == 2 * planned.params
    assert any("dequantised" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("words", "kind", "complaint"),
    [
        (["nowhere/at/all"], ModelError, "no model folder or file"),
        (["model.gguf"], ModelError, "no model file 'model.gguf'"),
        (["MODEL", "--memory", "much"], InputError, "--memory 'much' cannot be read"),
        (["MODEL", "--drop", "6"], InputError, "leaves no layer"),
        (["MODEL", "--candidates", "-1"], InputError, "--candidates -1 is too small"),
        (["MODEL", "--requests", "0"], InputError, "--requests 0 is too small"),
        (["MODEL", "--dtype", "bfloat61"], UnknownNameError, "did you mean 'bfloat16'"),
        (["MODEL", "--device", "abacus"], InputError, "--device 'abacus' cannot be used here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(
    tiny_folder: Path, words: list[str], kind: type[Exception], complaint: str
) -> None:
    result = CliRunner().invoke(
        cli, ["plan", *(str(tiny_folder) if word == "MODEL" else word for word in words)]
    )
    assert isinstance(result.exception, kind)
    assert complaint in str(result.exception)
    assert "\n" not in str(result.exception)
