"""The registry of export formats states facts that hold."""

import subprocess
import sys

import pytest

from prunesearch.errors import UnknownNameError
from prunesearch.export.formats.registry import (
    REGISTRY,
    ExportFormat,
    checkpoint_format,
    checkpoint_formats,
)


def test_the_formats_are_these() -> None:
    assert checkpoint_formats() == ["plain", "zeroed", "deci", "remote-code", "widths"]
    assert REGISTRY.names()[-1] == "gguf"
    with pytest.raises(UnknownNameError, match="did you mean 'zeroed'"):
        checkpoint_format("zerod")
    with pytest.raises(UnknownNameError, match="unknown export format 'gguf'"):
        checkpoint_format("gguf")


@pytest.mark.parametrize("entry", REGISTRY.entries(), ids=lambda entry: entry.name)
def test_the_facts_of_a_format_fit_together(entry: ExportFormat) -> None:
    assert entry.description.endswith(".")
    assert entry.whole_blocks or entry.sublayers
    if entry.own_code:
        assert not entry.streamed  # a streamed model runs no code of the checkpoint
    if entry.suffix is not None:
        assert not entry.hub and not entry.shards
        assert entry.option is not None
        assert type(entry).write_file is not ExportFormat.write_file
    assert entry.selected_by in ("--gguf", f"--as {entry.name}")


def test_names_are_read_without_torch() -> None:
    code = (
        "import sys; from prunesearch.export.formats.registry import checkpoint_formats; "
        "print(checkpoint_formats()); "
        "assert not {'optuna', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
