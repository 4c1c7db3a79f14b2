"""Exports of layers of different widths: real sizes, biases, planted mistakes, reloading."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import cli
from prunesearch.errors import InputError, VerificationError
from prunesearch.export import (
    channel_order_file,
    checkpoint,
    checkpoint_files,
    export,
    other_tools,
    recheck,
)
from prunesearch.models import reordering
from prunesearch.models.loading import load
from prunesearch.models.surgery import pruned
from tests.support.exports import Mistake, planted
from tests.support.models import N_LAYERS
from tests.support.narrow_models import masked_logits, narrow_model
from tests.support.widths import order_for

IDS = torch.arange(1, 25)[None]


@pytest.mark.parametrize(
    ("architecture", "biases"),
    [("llama", True), ("qwen2", True), ("qwen3", False), ("mistral", True), ("smollm3", False),
     ("gemma2", True), ("phi", True)],
)  # fmt: skip
@torch.inference_mode()
def test_an_export_has_the_sizes_and_computes_what_masking_does(
    architecture: str, biases: bool, tmp_path: Path
) -> None:
    loaded, candidate = narrow_model(architecture, tmp_path / "dense", biases)
    made = export(loaded, candidate, tmp_path / "out", export_format="widths")
    assert made.verification.cached
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    found = reloaded(IDS).logits
    scale = float(found.abs().max())
    with pruned(loaded.model, candidate) as model:
        torch.testing.assert_close(found, model(IDS).logits, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(
        found, masked_logits(loaded.model, candidate, IDS), rtol=0, atol=1e-5 * scale
    )
    # The sizes are those of the candidate, and what was removed is not in the files.
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert made.params == sum(p.numel() for p in reloaded.parameters())
    assert made.bytes == sum(tensor.nbytes for tensor in tensors.values())
    shapes = [tuple(tensors[f"model.layers.{i}.self_attn.k_proj.weight"].shape) for i in range(4)]
    assert shapes == [(16, 32), (16, 32), (8, 32), (8, 32)]
    assert "model.layers.4.self_attn.k_proj.weight" not in tensors
    assert "model.layers.5.mlp.up_proj.weight" not in tensors


def test_the_config_says_the_widths_as_transformers_does(tmp_path: Path) -> None:
    loaded, candidate = narrow_model("llama", tmp_path / "dense", biases=True)
    export(loaded, candidate, tmp_path / "out", export_format="widths")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    attention = {"num_key_value_heads": 1, "num_attention_heads": 2, "attention_output_bias": True}
    assert config["per_layer_config"] == {
        "1": {"intermediate_size": 30, "mlp_output_bias": True},
        "2": attention,
        "3": {"intermediate_size": 17, "mlp_output_bias": True, **attention},
        "4": {"intermediate_size": 50, "mlp_output_bias": True, "skip": ["attention"]},
    }
    read = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).config
    layers = read.per_layer_config
    assert [layer.intermediate_size for layer in layers] == [64, 30, 64, 17, 50]
    assert [layer.num_key_value_heads for layer in layers] == [2, 2, 1, 1, 2]
    assert [layer.head_dim for layer in layers] == [8] * 5


@torch.inference_mode()
def test_the_model_without_head_and_a_copy_compute_the_same(tmp_path: Path) -> None:
    loaded, candidate = narrow_model("llama", tmp_path / "dense", biases=True)
    export(loaded, candidate, tmp_path / "out", export_format="widths")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    bare = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert torch.equal(bare(IDS).last_hidden_state, whole.model(IDS).last_hidden_state)
    whole.save_pretrained(tmp_path / "copy")
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", trust_remote_code=True)
    assert torch.equal(copy(IDS).logits, whole(IDS).logits)


@pytest.mark.parametrize(
    ("architecture", "biases"), [("llama", True), ("qwen2", False), ("phi", True)]
)
@torch.inference_mode()
def test_the_padded_form_loads_in_the_stock_class(
    architecture: str, biases: bool, tmp_path: Path
) -> None:
    loaded, candidate = narrow_model(architecture, tmp_path / "dense", biases)
    made = export(loaded, candidate, tmp_path / "out", export_format="zeroed")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(stock) is type(loaded.model)
    found = stock(IDS).logits
    scale = float(found.abs().max())
    torch.testing.assert_close(
        found, masked_logits(loaded.model, candidate, IDS), rtol=0, atol=1e-5 * scale
    )
    # The sizes are those of the dense blocks that are kept.
    whole = loaded.sizes.params(LayerSubset.of(N_LAYERS, (4,)))
    added = sum(p.numel() for n, p in stock.named_parameters() if n.endswith("bias"))
    assert made.params == whole + (added if architecture == "llama" else 0)


def test_biases_without_a_place_are_refused(tmp_path: Path) -> None:
    loaded, candidate = narrow_model("qwen2", tmp_path / "dense", biases=True)
    with pytest.raises(InputError, match=r"no place for the biases .*mlp.down_proj.bias.*widths"):
        export(loaded, candidate, tmp_path / "out", export_format="zeroed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_an_export_loads_without_prunesearch(tmp_path: Path) -> None:
    loaded, candidate = narrow_model("llama", tmp_path / "dense", biases=True)
    made = export(loaded, candidate, tmp_path / "out", export_format="widths")
    code = (
        "import sys; sys.modules['prunesearch'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('out', trust_remote_code=True)\n"
        "tokens = AutoTokenizer.from_pretrained('out')('The lighthouse', return_tensors='pt')\n"
        "model.generate(**tokens, max_new_tokens=3, do_sample=False)\n"
        "print(sum(p.numel() for p in model.parameters()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout.split()[-1]) == made.params


@pytest.mark.parametrize("export_format", ["widths", "zeroed"])
def test_an_export_is_verified_again_with_its_base(export_format: str, tmp_path: Path) -> None:
    loaded, candidate = narrow_model("llama", tmp_path / "dense", biases=True)
    out = tmp_path / "out"
    export(loaded, candidate, out, export_format=export_format)
    base, trusted = load(str(tmp_path / "dense"), device="cpu"), export_format == "widths"
    found = recheck(out, base, trusted)
    assert found.dropped == candidate.text
    assert found.against_base is not None
    manifest = json.loads((out / "prunesearch.json").read_text())
    said = [manifest[name] for name in ("dropped", "order", "criterion", "biases")]
    assert said == [candidate.text, candidate.order, "magnitude", True]
    card = (out / "README.md").read_text()
    assert "with narrower layers" in card
    assert f"`{candidate.text}`" in card
    # A damaged order is found, and one of another export too.
    path = out / channel_order_file.NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(VerificationError, match="has changed since the export"):
        recheck(out, base, trusted)
    with pytest.raises(VerificationError, match=f"was made with {candidate.order}"):
        channel_order_file.read_order(out, candidate.order)
    path.write_bytes(whole[:20])
    with pytest.raises(VerificationError, match="missing or damaged"):
        channel_order_file.read_order(out, candidate.order)
    order = reordering.order_of(loaded.model)
    assert order is not None
    text = channel_order_file.as_text(order)
    with pytest.raises(VerificationError, match="is damaged"):
        channel_order_file.from_text(text[:40], order.digest, path)


def test_narrow_layers_are_written_as_widths_unless_asked_otherwise(tmp_path: Path) -> None:
    loaded, candidate = narrow_model("llama", tmp_path / "dense")
    assert export(loaded, candidate, tmp_path / "out").export_format == "widths"
    whole = LayerSubset.of(N_LAYERS, (1,))
    assert export(loaded, whole, tmp_path / "plain").export_format == "plain"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    with torch.inference_mode(), pruned(loaded.model, whole) as model:
        torch.testing.assert_close(stock(IDS).logits, model(IDS).logits, rtol=0, atol=1e-3)


def _swap(name: str, first: int, second: int) -> Callable[[Path], None]:
    """Exchange two columns of a tensor of an export."""

    def plant(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name][:, [first, second]] = tensors[name][:, [second, first]]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return plant


def _swap_groups(folder: Path) -> None:
    """The keys of two groups under each other's place."""
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name].roll(8, 0)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _wrong_bias(folder: Path) -> None:
    """The biases of two layers under each other's names."""
    tensors = load_file(folder / "model.safetensors")
    names = [f"model.layers.{index}.mlp.down_proj.bias" for index in (1, 3)]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _one_width_of_another_layer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    widths = config["per_layer_config"]
    widths["1"], widths["3"] = widths["3"], widths["1"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "mistake",
    [
        Mistake("two channels", "llama", _swap("model.layers.1.mlp.down_proj.weight", 3, 4)),
        Mistake("two groups", "llama", _swap_groups),
        Mistake("biases", "llama", _wrong_bias),
        Mistake("widths", "llama", _one_width_of_another_layer),
    ],
    ids=lambda mistake: mistake.name,
)
def test_planted_mistakes_are_found_by_their_logits(mistake: Mistake, tmp_path: Path) -> None:
    loaded, candidate = narrow_model("llama", tmp_path / "dense", biases=True)
    with (
        planted(mistake),
        mock.patch.object(checkpoint, "check_digests"),
        pytest.raises(VerificationError),
    ):
        export(loaded, candidate, tmp_path / "out", export_format="widths")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_what_cannot_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    loaded, candidate = narrow_model("llama", tmp_path / "dense")
    for export_format in ("plain", "deci", "remote-code"):
        with pytest.raises(InputError, match="layers of different widths"):
            export(loaded, candidate, tmp_path / "out", export_format=export_format)
    whole = LayerSubset.of(N_LAYERS, (1,))
    with pytest.raises(InputError, match="layer 1 is whole: leave it out"):
        export(loaded, whole, tmp_path / "out", export_format="widths")
    reordering.reorder(loaded.model, order_for(loaded.model, False, seed=2))
    with pytest.raises(InputError, match="is of the channel order"):
        export(loaded, candidate, tmp_path / "out", export_format="widths")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_other_programs_are_not_told_of_widths(tmp_path: Path) -> None:
    loaded, candidate = narrow_model("llama", tmp_path / "dense")
    for program in other_tools.PROGRAMS:
        with pytest.raises(InputError, match=f"{program} drops whole blocks only.*narrows layers"):
            other_tools.recipe_text(program, loaded, candidate)


