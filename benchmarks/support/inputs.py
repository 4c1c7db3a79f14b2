"""The model and the data of a benchmark: real ones, or tiny generated ones in a smoke run."""

from pathlib import Path

from benchmarks.support.record import Record
from prunesearch.models.demo_weights import obtain
from tests.support.models import byte_tokenizer, tiny
from tests.support.texts import hellaswag_rows, prose, write_lines

N_LAYERS = 30
"""Blocks of SmolLM2-135M, and of the tiny model in its place."""


def model_folder(record: Record, scratch: Path) -> Path:
    """SmolLM2-135M-Instruct; in a smoke run a tiny random Llama of as many blocks.

    llama.cpp runs the tiny one too: it takes no tokeniser without merges.
    """
    if record.size != "smoke":
        return obtain(Path("storage/models"))
    folder = scratch / "tiny-model"
    tokenizer = byte_tokenizer(("t", "h"), ascii_only=True)
    model = tiny(vocab_size=len(tokenizer), num_hidden_layers=N_LAYERS, initializer_range=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hellaswag(record: Record, given: Path | None, scratch: Path) -> Path:
    """The documents that the user names; in a smoke run twelve generated ones.

    Raises:
        SystemExit: no documents are named.
    """
    if record.size != "smoke":
        return _named(given, "--data")
    return write_lines(scratch / "hellaswag.jsonl", hellaswag_rows(12))


def text(record: Record, given: Path | None, option: str, scratch: Path) -> Path:
    """The text file that the user names; in a smoke run generated sentences.

    Raises:
        SystemExit: no file is named.
    """
    if record.size != "smoke":
        return _named(given, option)
    path = scratch / f"{option.strip('-')}.txt"
    path.write_text(prose(400))
    return path


def _named(given: Path | None, option: str) -> Path:
    if given is None:
        raise SystemExit(f"{option} FILE is missing")
    return given
