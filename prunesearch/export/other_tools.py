"""Recipes with which other programs remove the same blocks.

mergekit copies tensors and sets the number of blocks. llama-quantize does the same with a GGUF
file. Both leave all other per-block config fields as they are. A model with such fields would not
load, or would compute something else, so it gets no recipe.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import yaml
from transformers import PretrainedConfig

from prunesearch.candidate import LayerSubset, named_layers
from prunesearch.errors import InputError
from prunesearch.export import gguf_edit
from prunesearch.export.checkpoint import check_export_format
from prunesearch.export.edited_config import edited_config
from prunesearch.export.formats.registry import narrows
from prunesearch.models.config_edits import period_of
from prunesearch.models.loading import LoadedModel
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import architecture_of, per_layer_tensors
from prunesearch.runtime.json_values import JsonObject

PROGRAMS = ("mergekit", "llama-quantize")
_INSTEAD = "use prunesearch export --out FOLDER"
_MERGEKIT_TYPES = ("bfloat16", "float16", "float32")
_SAME_NAME = """bloom falcon gemma gemma2 granite granitemoe gpt2 llama mpt nemotron olmo cohere2
    exaone4 olmo2 olmoe phi3 qwen2 qwen3 smollm3 stablelm starcoder2""".split()
_ARCHITECTURES: Mapping[str, str] = {
    **{name: name for name in _SAME_NAME},
    "gemma3_text": "gemma3", "gpt_neox": "gptneox", "gpt_oss": "gpt-oss", "mistral": "llama",
    "mixtral": "llama", "phi": "phi2", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe",
}  # fmt: skip
"""llama.cpp's architecture for each model type, as its converter chooses it."""


def recipe_text(program: str, loaded: LoadedModel, candidate: LayerSubset) -> str:
    """Return the recipe with which a program drops the candidate's blocks.

    Args:
        program: one of `PROGRAMS`.
        loaded: dense model.
        candidate: candidate of the dense model.

    Raises:
        InputError: the program would make something else of this model.
    """
    if narrows(candidate):
        raise InputError(
            f"{program} drops whole blocks only, and {candidate.text} narrows layers: write a "
            "checkpoint with `out`, or a GGUF with `gguf`"
        )
    if not candidate.whole_blocks:
        raise InputError(
            f"{named_layers(candidate.text, 'names', 'name')} sublayers, and {program} drops whole "
            f"blocks only"
        )
    if program == "mergekit":
        return _mergekit(loaded, candidate)
    return _llama_quantize(loaded, candidate)


def _mergekit(loaded: LoadedModel, candidate: LayerSubset) -> str:
    """Return a passthrough merge in mergekit's YAML.

    Raises:
        InputError: mergekit would make something else.
    """
    source, dtype = loaded.source, str(loaded.model.dtype).removeprefix("torch.")
    if source.folder is None:
        raise InputError(
            f"mergekit reads no GGUF: {_INSTEAD}, or prunesearch export --gguf --out NAME.gguf"
        )
    # Refuse models of which mergekit would make something else.
    check_export_format(loaded.model.config, candidate, "plain")
    stored = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    if stored.get("model_type") != loaded.model.config.model_type:
        raise InputError(
            f"mergekit's slices are of plain language models, and this is a part of another: "
            f"{_INSTEAD}"
        )
    following = [*followers(loaded.model.config, candidate), *per_layer_tensors(loaded.model)]
    if candidate.dropped and following:
        raise InputError(
            f"mergekit sets the number of blocks and nothing else, and without "
            f"{named_layers(candidate.text)} "
            f"{', '.join(following)} of this {loaded.model.config.model_type} model would be "
            f"wrong: {_INSTEAD}"
        )
    if dtype not in _MERGEKIT_TYPES:
        raise InputError(f"mergekit writes {', '.join(_MERGEKIT_TYPES)}, not {dtype}: give `dtype`")
    # Each run of kept blocks is one slice.
    slices = [{"sources": [_source(loaded, run)]} for run in runs(candidate.kept)]
    recipe = {"slices": slices, "merge_method": "passthrough", "dtype": dtype}
    return str(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))