def test_an_export_that_is_stopped_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    loaded, candidate = narrow_model("llama", tmp_path / "dense", biases=True)
    monkeypatch.setattr(checkpoint_files, "write_shards", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(loaded, candidate, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_a_model_of_another_dtype_is_written_from_memory(tmp_path: Path) -> None:
    """The tensors in memory are in the channel order already."""
    loaded, candidate = narrow_model("llama", tmp_path / "dense", biases=True, dtype="bfloat16")
    export(loaded, candidate, tmp_path / "out", export_format="widths")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["model.layers.1.mlp.down_proj.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.1.mlp.down_proj.weight"].shape == (32, 30)


def test_named_widths_are_exported_from_the_command_line(tiny_folder: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    words = ["export", str(tiny_folder), "--layers", "1:40/1,4", "--criterion", "magnitude",
             "--tokens", "64", "--window", "32", "--cache", str(cache), "--out", str(out), "--json"]  # fmt: skip
    made = CliRunner().invoke(cli, words, catch_exceptions=False)
    document = json.loads(made.stdout)
    assert (document["form"], document["dropped"]) == ("widths", "1:40/1,4")
    tensors = load_file(out / "model.safetensors")
    assert tensors["model.layers.1.mlp.down_proj.weight"].shape == (32, 40)
    # The card's command gives the same order again.
    asked = "--layers 1:40/1,4 --criterion magnitude --tokens 64 --window 32 --out NAME"
    assert asked in (out / "README.md").read_text()
    # The order is kept beside the cache.
    assert len(list((cache / "orders").glob("*.safetensors"))) == 1
    for extra, message in (
        (["--layers", "1:400/1"], "cannot keep 400 channels"),
        (["--layers", "1", "--criterion", "flap"], "drops whole layers"),
    ):
        with pytest.raises(InputError, match=message):
            CliRunner().invoke(
                cli, ["export", str(tiny_folder), *extra, "--out", str(tmp_path / "no")],
                catch_exceptions=False,
            )  # fmt: skip


def test_an_export_is_evaluated_as_any_model(tmp_path: Path) -> None:
    loaded, candidate = narrow_model("llama", tmp_path / "dense", biases=True)
    export(loaded, candidate, tmp_path / "out")
    words = ["evaluate", str(tmp_path / "out"), "--objective", "perplexity", "--tokens", "64",
             "--window", "32", "--cache", str(tmp_path / "cache"), "--trust-remote-code", "--json"]  # fmt: skip
    found = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)
    assert found["params"] == sum(
        t.numel() for t in load_file(tmp_path / "out" / "model.safetensors").values()
    )
    assert found["metrics"]["perplexity"] > 1
