"""Removal of blocks from a GGUF file.

Tensors are copied unchanged, quantised or not, and renamed. Arrays of the metadata with one entry
per block are sliced, and counts of leading blocks are counted again. For some architectures the
kinds of the blocks are not in the file: llama.cpp derives them from a period. For these only
subsets that keep the pattern can be written.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from prunesearch.candidate import LayerSubset, named_layers
from prunesearch.errors import InputError, ModelError
from prunesearch.export import gguf_record, llama_cpp
from prunesearch.export.atomic import new_file
from prunesearch.export.results import LlamaCppCheck
from prunesearch.models.gguf_file import open_gguf
from prunesearch.models.loading import LoadedModel

PERIODS: Mapping[str, int] = {
    "gemma2": 2, "gpt-oss": 2, "cohere2": 4, "exaone4": 4, "llama4": 4, "smollm3": 4, "olmo2": 4,
    "gemma3": 6, "plamo3": 8, "qwen3next": 4, "qwen35": 4, "qwen35moe": 4,
}  # fmt: skip
"""Period of each architecture for which llama.cpp derives the kind of a block from its index.

The last block of each period differs from the others.
"""
PLAIN = frozenset(
    """llama qwen2 qwen3 qwen2moe qwen3moe mistral3 phi2 phi3 starcoder2 stablelm gemma gptneox gpt2
    falcon bloom mpt granite granitemoe olmo olmoe internlm2 nemotron deci""".split()
)
"""Architectures whose blocks are all of one kind, or whose files state the kinds."""
_FIRST = ("leading_dense_block_count",)
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


def keeps_pattern(candidate: LayerSubset, period: int) -> bool:
    """Return whether each kept block is of the kind that its new index implies.

    Args:
        candidate: candidate with the kept blocks.
        period: number of blocks after which the kinds repeat. The last block of each period
            differs.
    """
    last = period - 1
    return all(
        (new % period == last) == (old % period == last) for new, old in enumerate(candidate.kept)
    )


def check_architecture(name: str, candidate: LayerSubset) -> None:
    """Refuse a candidate of which llama.cpp would compute something else.

    Args:
        name: llama.cpp's name of the architecture.
        candidate: candidate of a model of this architecture.

    Raises:
        InputError: the architecture is unknown, the candidate breaks its pattern, or it drops
            sublayers.
    """
    period = PERIODS.get(name)
    if period is None and name not in PLAIN:
        raise InputError(
            f"GGUF files of architecture {name!r} cannot be pruned: this version does not know it"
        )
    if period is not None and not keeps_pattern(candidate, period):
        raise InputError(
            f"llama.cpp has the kinds of {name} blocks by number, in periods of {period}, and "
            f"without {named_layers(candidate.text)} they would be wrong: drop whole "
            f"periods (search with `keep_pattern`)"
        )
    if not candidate.whole_blocks:
        raise InputError(
            f"{named_layers(candidate.text, 'names', 'name')} sublayers, which llama.cpp has no "
            f"place for: drop whole blocks"
        )


def block_count(path: Path) -> int:
    """Return the number of blocks of a GGUF file.

    Raises:
        ModelError: the file cannot be read.
    """
    reader = open_gguf(path)
    return _count(reader, f"{_architecture(reader)}.block_count")


def edit(
    source: Path,
    candidate: LayerSubset,
    out: Path,
    compare: LoadedModel | None = None,
    fingerprint: str = "",
) -> LlamaCppCheck | None:
    """Write a GGUF file without the candidate's blocks.

    Args:
        source: GGUF file of the dense model.
        candidate: candidate of the dense model.
        out: new GGUF file.
        compare: dense model. If given, llama.cpp's predictions from the new file are compared with
            its candidate.
        fingerprint: fingerprint of the dense model, for the header of the file.

    Returns:
        The result of the comparison; None without `compare`.

    Raises:
        InputError: the file's architecture does not allow the candidate, or the numbers of blocks
            differ.
        ModelError: the source cannot be read.
        VerificationError: llama.cpp predicts something else.
        StorageError: `out` cannot be written.
    """
    reader = open_gguf(source)
    name = _check(reader, source, candidate)
    if compare is not None:
        fingerprint = compare.fingerprint
    with new_file(out) as path:
        writer = gguf.GGUFWriter(path, name, endianess=reader.endianess)
        _copy_metadata(reader, writer, name, candidate)
        _copy_tensors(reader, writer, candidate, gguf_record.Record(candidate, fingerprint))
        if compare is None:
            return None
        return llama_cpp.check(path, compare, candidate, gguf_record.most_common_type(reader))


def _check(reader: gguf.GGUFReader, source: Path, candidate: LayerSubset) -> str:
    """Check that the candidate's blocks can be removed from a file, and return the file's
    architecture.

    Raises:
        InputError: the blocks cannot be removed.
    """
    name = _architecture(reader)
    check_architecture(name, candidate)
    count = _count(reader, f"{name}.block_count")
    if count != candidate.n_layers:
        raise InputError(
            f"the candidate is of a model with {candidate.n_layers} layers, {source.name} has "
            f"{count}"
        )
    if int(_value(reader, f"{name}.nextn_predict_layers") or 0):
        raise InputError(
            f"{source.name} has blocks for speculation after the others: write it without them "
            f"first"
        )
    return name


def check_count_alone(source: Path, candidate: LayerSubset) -> None:
    """Refuse a file in which more than the number of blocks must change. llama-quantize changes
    nothing else.

    Raises:
        InputError: more must change, or `edit` would refuse the candidate.
    """
    reader = open_gguf(source)
    name = _check(reader, source, candidate)
    for key, field in reader.fields.items():
        if not key.startswith(f"{name}.") or key == f"{name}.block_count":
            continue
        value = field.contents()
        if _edited(key.removeprefix(f"{name}."), value, candidate) != value:
            raise InputError(
                f"llama-quantize sets the number of blocks and nothing else, and without "
                f"{named_layers(candidate.text)} {key} "
                f"of {source.name} would be wrong: use prunesearch export --gguf --out NAME.gguf"
            )


def _value(reader: gguf.GGUFReader, key: str) -> Any:  # noqa: ANN401
    """Return a value of the metadata; None if the file does not have it."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _count(reader: gguf.GGUFReader, key: str) -> int:
    """Return a number of the metadata.

    Raises:
        ModelError: the value is missing or not a number.
    """
    value = _value(reader, key)
    if not isinstance(value, int):
        raise ModelError(
            f"this GGUF file has {key} = {value!r}, which is not a number: convert it again"
        )
    return value


