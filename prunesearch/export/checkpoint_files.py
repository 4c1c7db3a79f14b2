"""The files of a checkpoint: config, tokenizer, and weights copied from the dense checkpoint."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PretrainedConfig

from prunesearch.candidate import LayerSubset
from prunesearch.export.companions import copy_companions, without_code
from prunesearch.export.config_file import ConfigFile
from prunesearch.export.edited_config import edited_file
from prunesearch.export.formats.registry import REGISTRY
from prunesearch.export.layout import Layout, layout_of
from prunesearch.export.narrow_tensors import WHOLE, NarrowTensors, narrow_tensors
from prunesearch.export.writer import MAX_SHARD, Written, write_cast, write_shards
from prunesearch.models.guard import guarded_writing
from prunesearch.models.handover import unchanged_by
from prunesearch.models.loading import LoadedModel
from prunesearch.models.model_configs import meta_model
from prunesearch.models.reordering import in_own_order
from prunesearch.models.safetensors_files import Stored, tensors_in, tensors_of
from prunesearch.widths.layer_widths import LayerWidths


def write_checkpoint(
    stored: Mapping[str, Stored],
    config: PretrainedConfig,
    file: ConfigFile,
    candidate: LayerSubset,
    out: Path,
    export_format: str = "plain",
    max_shard: int = MAX_SHARD,
    trust_remote_code: bool = False,
    narrow: NarrowTensors = WHOLE,
) -> tuple[Written, Layout]:
    """Write the config and the weights of a candidate in safetensors, without verifying them.

    Args:
        stored: tensors of the dense checkpoint by name.
        config: config of the dense model.
        file: config file to edit.
        candidate: candidate of the dense model.
        out: folder to write into.
        export_format: name of an export format.
        max_shard: bytes of the largest weight file.
        trust_remote_code: build the model with code that ships with it.
        narrow: what becomes of the stored tensors of narrow layers.

    Raises:
        ModelError: the checkpoint is damaged, or no config can describe the kept blocks.
        OSError: the checkpoint cannot be read, or `out` cannot be written.
    """
    # Plan the tensors. Dropped sublayers of kept blocks are zeroed or left out, as the form
    # demands.
    chosen = REGISTRY.get(export_format)
    model = meta_model(config, trust_remote_code)
    silent = LayerSubset(candidate.n_layers, (), candidate.attention, candidate.mlp)
    layout = layout_of(
        model,
        stored,
        candidate,
        zeroed=chosen.zeroed_parameters(model, silent),
        dropped=chosen.left_out_parameters(model, silent),
        narrowed=narrow.slices,
        biases=narrow.biases,
    )
    # The config comes first: it fails early if it cannot describe the candidate.
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else model.dtype
    edited = edited_file(file, config, candidate, dtype)
    chosen.write_config(edited, config, candidate, out)
    return write_shards(layout.entries, out, max_shard), layout


def write_files(
    loaded: LoadedModel,
    candidate: LayerSubset,
    export_format: str,
    new: Path,
    dense: Path,
    max_shard: int,
    changed: Sequence[str],
) -> tuple[Written, Layout]:
    """Write everything but the manifest.

    Weights that are not stored in safetensors, or not in the dtype in which they were scored, are
    first written to such a checkpoint.

    Args:
        loaded: dense model.
        candidate: candidate of the dense model.
        export_format: name of an export format.
        new: folder to write into.
        dense: folder for a temporary copy of the dense checkpoint.
        max_shard: bytes of the largest weight file.
        changed: changes that were made to the weights in memory.
    """
    config, source = loaded.model.config, loaded.source
    stored: dict[str, Stored] = {}
    if source.safetensors:
        stored = tensors_of(source.weights)
    stored_as_scored = bool(stored) and _precision(stored) == loaded.model.dtype
    copy_companions(loaded, new, own_type=REGISTRY.get(export_format).own_code)
    file = ConfigFile.of(config) if source.folder is None else ConfigFile.read(source.folder)
    # Make a temporary copy of the dense weights if the stored ones are not those that were scored.
    if not stored_as_scored and loaded.layers.streamed_once:
        write_cast(loaded.model, stored, dense)
        stored = tensors_in(dense)
    elif not stored_as_scored or changed:
        with (
            in_own_order(loaded.model),
            guarded_writing("the model in memory"),
            unchanged_by("transformers", loaded.model),
        ):
            loaded.model.save_pretrained(dense)
        stored = tensors_in(dense)
        file = file.of_part(config, type(loaded.model).__name__)
    # An export does not name code that the user did not trust.
    if not loaded.trusted:
        file = file.with_values(without_code(dict(file.values)))
    narrow = WHOLE
    if isinstance(candidate, LayerWidths):
        chosen = REGISTRY.get(export_format)
        narrow = narrow_tensors(
            loaded.model,
            candidate,
            dense.with_name("biases"),
            filled=chosen.filled,
            empty=chosen.empty_biases(config, candidate),
        )
    try:
        return write_checkpoint(
            stored,
            config,
            file,
            candidate,
            new,
            export_format,
            max_shard,
            loaded.trusted,
            narrow,
        )
    finally:
        shutil.rmtree(dense, ignore_errors=True)


def _precision(stored: Mapping[str, Stored]) -> torch.dtype:
    """Return the dtype in which most of the bytes are stored."""
    nbytes: Counter[torch.dtype] = Counter()
    for place in stored.values():
        nbytes[place.dtype] += place.nbytes
    return max(nbytes, key=lambda dtype: nbytes[dtype], default=torch.float32)
