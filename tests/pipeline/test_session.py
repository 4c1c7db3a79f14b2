"""What a session prepares before it scores."""

from pathlib import Path

import pytest

from prunesearch.config.model import ModelSection
from prunesearch.config.run_options import RunOptions
from prunesearch.execution.block_code import Compile
from prunesearch.pipeline import session


@pytest.mark.parametrize(("compile_", "allowed"), [("on", True), ("auto", False), ("off", False)])
def test_only_on_compiles_the_reading_of_the_head(
    compile_: Compile, allowed: bool, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []
    monkeypatch.setattr(session, "use_compiler", said.append)
    session.load_for(ModelSection(path=str(tiny_folder)), RunOptions(compile=compile_))
    assert said == [allowed]