def _source(loaded: LoadedModel, run: tuple[int, int]) -> JsonObject:
    """Return a range of blocks as a source of a slice.

    The model is written as a mapping, because in a text "@" starts a revision and "+" an adapter.
    """
    place = {"path": loaded.name}
    if loaded.source.from_hub and loaded.source.commit is not None:
        place["revision"] = loaded.source.commit
    return {"model": {"model": place}, "layer_range": list(run)}


def followers(config: PretrainedConfig, candidate: LayerSubset) -> list[str]:
    """Return the config fields that a candidate changes, apart from the number of blocks.

    Raises:
        ModelError: no config can describe the kept blocks.
    """
    settings, number = settings_of(config), candidate.n_layers
    before, after = settings.to_dict(), settings_of(edited_config(config, candidate)).to_dict()
    count = architecture_of(config).count
    counts = {count, settings.attribute_map.get(count, count)}
    found = set()
    for name, value in before.items():
        if name not in counts and value != after.get(name):
            found.add(name)
        # A pattern with one letter per block changes too.
        if isinstance(value, str) and "pattern" in name and len(value) == number:
            found.add(name)
    return sorted(found)


def _llama_quantize(loaded: LoadedModel, candidate: LayerSubset) -> str:
    """Return the commands, one per line. A checkpoint is converted to a GGUF file first.

    Raises:
        InputError: llama-quantize would make something else.
    """
    lines, source = [], loaded.source
    if source.gguf is not None:
        gguf_edit.check_count_alone(source.gguf, candidate)
        dense = source.gguf
    else:
        _check_convertible(loaded.model.config, candidate)
        dense = Path(f"{Path(loaded.name).resolve().name}.gguf")
        lines.append(["convert_hf_to_gguf.py", "--outfile", _path(dense), _path(source.folder)])
    layers = ",".join(map(str, candidate.dropped))
    out = dense.with_name(f"{dense.stem}-pruned.gguf")
    lines.append(["llama-quantize", "--prune-layers", layers, _path(dense), _path(out), "COPY"])
    return "".join(f"{shlex.join(words)}\n" for words in lines)


def _check_convertible(config: PretrainedConfig, candidate: LayerSubset) -> None:
    """Refuse a checkpoint whose pruned GGUF file would describe other blocks than the kept ones.

    Raises:
        InputError: the file would be wrong.
    """
    check_export_format(config, candidate, "plain")
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise InputError(
            f"a GGUF of a {config.model_type} model is not known to stay right: {_INSTEAD}"
        )
    gguf_edit.check_architecture(architecture, candidate)
    settings = settings_of(config)
    # If all blocks are alike, a list of their kinds carries no information, and no GGUF file has
    # it.
    uneven = []
    for name in followers(config, candidate):
        if not _alike(getattr(settings, name, None)):
            uneven.append(name)
    # llama.cpp may know the pattern itself.
    period = gguf_edit.PERIODS.get(architecture)
    fits = period is not None and period % period_of(settings, candidate.n_layers) == 0
    if uneven and not fits:
        raise InputError(
            f"llama-quantize sets the number of blocks and nothing else, and without "
            f"{named_layers(candidate.text)} "
            f"{', '.join(uneven)} of this {config.model_type} model would be wrong: {_INSTEAD}"
        )


def _alike(value: object) -> bool:
    """Return whether a value is a list whose entries are all equal."""
    return isinstance(value, list | tuple) and all(entry == value[0] for entry in value)


def _path(path: Path | None) -> str:
    """Return a path that no program mistakes for an option."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def runs(kept: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the kept blocks as half-open ranges.

    >>> runs((0, 1, 4))
    [(0, 2), (4, 5)]
    """
    found: list[tuple[int, int]] = []
    for i in kept:
        # A block extends the last range, or starts a new one.
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found
