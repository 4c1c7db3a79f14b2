"""Pruning a GGUF file block by block: tensors are copied as they are, quantised or not.

Beside renaming tensors, every array of the metadata with an entry for each block is sliced, and numbers of first blocks
are counted anew. Some architectures have the kinds of their blocks not in the file but in llama.cpp, as a period; of
those only subsets that keep the pattern can be written.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from prunesearch.candidate import LayerSubset
from prunesearch.errors import InputError, ModelError
from prunesearch.export import gguf_record, llama_cpp
from prunesearch.export.atomic import new_file
from prunesearch.model.gguf_file import open_gguf
from prunesearch.model.loading import LoadedModel

PERIODS: Mapping[str, int] = {
    "gemma2": 2, "gpt-oss": 2, "cohere2": 4, "exaone4": 4, "llama4": 4, "smollm3": 4, "olmo2": 4, "gemma3": 6,
    "plamo3": 8, "qwen3next": 4, "qwen35": 4, "qwen35moe": 4,
}  # fmt: skip
"""Architectures of which llama.cpp knows the kind of a block by its number: the last of every so many differs."""
PLAIN = frozenset(
    """llama qwen2 qwen3 qwen2moe qwen3moe mistral3 phi2 phi3 starcoder2 stablelm gemma gptneox gpt2 falcon bloom mpt
    granite granitemoe olmo olmoe internlm2 nemotron deci""".split()
)
"""Architectures whose blocks are all of one kind, or said to be of which in the file."""
_FIRST = ("leading_dense_block_count",)
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


def keeps_pattern(candidate: LayerSubset, period: int) -> bool:
    """Whether each block that stays is of the kind that its new number has, where every `period`-th differs."""
    return all((new % period == period - 1) == (old % period == period - 1) for new, old in enumerate(candidate.kept))


def check_architecture(name: str, candidate: LayerSubset) -> None:
    """Refuse what llama.cpp would compute otherwise.

    Raises:
        InputError: the architecture is not known, or the subset breaks its pattern.
    """
    period = PERIODS.get(name)
    if period is None and name not in PLAIN:
        raise InputError(f"GGUF files of architecture {name!r} cannot be pruned: this version does not know it")
    if period is not None and not keeps_pattern(candidate, period):
        raise InputError(
            f"llama.cpp has the kinds of {name} blocks by number, in periods of {period}, and without layers "
            f"{candidate.text} they would be wrong: drop whole periods (search with --keep-pattern)"
        )
    if not candidate.whole_blocks:
        raise InputError(f"layers {candidate.text} name sublayers, which llama.cpp has no place for: drop whole blocks")


def block_count(path: Path) -> int:
    """How many blocks a GGUF file has.

    Raises:
        ModelError: it cannot be read.
    """
    reader = open_gguf(path)
    return _count(reader, f"{_architecture(reader)}.block_count")


def edit(
    source: Path, candidate: LayerSubset, out: Path, compare: LoadedModel | None = None, fingerprint: str = ""
) -> llama_cpp.LlamaCppCheck | None:
    """Write `source` without the candidate's blocks.

    Args:
        compare: the dense model; what llama.cpp predicts from the new file is compared with its candidate.
        fingerprint: of the dense model, for the file's header.

    Raises:
        InputError: `check_architecture`, or the candidate is of a model with another number of blocks.
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


def _check(reader: Any, source: Path, candidate: LayerSubset) -> str:  # noqa: ANN401
    """The architecture of a file from which the candidate's blocks can be taken.

    Raises:
        InputError: they cannot.
    """
    name = _architecture(reader)
    check_architecture(name, candidate)
    count = _count(reader, f"{name}.block_count")
    if count != candidate.n_layers:
        raise InputError(f"the candidate is of a model with {candidate.n_layers} layers, {source.name} has {count}")
    if int(_value(reader, f"{name}.nextn_predict_layers") or 0):
        raise InputError(f"{source.name} has blocks for speculation behind the others: write it without them first")
    return name


def check_count_alone(source: Path, candidate: LayerSubset) -> None:
    """Refuse a file in which more than the number of blocks changes: llama-quantize changes nothing else.

    Raises:
        InputError: more changes, or `edit` would refuse it.
    """
    reader = open_gguf(source)
    name = _check(reader, source, candidate)
    for key, field in reader.fields.items():
        if not key.startswith(f"{name}.") or key == f"{name}.block_count":
            continue
        value = field.contents()
        if _edited(key.removeprefix(f"{name}."), value, candidate) != value:
            raise InputError(
                f"llama-quantize sets the number of blocks and nothing else, and without layers {candidate.text} {key} "
                f"of {source.name} would be wrong: use prunesearch export --gguf --out NAME.gguf"
            )


def _value(reader: Any, key: str) -> Any:  # noqa: ANN401
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _count(reader: Any, key: str) -> int:  # noqa: ANN401
    value = _value(reader, key)
    if not isinstance(value, int):
        raise ModelError(f"this GGUF file has {key} = {value!r}, which is no number: convert it again")
    return value


def _architecture(reader: Any) -> str:  # noqa: ANN401
    return str(_value(reader, "general.architecture"))


def _copy_metadata(reader: Any, writer: Any, name: str, candidate: LayerSubset) -> None:  # noqa: ANN401
    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", gguf_record.PREFIX)) or key == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        if key.startswith(f"{name}."):
            value = _edited(key.removeprefix(f"{name}."), value, candidate)
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_key_value(key, value, kind, sub_type=field.types[-1])
        else:
            writer.add_key_value(key, value, kind)
    if (alignment := _value(reader, "general.alignment")) is not None:
        writer.data_alignment = int(alignment)


def _edited(key: str, value: Any, candidate: LayerSubset) -> Any:  # noqa: ANN401
    """A metadata value for the blocks that stay."""
    if key == "block_count":
        return len(candidate.kept)
    if key in _FIRST:
        return sum(old < value for old in candidate.kept)
    if isinstance(value, list) and len(value) == candidate.n_layers:
        return [value[old] for old in candidate.kept]
    return value


def _copy_tensors(
    reader: Any,  # noqa: ANN401
    writer: Any,  # noqa: ANN401
    candidate: LayerSubset,
    record: gguf_record.Record,
) -> None:
    number = {old: new for new, old in enumerate(candidate.kept)}
    kept = []
    for tensor in reader.tensors:
        match = _BLOCK.fullmatch(tensor.name)
        if match is not None and int(match[1]) not in number:
            continue
        name = tensor.name if match is None else f"blk.{number[int(match[1])]}.{match[2]}"
        data: np.ndarray[Any, Any] = tensor.data
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, raw_dtype=tensor.tensor_type)
        record.see(name, tensor.tensor_type.name, data)
        kept.append(data)
    record.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data in kept:
        writer.write_tensor_data(data)
    writer.close()