def _architecture(reader: gguf.GGUFReader) -> str:
    """Return llama.cpp's name of a file's architecture."""
    return str(_value(reader, "general.architecture"))


def _copy_metadata(
    reader: gguf.GGUFReader, writer: gguf.GGUFWriter, name: str, candidate: LayerSubset
) -> None:
    """Copy the metadata of a file, edited for the kept blocks.

    Args:
        reader: reader of the dense file.
        writer: writer of the new file.
        name: architecture of the file.
        candidate: candidate of the dense model.
    """
    for key, field in reader.fields.items():
        # The reader and the writer add some fields themselves, and an export has a record of its
        # own.
        if key.startswith(("GGUF.", gguf_record.PREFIX)) or key == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        if key.startswith(f"{name}."):
            value = _edited(key.removeprefix(f"{name}."), value, candidate)
        # The writer needs the type of an array's entries.
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_key_value(key, value, kind, sub_type=field.types[-1])
        else:
            writer.add_key_value(key, value, kind)
    if (alignment := _value(reader, "general.alignment")) is not None:
        writer.data_alignment = int(alignment)


def _edited(key: str, value: Any, candidate: LayerSubset) -> Any:  # noqa: ANN401
    """Return a value of the metadata for the kept blocks."""
    if key == "block_count":
        return len(candidate.kept)
    if key in _FIRST:
        return sum(old < value for old in candidate.kept)
    if isinstance(value, list) and len(value) == candidate.n_layers:
        return [value[old] for old in candidate.kept]
    return value


def _copy_tensors(
    reader: gguf.GGUFReader,
    writer: gguf.GGUFWriter,
    candidate: LayerSubset,
    record: gguf_record.Record,
) -> None:
    """Copy the tensors of the kept blocks and those outside the blocks, and finish the file.

    Args:
        reader: reader of the dense file.
        writer: writer of the new file.
        candidate: candidate of the dense model.
        record: record of the export, which becomes part of the header.
    """
    number = {old: new for new, old in enumerate(candidate.kept)}
    # Describe all tensors first, because their descriptions are part of the header.
    kept = []
    for tensor in reader.tensors:
        match = _BLOCK.fullmatch(tensor.name)
        name = tensor.name
        if match is not None:
            block = int(match[1])
            if block not in number:
                continue
            name = f"blk.{number[block]}.{match[2]}"
        data: np.ndarray[Any, Any] = tensor.data
        writer.add_tensor_info(
            name, data.shape, data.dtype, data.nbytes, raw_dtype=tensor.tensor_type
        )
        record.see(name, tensor.tensor_type.name, data)
        kept.append(data)
    # The data follow the header in the same order.
    record.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data in kept:
        writer.write_tensor_data(data)
    writer.close()
