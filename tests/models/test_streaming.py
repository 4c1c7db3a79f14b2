"""Streamed models give the numbers of loaded ones, to the bit, and read no more than they need."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ModelError, RunError
from prunesearch.execution.batches import Rows
from prunesearch.execution.head import Head
from prunesearch.execution.shared_forward import Forward
from prunesearch.models import structure
from prunesearch.models.architectures import ARCHITECTURES, Architecture
from prunesearch.models.layers import StreamedLayers
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.streaming import open_streamed
from tests.support.models import N_LAYERS, byte_tokenizer, tiny

CANDIDATES = [
    LayerSubset.of(N_LAYERS),
    LayerSubset.of(N_LAYERS, [1, 4]),
    LayerSubset.of(N_LAYERS, [0], attention=[2], mlp=[5]),
]
BATCHES = [Rows(torch.arange(1, 49).view(2, 24)), Rows(torch.arange(50, 80)[None])]


def logits(
    loaded: LoadedModel, candidates: Sequence[LayerSubset] = CANDIDATES, state_memory: int = 2**31
) -> dict[tuple[int, LayerSubset], torch.Tensor]:
    forward, head = Forward(loaded.model, loaded.layers, state_memory), Head(loaded.model)
    jobs = [(batch, candidates) for batch in BATCHES]
    return {
        (job, c): head.logits(head.apply_final_norm(state.flatten(0, 1)))
        for job, c, state in forward.run(jobs)
    }


def assert_same(a: LoadedModel, b: LoadedModel) -> None:
    assert a.fingerprint == b.fingerprint
    assert a.sizes == b.sizes
    ours, theirs = logits(a), logits(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def streamed_layers(loaded: LoadedModel) -> StreamedLayers:
    assert isinstance(loaded.layers, StreamedLayers)
    return loaded.layers


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_numbers_are_those_of_a_loaded_model(
    make_model: Callable[..., Path], architecture: str, dtype: str
) -> None:
    folder = str(make_model(architecture))
    loaded = load(folder, device="cpu", dtype=dtype)
    for host in (False, True):
        assert_same(open_streamed(folder, device="cpu", dtype=dtype, host=host), loaded)


def test_stored_bfloat16_is_scored_in_float32(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    load(str(folder), dtype="bfloat16").model.save_pretrained(folder)
    assert_same(
        open_streamed(str(folder), device="cpu", dtype="float32"),
        load(str(folder), dtype="float32"),
    )
    assert open_streamed(str(folder)).model.dtype == torch.bfloat16


@pytest.mark.parametrize("stored_twice", [False, True])
def test_tied_embeddings_are_held_once(make_model: Callable[..., Path], stored_twice: bool) -> None:
    folder = make_model(tie_word_embeddings=True)
    if stored_twice:
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    streamed = open_streamed(str(folder), device="cpu")
    assert (
        streamed.model.get_output_embeddings().weight
        is streamed.model.get_input_embeddings().weight
    )
    assert_same(streamed, load(str(folder), device="cpu"))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_experts_that_are_stored_one_by_one_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(structure, "ARCHITECTURES", {**ARCHITECTURES, "mixtral": Architecture()})
    settings = {**tiny().config.to_dict(), "num_local_experts": 12, "num_experts_per_tok": 2}
    for name in ("architectures", "model_type", "dtype"):
        settings.pop(name, None)
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**settings)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert any("experts.11.w1" in name for name in names), "stored one by one"
    streamed, loaded = (f(str(tmp_path), device="cpu", dtype=dtype) for f in (open_streamed, load))
    assert streamed.fingerprint == loaded.fingerprint
    whole = CANDIDATES[:2]
    ours, theirs = logits(streamed, whole), logits(loaded, whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_shards_and_names_without_the_base_models_prefix_are_read(
    make_model: Callable[..., Path],
) -> None:
    folder = make_model()
    loaded = load(str(folder), device="cpu")
    sharded = folder.parent / "sharded"
    tiny().save_pretrained(sharded, max_shard_size="20KB")
    byte_tokenizer().save_pretrained(sharded)
    assert_same(open_streamed(str(sharded), device="cpu"), loaded)
    weights = {
        name.removeprefix("model."): w
        for name, w in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert_same(open_streamed(str(folder), device="cpu"), loaded)


def test_a_generation_reads_each_wanted_block_once_and_no_other(tiny_folder: Path) -> None:
    streamed = open_streamed(str(tiny_folder), device="cpu")
    layers = streamed_layers(streamed)
    block = 4 * streamed.sizes.block_params[0]
    logits(streamed, [LayerSubset.of(N_LAYERS, [2, 3]), LayerSubset.of(N_LAYERS, [2, 5])])
    assert layers.bytes_read == (N_LAYERS - 1) * block
    logits(streamed, [LayerSubset.of(N_LAYERS, range(1, N_LAYERS))])
    assert layers.bytes_read == N_LAYERS * block


@pytest.mark.parametrize("state_memory", [1, 20_000])
def test_states_that_are_put_aside_change_no_number(tiny_folder: Path, state_memory: int) -> None:
    for opened in (
        open_streamed(str(tiny_folder), device="cpu"),
        load(str(tiny_folder), device="cpu"),
    ):
        tight, roomy = logits(opened, state_memory=state_memory), logits(opened)
        assert tight.keys() == roomy.keys()
        assert all(torch.equal(tight[key], roomy[key]) for key in roomy)


def test_what_is_spilled_is_counted_and_cleaned_up(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    streamed = open_streamed(str(tiny_folder), device="cpu")
    forward = Forward(streamed.model, streamed.layers, state_memory=1)
    assert len(list(forward.run([(batch, CANDIDATES) for batch in BATCHES]))) == 6
    assert forward.spilled > 0
    assert list(tmp_path.iterdir()) == []


def _without(folder: Path, weight: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[weight]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _instead(folder: Path, weight: str, tensor: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, weight: tensor}, folder / "model.safetensors", {"format": "pt"})


def _configured(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


NORM = "model.layers.3.input_layernorm.weight"


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda f: _without(f, NORM), f"does not hold {NORM}: it is not complete"),
        (lambda f: _without(f, "lm_head.weight"), "does not hold lm_head.weight"),
        (lambda f: _instead(f, NORM, torch.ones(7)), f"holds in another shape {NORM}"),
        (
            lambda f: _instead(f, NORM, torch.ones(32, dtype=torch.int8)),
            f"holds {NORM} quantised .int8.",
        ),
        (lambda f: _configured(f, quantization_config={"quant_method": "fp8"}), "is quantised"),
        (lambda f: _configured(f, model_type="diffllama"), "'diffllama' cannot be pruned"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights that transformers reads"),
        (lambda f: os.truncate(f / "model.safetensors", 9000), "is cut short"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "cannot load the tokenizer"),
    ],
    ids="missing-norm missing-head shape int8 quantised type no-weights truncated no-tokenizer".split(),
)
def test_what_cannot_be_streamed_is_refused_in_one_line(
    make_model: Callable[..., Path], harm: Callable[[Path], object], complaint: str
) -> None:
    folder = make_model()
    harm(folder)
    with pytest.raises(ModelError, match=complaint) as raised:
        open_streamed(str(folder), device="cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["./nowhere", "model.gguf"])
def test_what_is_no_checkpoint_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"no model folder or file|no model file"):
        open_streamed(name)


def test_a_checkpoint_that_goes_away_fails_the_pass_in_one_line(
    make_model: Callable[..., Path],
) -> None:
    folder = make_model()
    streamed = open_streamed(str(folder), device="cpu")
    before = logits(streamed)
    moved = folder.with_name("moved")
    folder.rename(moved)
    with pytest.raises(RunError, match=r"cannot read block 0 of the checkpoint: .*No such file"):
        logits(streamed)
    shutil.copytree(moved, folder)
    assert all(torch.equal(before[key], after) for key, after in logits(streamed).items())
