"""Files with text and with rows: each kind is read as what it is, or refused by its name.

* plain text (.txt, .md, any other name): one document;
* JSON lines (.jsonl, .ndjson), JSON (.json), tables (.csv, .tsv) and Parquet (.parquet): a document a row.

All but Parquet may be compressed (.gz, .bz2, .xz). Text is UTF-8, with or without a byte order mark. A NUL in a file
means that it is binary, or UTF-16, and the file is refused; one that is spelled out in a row (``\\u0000``) is left out.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from transformers import PreTrainedTokenizerBase

from prunesearch.errors import DataError
from prunesearch.model.guard import guarded, refuse_pointers

TEXT_FIELDS = ("text", "content", "document")
CHAT_FIELDS = ("messages", "conversations", "conversation")
FIELDS = ", ".join(map(repr, TEXT_FIELDS)) + f" or {CHAT_FIELDS[0]!r}"
_SHARED_GPT = {"human": "user", "gpt": "assistant"}
"""Names of roles in the other usual spelling of conversations, ``{"from": ..., "value": ...}``."""

Kind = Literal["text", "json lines", "json", "csv", "tsv", "parquet"]
_KINDS: Mapping[str, Kind] = {
    ".jsonl": "json lines", ".jsonlines": "json lines", ".ndjson": "json lines", ".json": "json", ".csv": "csv",
    ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_NOT_READ = frozenset(
    """.zst .zip .tar .tgz .7z .rar .lz4 .br .arrow .feather .orc .avro .pdf .doc .docx .odt .epub .xls .xlsx .npy .npz
    .pt .pth .bin .pkl .safetensors .gguf .h5 .db .sqlite .sqlite3""".split()
)
_READ = ".txt, .jsonl, .json, .csv or .tsv (plain, .gz, .bz2 or .xz), or .parquet"
LOOKS_LIKE_A_FILE = (*_KINDS, *_OPENERS, ".txt", ".md")
"""Endings by which a missing file is told from the id of a dataset."""


def kind_of(path: Path) -> Kind:
    """What a file is, by its name.

    Raises:
        DataError: nothing that is read.
    """
    endings = [ending.lower() for ending in path.suffixes]
    packed = endings[-1] if endings and endings[-1] in _OPENERS else ""
    if packed:
        endings.pop()
    ending = endings[-1] if endings else ""
    kind = _KINDS.get(ending, "text")
    if ending in _NOT_READ or (packed and kind == "parquet"):
        raise DataError(f"{str(path)!r} is a {ending}{packed} file, which is not read: give {_READ}")
    return kind


def documents_in(path: Path, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Read a file's documents.

    Args:
        tokenizer: whose chat template writes conversations.

    Raises:
        DataError: it cannot be read, or has no field with text.
    """
    kind = kind_of(path)
    if kind == "text":
        return [_content(path)]
    return documents_of(_rows(path, kind), repr(str(path)), tokenizer)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file's rows; one of an unknown name has JSON lines.

    Raises:
        DataError: it cannot be read, is empty, or has something else than rows.
    """
    kind = kind_of(path)
    rows = _rows(path, "json lines" if kind == "text" else kind)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{str(path)!r} row {number} is no JSON object")
    return cast(list[dict[str, Any]], rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line, whatever the file is called.

    Raises:
        DataError: not readable, not JSON lines, or empty.
    """
    return cast(list[dict[str, Any]], _json_lines(path))


def open_text(path: Path) -> TextIO:
    """Open a plain, .gz, .bz2 or .xz file as text, without its byte order mark."""
    opener = _OPENERS.get(path.suffix.lower(), open)
    return cast(TextIO, opener(path, "rt", encoding="utf-8-sig"))


