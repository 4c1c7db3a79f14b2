"""Reads the text of a protocol, and cuts it into windows (see `objectives.protocols`)."""

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from prunesearch.errors import DataError
from prunesearch.models.guard import guarded
from prunesearch.objectives.protocols import Protocol, ProtocolText
from prunesearch.objectives.text_files import documents_in, kind_of
from prunesearch.units import noun_for

FULL_TEXT = "the whole text"
"""What `ProtocolWindows.text` says if nothing is wrong with the text."""


@dataclass(frozen=True)
class ProtocolWindows:
    """The windows of a protocol.

    Attributes:
        protocol: the protocol.
        windows_BL: token ids, shape (B, L).
        rows: number of rows that were read.
        tokens: number of tokens of the joined text, the remainder included.
        text: what was read, in words. Only `FULL_TEXT` gives numbers that can be compared with
            published ones.
    """

    protocol: Protocol
    windows_BL: torch.Tensor
    rows: int
    tokens: int
    text: str


def read_protocol(
    protocol: Protocol, tokenizer: PreTrainedTokenizerBase, data: str | None = None
) -> ProtocolWindows:
    """Read and cut the text of a protocol.

    Args:
        protocol: the protocol.
        tokenizer: the model's tokenizer.
        data: file with the rows; None: they come from the hub.

    Raises:
        DataError: the text cannot be read, or it is shorter than one window.
    """
    # Read the rows that the protocol names.
    rows = _from_hub(protocol.text) if data is None else _from_file(Path(data), protocol.text)
    found, rows = len(rows), rows[: protocol.text.rows]
    # Join and tokenise them, and cut the tokens into windows without a remainder.
    ids = _encode(protocol, tokenizer, protocol.separator.join(rows))
    count = len(ids) // protocol.window
    if protocol.most_windows is not None:
        count = min(count, protocol.most_windows)
    if count == 0:
        raise DataError(
            f"the text of protocol {protocol.name} has {len(ids)} {noun_for(len(ids), 'token')}, "
            f"and a window has {protocol.window}: give more text, or a protocol "
            "with shorter windows"
        )
    windows_BL = torch.tensor(ids[: count * protocol.window]).view(count, protocol.window)
    return ProtocolWindows(
        protocol, windows_BL, len(rows), len(ids), _described(protocol, rows, found)
    )


def _encode(protocol: Protocol, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text. It is tokenised whole, as the published code does it."""
    with guarded("the tokenizer cannot read the text", kind=DataError):
        ids: list[int] = tokenizer(text, add_special_tokens=protocol.special_tokens, verbose=False)[
            "input_ids"
        ]
    return ids


def _described(protocol: Protocol, rows: list[str], found: int) -> str:
    """Say whether the rows are the text of the protocol.

    Args:
        protocol: the protocol.
        rows: the rows that are read.
        found: number of rows of the file.
    """
    text = protocol.text
    if text.replaced and any(text.replaced in row for row in rows):
        return f"another version of the text, in which rare words are {text.replaced}"
    if len(rows) < text.rows:
        return f"{len(rows)} of {text.rows} rows"
    # The protocols read the whole test split of WikiText-2, and the first rows of a file of C4.
    if text.lines_are_rows and found > text.rows:
        return f"another text: it has {found} rows, and the published one {text.rows}"
    return FULL_TEXT


def _from_hub(text: ProtocolText) -> list[str]:
    """Read the rows from the hub, or from its copy on this machine."""
    import datasets

    advice = "give the file with `protocol_data`, or connect to the hub once"
    with guarded(f"cannot load dataset {text.repository!r}", kind=DataError, advice=advice):
        data = datasets.load_dataset(
            text.repository,
            text.config,
            data_files=dict(text.files) or None,
            split=f"{text.split}[:{text.rows}]",
            revision=text.revision,
        )
        rows: list[str] = list(data["text"])
    return rows


def _from_file(path: Path, text: ProtocolText) -> list[str]:
    """Read the rows of a file: Parquet, JSON, JSON lines or a table, or a plain text with one row
    per line.

    Raises:
        DataError: the file cannot be read, or it is plain text and the rows are documents.
    """
    if not path.is_file():
        raise DataError(f"no file {str(path)!r} with the text of a protocol: check the path")
    documents = documents_in(path, None)
    if kind_of(path) != "text":
        return documents
    if not text.lines_are_rows:
        raise DataError(
            f"{str(path)!r} is plain text, and the rows of {text.repository} are documents of "
            "several lines: give JSON lines or Parquet"
        )
    rows = []
    # Python iterates over the lines of a file in the same way, with their newlines.
    for line in io.StringIO(documents[0], newline="\n"):
        rows.append(line if line.strip() else "")
    return rows
