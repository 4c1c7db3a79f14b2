"""What other programs are told makes the model that was scored, or they are told nothing."""

import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError
from prunesearch.export import gguf_edit, gguf_write, other_tools
from prunesearch.models.gguf_file import open_gguf
from prunesearch.models.loading import LoadedModel, load
from prunesearch.models.structure import architecture_of
from prunesearch.models.surgery import pruned
from tests.support.models import ARCHITECTURES, N_LAYERS

BLOCKS = LayerSubset.of(N_LAYERS, (0, 3))
IDS = torch.arange(1, 20)[None]
SAID = frozenset("llama mistral phi phi3 gpt2 gpt_neox gptj falcon opt mixtral olmo2".split())
"""Types whose config says nothing of single blocks."""


def merged(recipe: dict[str, Any], loaded: LoadedModel, out: Path) -> Path:
    """What mergekit makes of a recipe: the tensors of the slices, and a config with another number
    of blocks.
    """
    folder = Path(recipe["slices"][0]["sources"][0]["model"]["model"]["path"])
    config = AutoConfig.from_pretrained(folder)
    kept = [i for part in recipe["slices"] for i in range(*part["sources"][0]["layer_range"])]
    setattr(config, architecture_of(config).count, len(kept))
    config.save_pretrained(out)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        parts = name.split(".")
        place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if place is not None:
            if int(parts[place]) not in kept:
                continue
            parts[place] = str(kept.index(int(parts[place])))
        tensors[".".join(parts)] = tensor
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_a_mergekit_recipe_gives_the_candidate_or_is_refused(
    architecture: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load(str(make_model(architecture)))
    if architecture not in SAID:
        with pytest.raises(InputError, match=r"would be wrong: use prunesearch export") as told:
            other_tools.recipe_text("mergekit", loaded, BLOCKS)
        assert "\n" not in str(told.value)
        return
    text = other_tools.recipe_text("mergekit", loaded, BLOCKS)
    assert "&" not in text
    recipe = yaml.safe_load(text)
    assert (recipe["merge_method"], recipe["dtype"]) == ("passthrough", "float32")
    found = AutoModelForCausalLM.from_pretrained(merged(recipe, loaded, tmp_path / "merged"))
    with pruned(loaded.model, BLOCKS) as candidate:
        torch.testing.assert_close(found(IDS).logits, candidate(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["a b", "a@b", "a+lora", "it's", "x: y # z", "-x", "[1]", "1e5", "ü\u2028"]
)
def test_names_are_quoted(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / name)
    loaded = load(f"./{name}", device="cpu")
    recipe = yaml.safe_load(other_tools.recipe_text("mergekit", loaded, BLOCKS))
    assert recipe["slices"][0]["sources"][0]["model"]["model"] == {"path": f"./{name}"}
    convert, quantize = map(
        shlex.split,
        other_tools.recipe_text("llama-quantize", loaded, BLOCKS).rstrip("\n").split("\n"),
    )
    assert convert == [
        "convert_hf_to_gguf.py",
        "--outfile",
        quantize[3],
        name if name != "-x" else "./-x",
    ]
    assert quantize[:3] == ["llama-quantize", "--prune-layers", "0,3"]
    assert not quantize[3].startswith("-")
    assert Path(quantize[3]) == Path(f"{name}.gguf")
    assert Path(quantize[4]) == Path(f"{name}-pruned.gguf")


def test_a_hub_model_is_named_with_its_commit(loaded: LoadedModel) -> None:
    hub = replace(
        loaded, name="me/x", source=replace(loaded.source, from_hub=True, commit="0" * 40)
    )
    recipe = yaml.safe_load(other_tools.recipe_text("mergekit", hub, BLOCKS))
    assert recipe["slices"][0]["sources"][0]["model"]["model"] == {
        "path": "me/x",
        "revision": "0" * 40,
    }


def test_sublayers_and_unknown_types_are_refused(make_model: Callable[..., Path]) -> None:
    for program in other_tools.PROGRAMS:
        with pytest.raises(InputError, match="whole blocks only"):
            other_tools.recipe_text(
                program, load(str(make_model())), LayerSubset.of(N_LAYERS, (2,), mlp=(1,))
            )
    for architecture in ("opt", "qwen3_next", "lfm2"):
        with pytest.raises(InputError, match="use prunesearch export"):
            other_tools.recipe_text(
                "llama-quantize", load(str(make_model(architecture, name=architecture))), BLOCKS
            )
    # Kinds of blocks by number, in another period than the config's.
    with pytest.raises(InputError, match="would be wrong"):
        other_tools.recipe_text(
            "llama-quantize",
            load(str(make_model("gemma2", name="g"))),
            LayerSubset.of(N_LAYERS, (1, 2)),
        )
    assert "0,3" in other_tools.recipe_text(
        "llama-quantize", load(str(make_model("qwen2", name="q"))), BLOCKS
    )


@contextmanager
def with_metadata(path: Path, **values: list[int]) -> Iterator[Path]:
    """A copy of a GGUF with more in its header."""
    reader, out = open_gguf(path), path.with_name("more.gguf")
    writer = gguf.GGUFWriter(out, "llama")
    gguf_edit._copy_metadata(reader, writer, "llama", LayerSubset.of(N_LAYERS))
    for name, value in values.items():
        writer.add_array(f"llama.{name}", value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    yield out


def test_a_gguf_is_named_if_only_its_number_of_blocks_changes(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "my model.gguf"
    gguf_write.write(loaded, LayerSubset.of(N_LAYERS), path, compare=False)
    from_file = replace(loaded, source=replace(loaded.source, folder=None, gguf=path))
    words = shlex.split(other_tools.recipe_text("llama-quantize", from_file, BLOCKS))
    assert words[3:] == [str(path), str(tmp_path / "my model-pruned.gguf"), "COPY"]
    with pytest.raises(InputError, match="mergekit reads no GGUF"):
        other_tools.recipe_text("mergekit", from_file, BLOCKS)
    with with_metadata(path, feed_forward_lengths=[1, 2, 3, 4, 5, 6]) as more:
        other = replace(loaded, source=replace(loaded.source, folder=None, gguf=more))
        with pytest.raises(
            InputError, match=r"llama\.feed_forward_lengths of more\.gguf would be wrong"
        ):
            other_tools.recipe_text("llama-quantize", other, BLOCKS)
