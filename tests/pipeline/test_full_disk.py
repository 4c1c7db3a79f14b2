"""A full disk ends every command that writes weights in one line, and nothing half-written stays.

No file may grow beyond a limit here, which fails in the same places and with the same types of
error.
"""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunesearch.candidate import LayerSubset
from prunesearch.cli.main import main
from prunesearch.errors import StorageError
from prunesearch.models.loading import LoadedModel
from prunesearch.recovery import HealRecipe, heal
from tests.support.models import N_LAYERS, byte_tokenizer, tiny


@contextmanager
def files_up_to(limit: int) -> Iterator[None]:
    """Let writes fail that make a file larger; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer(("t", "h"))
    tiny(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TEXT = "--calibration TEXT --tokens 256 --window 64 --cache cache"


@pytest.mark.parametrize(
    ("command", "limit", "place"),
    [
        ("export MODEL --layers 1,3 --out out", 1000, "'out'"),  # a config
        ("export MODEL --layers 1,3 --out out", 20_000, "'out'"),  # the tokenizer
        ("export MODEL --layers 1,3 --out out", 200_000, "'out'"),  # weights, by our own writer
        (
            "export MODEL --layers 1,3 --out out --dtype bfloat16",
            120_000,
            "'out'",
        ),  # weights, by transformers
        ("export MODEL --layers 1,3 --out out.gguf --gguf", 5000, "'out.gguf'"),
        ("export MODEL --layers 1,3 --out out.gguf --gguf", 200_000, "'out.gguf'"),
        (f"compensate MODEL --layers 1,3 --out out {TEXT}", 200_000, "'out'"),
        (f"compensate MODEL --layers 1,3 --out out {TEXT}", 100, "compensations"),
        (f"evaluate MODEL --layers 1 {TEXT}", 120_000, "references"),
        (
            f"search MODEL --drop 2 --storage sqlite:///s.db --trials 4 --population 4 {TEXT}",
            120_000,
            "references",
        ),
    ],
)
def test_a_command_ends_in_one_line(
    command: str,
    limit: int,
    place: str,
    model: Path,
    prose: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = command.replace("MODEL", str(model)).replace("TEXT", str(prose)).split()
    monkeypatch.setattr(sys, "argv", ["prunesearch", *words])
    with files_up_to(limit), pytest.raises(SystemExit) as stopped:
        main()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert last.startswith("error: cannot")
    assert place in last
    assert "free space" in last
    assert not [
        path.name for path in tmp_path.rglob("*") if path.name.startswith((".prunesearch-", "out"))
    ]


@pytest.mark.parametrize("limit", [5000, 120_000], ids=["adapter", "optimizer"])
def test_healing_goes_on_where_the_disk_was_full(
    limit: int, loaded: LoadedModel, prose: Path, tmp_path: Path
) -> None:
    recipe = HealRecipe(
        data=str(prose), held_out_tokens=128, window=32, steps=2, batch_size=2, eval_every=2
    )
    candidate = LayerSubset.of(N_LAYERS, (1, 3))
    with (
        files_up_to(limit),
        pytest.raises(StorageError, match=r"cannot write .*work.*free space .* run it again"),
    ):
        heal(loaded, candidate, recipe, tmp_path / "work")
    assert {path.name for path in (tmp_path / "work").iterdir()} == {".lock", "run.json"}
    assert heal(loaded, candidate, recipe, tmp_path / "work").steps == 2
    kept = {path.name for path in (tmp_path / "work").iterdir()} - {".lock"}
    assert kept == {"run.json", "adapter", "result.json"}
