"""Files with text or rows. The name of a file decides how it is read, or that it is refused.

* Plain text (.txt, .md, any other name) is one document.
* JSON lines (.jsonl, .ndjson), JSON (.json), tables (.csv, .tsv) and Parquet (.parquet) have one
  document per row.

All files but Parquet may be compressed (.gz, .bz2, .xz). Text is UTF-8, with or without a byte
order mark. A file with a NUL character is binary or UTF-16, and it is refused. An escaped NUL in a
row (``\\u0000``) is removed.
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
from prunesearch.models.guard import guarded, refuse_pointers
from prunesearch.runtime.json_values import Json, JsonObject

TEXT_FIELDS = ("text", "content", "document")
CHAT_FIELDS = ("messages", "conversations", "conversation")
FIELDS = ", ".join(map(repr, TEXT_FIELDS)) + f" or {CHAT_FIELDS[0]!r}"
_SHARED_GPT = {"human": "user", "gpt": "assistant"}
"""Standard names of the roles in ShareGPT conversations, ``{"from": ..., "value": ...}``."""

Kind = Literal["text", "json lines", "json", "csv", "tsv", "parquet"]
_KINDS: Mapping[str, Kind] = {
    ".jsonl": "json lines", ".jsonlines": "json lines", ".ndjson": "json lines",
    ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
_OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_NOT_READ = frozenset(
    """.zst .zip .tar .tgz .7z .rar .lz4 .br .arrow .feather .orc .avro .pdf .doc .docx .odt .epub
    .xls .xlsx .npy .npz .pt .pth .bin .pkl .safetensors .gguf .h5 .db .sqlite .sqlite3""".split()
)
_READ = ".txt, .jsonl, .json, .csv or .tsv (plain, .gz, .bz2 or .xz), or .parquet"
LOOKS_LIKE_A_FILE = (*_KINDS, *_OPENERS, ".txt", ".md")
"""Endings that distinguish the name of a missing file from the id of a dataset."""

_BEGINNING = 4096
"""Characters or bytes that are the beginning of a file."""


def kind_of(path: Path) -> Kind:
    """Return the kind of a file by its name.

    Raises:
        DataError: files of this kind are not read.
    """
    endings = [ending.lower() for ending in path.suffixes]
    # Set the ending of a compressed file apart.
    packed = ""
    if endings and endings[-1] in _OPENERS:
        packed = endings.pop()
    ending = endings[-1] if endings else ""
    kind = _KINDS.get(ending, "text")
    if ending in _NOT_READ or (packed and kind == "parquet"):
        raise DataError(
            f"{str(path)!r} is a {ending}{packed} file, which is not read: give {_READ}"
        )
    return kind


def documents_in(path: Path, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Read a file's documents.

    Args:
        path: path of the file.
        tokenizer: tokenizer with the chat template for conversations.

    Raises:
        DataError: the file cannot be read, or it has no field with text.
    """
    kind = kind_of(path)
    if kind == "text":
        return [_content(path)]
    return documents_of(_rows(path, kind), repr(str(path)), tokenizer)


def check_beginning(path: Path) -> None:
    """Check that the beginning of a file can be read.

    A pipe can be read once, so it is left alone.

    Raises:
        DataError: it cannot, or files of its kind are not read.
    """
    kind = kind_of(path)
    refuse_pointers(path, DataError)
    if path.exists() and not (path.is_file() or path.is_dir()):
        return
    with (
        guarded(f"cannot read {str(path)!r}", path, kind=DataError),
        path.open("rb") if kind == "parquet" else open_text(path) as file,
    ):
        file.read(_BEGINNING)


def read_rows(path: Path) -> list[JsonObject]:
    """Read a file's rows. A file with an unknown ending is read as JSON lines.

    Raises:
        DataError: the file cannot be read, is empty, or has other values than rows.
    """
    kind = kind_of(path)
    rows = _rows(path, "json lines" if kind == "text" else kind)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{str(path)!r} row {number} is not a JSON object")
    return cast(list[JsonObject], rows)


def read_jsonl(path: Path) -> list[JsonObject]:
    """Read a file with one JSON object per line, whatever its name.

    Raises:
        DataError: the file cannot be read, is not JSON lines, or is empty.
    """
    return cast(list[JsonObject], _json_lines(path))


def open_text(path: Path) -> TextIO:
    """Open a plain, .gz, .bz2 or .xz file as text, without its byte order mark."""
    opener = _OPENERS.get(path.suffix.lower(), open)
    return cast(TextIO, opener(path, "rt", encoding="utf-8-sig"))


def documents_of(
    rows: Iterable[Json], where: str, tokenizer: PreTrainedTokenizerBase | None
) -> list[str]:
    """Return the documents of rows.

    A document is the text of a row, or its conversation as the chat template writes it. A null
    value is left out.

    Args:
        rows: rows with fields, or plain texts.
        where: name of the file or data set, for messages.
        tokenizer: tokenizer with the chat template for conversations.

    Raises:
        DataError: no field has text, or a value has another type.
    """
    # Find the fields that may have text.
    rows = list(rows)
    tables = [row for row in rows if isinstance(row, dict)]
    present: set[object] = set()
    for table in tables:
        present.update(table)
    known = [name for name in (*TEXT_FIELDS, *CHAT_FIELDS) if name in present]
    if tables and not known:
        names: set[str] = set()
        for table in tables[:100]:
            names.update(map(str, table))
        raise DataError(f"{where} has no field {FIELDS}: its fields are {', '.join(sorted(names))}")
    # Choose the first of them that has a value in some row.
    field = known[0] if known else ""
    for name in known:
        if _filled(name, tables):
            field = name
            break
    # Read that field of all rows.
    documents = []
    for number, row in enumerate(rows, 1):
        value = row.get(field) if isinstance(row, dict) else row
        if isinstance(row, dict) and field not in row:
            for other in known:
                if row.get(other) is not None:
                    raise DataError(
                        f"{where} row {number} has the field {other!r}, and other rows have "
                        f"{field!r}: write all text "
                        "in one field"
                    )
        if value is not None:
            documents.append(_document(value, field, f"{where} row {number}", tokenizer))
    return documents