def documents_of(rows: Iterable[object], where: str, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """The documents of rows: the text of each, or its conversation as the chat template writes it. Null is left out.

    Args:
        where: name of the file or data set, for messages.

    Raises:
        DataError: no field has text, or a value is of another type.
    """
    rows = list(rows)
    tables = [row for row in rows if isinstance(row, dict)]
    known = [name for name in (*TEXT_FIELDS, *CHAT_FIELDS) if any(name in row for row in tables)]
    if tables and not known:
        names = sorted({str(name) for row in tables[:100] for name in row})
        raise DataError(f"{where} has no field {FIELDS}: its fields are {', '.join(names)}")
    filled = (name for name in known if any(row.get(name) is not None for row in tables))
    field = next(filled, known[0] if known else "")
    documents = []
    for number, row in enumerate(rows, 1):
        value = row.get(field) if isinstance(row, dict) else row
        if isinstance(row, dict) and field not in row:
            other = next((name for name in known if row.get(name) is not None), None)
            if other is not None:
                raise DataError(
                    f"{where} row {number} has the field {other!r}, and other rows have {field!r}: write all text in "
                    "one field"
                )
        if value is not None:
            documents.append(_document(value, field, f"{where} row {number}", tokenizer))
    return documents


def _document(value: object, field: str, where: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if isinstance(value, str):
        return _writable(value)
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return _writable(_conversation(value, field, where, tokenizer))
    what = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else repr(value)
    raise DataError(f"{where} has {what} in the field {field!r}, which is no text: give text, or null to leave it out")


def _conversation(
    turns: Sequence[dict[str, Any]], field: str, where: str, tokenizer: PreTrainedTokenizerBase | None
) -> str:
    """Write a conversation as the model knows it."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where} has a conversation in the field {field!r}, and the model's tokenizer has no chat template to "
            f"write it with: give a field {TEXT_FIELDS[0]!r}"
        )
    messages = []
    for turn in turns:
        if "role" not in turn and "from" in turn:
            role = str(turn["from"])
            turn = {"role": _SHARED_GPT.get(role, role), "content": turn.get("value")}
        messages.append(turn)
    failure = f"{where}: the tokenizer's chat template cannot write the field {field!r}"
    with guarded(failure, kind=DataError, advice=f"correct the row, or give a field {TEXT_FIELDS[0]!r}"):
        written = tokenizer.apply_chat_template(messages, tokenize=False)
    return str(written)


def _writable(text: str) -> str:
    """Text that every tokenizer takes: without NUL, and without halves of surrogate pairs, which JSON can spell."""
    text = text.replace("\0", "")
    if text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _content(path: Path) -> str:
    """All text of a file."""
    refuse_pointers(path, DataError)
    with guarded(f"cannot read {str(path)!r}", path, kind=DataError), open_text(path) as file:
        text = file.read()
    if "\0" in text:
        raise DataError(f"{str(path)!r} has NUL characters: it is not text, or not in UTF-8; convert it to UTF-8")
    return text


def _rows(path: Path, kind: Kind) -> Sequence[object]:
    if kind == "parquet":
        rows = _parquet(path)
    elif kind == "json lines":
        rows = _json_lines(path)
    elif kind == "json":
        rows = _json(path)
    else:
        rows = _table(path, "," if kind == "csv" else "\t")
    if not rows:
        raise DataError(f"{str(path)!r} is empty")
    return rows


def _json_lines(path: Path) -> list[object]:
    rows: list[object] = []
    for number, line in enumerate(_content(path).split("\n"), 1):
        if line.strip():
            row = _parsed(line, f"{str(path)!r} line {number} is not JSON")
            if not isinstance(row, dict):
                raise DataError(f"{str(path)!r} line {number} is no JSON object")
            rows.append(row)
    if not rows:
        raise DataError(f"{str(path)!r} is empty")
    return rows


def _parsed(text: str, failure: str) -> object:
    try:
        return cast(object, json.loads(text))
    except json.JSONDecodeError as error:
        raise DataError(f"{failure}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists without end
        raise DataError(f"{failure}: {error}") from None


def _json(path: Path) -> list[object]:
    """The rows of a JSON file: an array, one object, an object of columns, or JSON lines under this name."""
    text = _content(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(path)
        raise DataError(f"{str(path)!r} is not JSON: line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not JSON: {error}") from None
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DataError(f"{str(path)!r} holds {value!r:.40}: give a list of objects with a field {FIELDS}")
    for field in TEXT_FIELDS:
        if isinstance(value.get(field), list):
            return [{field: entry} for entry in value[field]]
    tables = [v for v in value.values() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
    named = {*TEXT_FIELDS, *CHAT_FIELDS} & set(value)
    return tables[0] if len(tables) == 1 and not named else [value]


def _table(path: Path, delimiter: str) -> list[object]:
    content = io.StringIO(_content(path), newline="")
    limit = csv.field_size_limit(sys.maxsize)  # a document may be longer than the usual limit of 128 KiB
    try:
        with guarded(f"cannot read {str(path)!r}", path, kind=DataError):
            return list(csv.DictReader(content, delimiter=delimiter, restkey="more", strict=True))
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> list[object]:
    import pyarrow.parquet

    refuse_pointers(path, DataError)
    with guarded(f"cannot read {str(path)!r}", path, kind=DataError, advice="get it again"):
        rows: list[object] = pyarrow.parquet.read_table(path).to_pylist()
    return rows