def _filled(name: str, rows: Iterable[JsonObject]) -> bool:
    """Return True if a field has a value in some row."""
    return any(row.get(name) is not None for row in rows)


def _document(
    value: Json, field: str, where: str, tokenizer: PreTrainedTokenizerBase | None
) -> str:
    """Return the text of one value: a string or a conversation."""
    if isinstance(value, str):
        return _writable(value)
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return _writable(_conversation(value, field, where, tokenizer))
    what = repr(value)
    if isinstance(value, list):
        what = "a list"
    elif isinstance(value, dict):
        what = "an object"
    raise DataError(
        f"{where} has {what} in the field {field!r}, which is not text: give text, or null to "
        f"leave it out"
    )


def _conversation(
    turns: Sequence[JsonObject],
    field: str,
    where: str,
    tokenizer: PreTrainedTokenizerBase | None,
) -> str:
    """Write a conversation with the tokenizer's chat template."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where} has a conversation in the field {field!r}, and the model's tokenizer has no "
            f"chat template to "
            f"write it with: give a field {TEXT_FIELDS[0]!r}"
        )
    # Translate ShareGPT turns to the standard spelling.
    messages = []
    for turn in turns:
        if "role" not in turn and "from" in turn:
            role = str(turn["from"])
            turn = {"role": _SHARED_GPT.get(role, role), "content": turn.get("value")}
        messages.append(turn)
    failure = f"{where}: the tokenizer's chat template cannot write the field {field!r}"
    with guarded(
        failure, kind=DataError, advice=f"correct the row, or give a field {TEXT_FIELDS[0]!r}"
    ):
        written = tokenizer.apply_chat_template(
            cast(list[dict[str, str]], messages), tokenize=False
        )
    return str(written)


def _writable(text: str) -> str:
    """Return a text that every tokenizer accepts: without NUL and without single surrogates.

    JSON can contain both as escapes.
    """
    text = text.replace("\0", "")
    if text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _content(path: Path) -> str:
    """Return the text of a file."""
    refuse_pointers(path, DataError)
    with guarded(f"cannot read {str(path)!r}", path, kind=DataError), open_text(path) as file:
        text = file.read()
    if "\0" in text:
        raise DataError(
            f"{str(path)!r} has NUL characters: it is not text, or not in UTF-8; convert it to "
            f"UTF-8"
        )
    return text


def _rows(path: Path, kind: Kind) -> Sequence[Json]:
    """Read the rows of a file of a kind."""
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


def _json_lines(path: Path) -> list[Json]:
    """Read one JSON object per line. Empty lines are skipped."""
    rows: list[Json] = []
    for number, line in enumerate(_content(path).split("\n"), 1):
        if line.strip():
            row = _parsed(line, f"{str(path)!r} line {number} is not JSON")
            if not isinstance(row, dict):
                raise DataError(f"{str(path)!r} line {number} is not a JSON object")
            rows.append(row)
    if not rows:
        raise DataError(f"{str(path)!r} is empty")
    return rows


def _parsed(text: str, failure: str) -> Json:
    """Parse a JSON text."""
    try:
        value: Json = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{failure}: {error.msg}") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # a number with thousands of digits, or deeply nested lists
        raise DataError(f"{failure}: {error}") from None
    return value


def _json(path: Path) -> list[Json]:
    """Read the rows of a JSON file: an array, one object, an object of columns, or JSON lines."""
    text = _content(path)
    try:
        value: Json = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(path)
        raise DataError(f"{str(path)!r} is not JSON: line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not JSON: {error}") from None
    # An array of rows.
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise DataError(
            f"{str(path)!r} holds {value!r:.40}: give a list of objects with a field {FIELDS}"
        )
    # A column of texts.
    for field in TEXT_FIELDS:
        if isinstance(value.get(field), list):
            return [{field: entry} for entry in value[field]]
    # An object with one list of rows under any name, or else one row.
    tables = []
    for entry in value.values():
        if isinstance(entry, list) and entry and all(isinstance(row, dict) for row in entry):
            tables.append(entry)
    named = {*TEXT_FIELDS, *CHAT_FIELDS} & set(value)
    if len(tables) == 1 and not named:
        return tables[0]
    return [value]


def _table(path: Path, delimiter: str) -> list[Json]:
    """Read the rows of a .csv or .tsv file."""
    content = io.StringIO(_content(path), newline="")
    # A document may be longer than the default limit of 128 KiB.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with guarded(f"cannot read {str(path)!r}", path, kind=DataError):
            return list(csv.DictReader(content, delimiter=delimiter, restkey="more", strict=True))
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> list[Json]:
    """Read the rows of a Parquet file."""
    import pyarrow.parquet

    refuse_pointers(path, DataError)
    with guarded(f"cannot read {str(path)!r}", path, kind=DataError, advice="get it again"):
        rows: list[Json] = pyarrow.parquet.read_table(path).to_pylist()
    return rows
