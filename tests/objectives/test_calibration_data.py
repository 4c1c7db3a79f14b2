import bz2
import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prunesearch.candidate import LayerSubset
from prunesearch.config.recipe import Recipe
from prunesearch.config.recovery import HealRecipe
from prunesearch.config.run_options import RunOptions
from prunesearch.errors import DataError
from prunesearch.execution.latency import measure_latency_model, timed_tokens
from prunesearch.export import export
from prunesearch.models.loading import load
from prunesearch.models.structure import most_positions
from prunesearch.objectives import calibration_data as text_module
from prunesearch.objectives.base import BUILTIN_TEXT
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.calibration_data import (
    LONG_TEXT,
    mention_long_windows,
    opening_of,
    read_text,
    token_windows,
)
from prunesearch.objectives.calibration_sources.builtin import HELD_OUT
from prunesearch.objectives.importance import rank_units
from prunesearch.objectives.metrics.kl import KL
from prunesearch.pipeline.searches import run_search
from prunesearch.pipeline.session import open_session
from prunesearch.recovery.compensation import compensate
from prunesearch.recovery.healing import plan_healing
from prunesearch.recovery.training_data import packed
from tests.support.models import byte_tokenizer, tiny


def beginning(name: str = "<bos>", end: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer that begins texts with a token of its own; ``<s>`` ends them too."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": name})
    ids = [(word, tokenizer.convert_tokens_to_ids(word)) for word in filter(None, {name, end})]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{name} $A {end}".strip(), special_tokens=ids
    )
    return tokenizer


def test_builtin_text_needs_nothing_and_its_parts_are_apart() -> None:
    shown, held_out = read_text(BUILTIN_TEXT), read_text(HELD_OUT)
    assert not set(shown) & set(held_out)
    assert len(set(shown)) == len(shown)
    assert sum(map(len, shown)) > 150_000
    assert sum(map(len, held_out)) > 50_000
    assert "the" in shown[0].split()


def test_every_kind_of_file_gives_the_same_text(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "two"))
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(rows.encode()))
    (tmp_path / "a.txt").write_text("one")
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.bz2"):
        assert read_text(str(tmp_path / name)) == ["one", "two"]
    assert read_text(str(tmp_path / "a.txt")) == ["one"]


def test_a_dataset_gives_its_text(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_text(str(tmp_path / "corpus")) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '{"words": "x"}\n', "its fields are words"),
        ("a.jsonl", "{oops\n", "line 1 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", "\n", "is empty"),
        ("a.txt", "  \n", "holds no text"),
        ("a.gz", "plain text", "cannot read"),
    ],
)
def test_unusable_files_are_refused(
    tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=complaint):
        read_text(str(tmp_path / name))


def test_missing_files_are_refused() -> None:
    with pytest.raises(DataError, match="no calibration file"):
        read_text("nowhere.txt")


@pytest.mark.parametrize(
    ("source", "said"), [("pipe", "pipe or a device"), ("-", "pipe or a device"), ("", "no cal")]
)
def test_what_can_be_read_only_once_is_refused(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(DataError, match=said):
        read_text(source)


def test_a_larger_sample_begins_with_the_smaller(prose: Path) -> None:
    small, large = (
        token_windows(str(prose), byte_tokenizer(), tokens, 64) for tokens in (256, 1024)
    )
    assert small.shape == (4, 64)
    assert torch.equal(large[:4], small)
    assert len({tuple(row.tolist()) for row in large}) == 16


def test_short_text_is_refused_with_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("hello")
    with pytest.raises(DataError, match="has 5 tokens, 64 are needed"):
        token_windows(str(tmp_path / "short.txt"), byte_tokenizer(), 64, 32)


def test_a_short_text_is_used_whole_if_it_suffices(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("hello, world, how are you today? " * 3)
    source = str(tmp_path / "short.txt")
    found = token_windows(source, byte_tokenizer(), 1024, 32, fewest=64)
    assert found.shape == (3, 32)
    assert torch.equal(token_windows(source, byte_tokenizer(), 64, 32), found[:2])
    with pytest.raises(DataError, match="99 tokens, 128 are needed"):
        token_windows(source, byte_tokenizer(), 1024, 32, fewest=128)


# What texts begin with


@pytest.mark.parametrize(("name", "end"), [("<bos>", ""), ("<s>", ""), ("<bos>", "<s>")])
def test_each_window_begins_as_the_tokenizer_begins_texts(prose: Path, name: str, end: str) -> None:
    tokenizer = beginning(name, end)
    bos = tokenizer.convert_tokens_to_ids(name)
    assert isinstance(bos, int)
    assert opening_of(tokenizer) == [bos]
    windows = token_windows(str(prose), tokenizer, 256, 64)
    assert windows.shape == (4, 64)
    assert windows[:, 0].tolist() == [bos] * 4
    assert not windows[:, 1:].eq(bos).any()
    text = prose.read_text()
    assert all(str(tokenizer.decode(window[1:])) in text for window in windows)
    assert torch.equal(token_windows(str(prose), tokenizer, 1024, 64)[:4], windows)


def test_a_tokenizer_that_begins_texts_with_nothing_changes_nothing(prose: Path) -> None:
    """The ids are those that version 0.1 took, so that what was computed for them is found
    again.
    """
    windows = token_windows(str(prose), byte_tokenizer(), 1024, 64)
    assert hashlib.sha256(repr(windows.tolist()).encode()).hexdigest()[:16] == "1258a2e9e7f9a653"
    packed_BL, _ = packed(str(prose), byte_tokenizer(), 64, 8)
    assert hashlib.sha256(repr(packed_BL.tolist()).encode()).hexdigest()[:16] == "4a2e45d6d77e4737"


def test_healing_documents_and_windows_begin_so_too(tmp_path: Path) -> None:
    texts = [f"Document {i} is about ships and boats." for i in range(40)]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = beginning()
    bos, end = tokenizer.convert_tokens_to_ids("<bos>"), 0
    windows, _ = packed(str(source), tokenizer, 100, 8)
    assert windows.shape == (8, 100)
    assert windows[:, 0].tolist() == [bos] * 8
    for window in windows.tolist():
        for place in range(
            1, len(window)
        ):  # a document ends before each, and a new one begins after each end
            assert (window[place] == bos) == (window[place - 1] == end)
    fewer, _ = packed(str(source), tokenizer, 100, 3)
    assert torch.equal(fewer, windows[:3])
    both, _ = packed(
        str(source), beginning("<s>"), 100, 8
    )  # one token ends documents and begins them
    assert both[:, 0].tolist() == [0] * 8
    assert not ((both[:, :-1] == 0) & (both[:, 1:] == 0)).any()


# Long texts


def _without_words() -> PreTrainedTokenizerFast:
    """Without a pre-tokenizer, as Llama 2's, whose time grows faster than the text."""
    words = ["<unk>", *map(chr, range(33, 127)), "\u2581", "th", "the", "\u2581the"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    tokenizer = Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_text("".join(f"{i} ships left the harbour. " for i in range(300_000)))
    return path


@pytest.mark.parametrize("make", [byte_tokenizer, _without_words, beginning])
def test_a_bounded_part_of_a_long_text_is_tokenised(
    long_text: Path, make: Callable[[], PreTrainedTokenizerFast]
) -> None:
    assert long_text.stat().st_size > 4 * LONG_TEXT
    start = time.process_time()
    tokenizer = make()
    windows = token_windows(str(long_text), tokenizer, 1024, 64)
    packed(str(long_text), tokenizer, 64, 8)
    assert time.process_time() - start < 4
    assert windows.shape == (16, 64)
    assert len({tuple(window) for window in windows.tolist()}) == 16
    assert torch.equal(token_windows(str(long_text), tokenizer, 256, 64), windows[:4])


def test_all_parts_of_a_long_text_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"{i:05} " for i in range(2000))
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr(text_module, "LONG_TEXT", 1000)
    source, tokenizer = str(tmp_path / "a.txt"), byte_tokenizer()
    windows = token_windows(source, tokenizer, 11_000, 32)
    assert len({tuple(window) for window in windows.tolist()}) == len(windows) == 343
    assert torch.equal(token_windows(source, tokenizer, 3_200, 32), windows[:100])
    assert all(str(tokenizer.decode(window)) in text for window in windows)
    with pytest.raises(DataError, match="is too short: it has 11"):
        token_windows(source, tokenizer, 13_000, 32)


def test_a_long_document_is_packed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{i:05} " for i in range(200)))
    whole, _ = packed(str(tmp_path / "a.txt"), byte_tokenizer(), 32, 1000)
    monkeypatch.setattr("prunesearch.recovery.training_data.LONG_TEXT", 100)
    monkeypatch.setattr("prunesearch.recovery.training_data._PART", 48)
    parts, tokens = packed(str(tmp_path / "a.txt"), byte_tokenizer(), 32, 1000)
    assert torch.equal(parts, whole)
    assert tokens == 1201


# What a model has embeddings for


@pytest.fixture(scope="module")
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with a table of 128 positions."""
    folder = tmp_path_factory.mktemp("short") / "gpt2"
    tiny("gpt2", n_positions=128).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("architecture", "changes", "most"),
    [
        ("gpt2", {"n_positions": 128}, 128),
        ("gptj", {"n_positions": 128}, 128),
        ("opt", {"max_position_embeddings": 128}, 128),
        ("llama", {"max_position_embeddings": 128}, None),
        ("falcon", {}, None),
    ],
)
def test_tables_of_positions_are_found(
    architecture: str, changes: dict[str, int], most: int | None
) -> None:
    assert most_positions(tiny(architecture, **changes)) == most


def test_windows_beyond_the_training_of_a_model_are_mentioned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny("llama", max_position_embeddings=64)
    mention_long_windows(model, 64)
    assert caplog.messages == []
    mention_long_windows(model, 65)
    (said,) = caplog.messages
    assert "windows of 65 tokens" in said
    assert "use windows of 64 or less" in said
    # Embeddings that are scaled are made for longer windows.
    model.config.rope_parameters = {"rope_type": "yarn", "factor": 4.0}
    mention_long_windows(model, 65)
    assert len(caplog.messages) == 1


def test_windows_that_do_not_fit_are_refused_before_anything_is_computed(
    short_folder: Path,
) -> None:
    loaded, candidate = load(str(short_folder), device="cpu"), LayerSubset.of(6, (2,))
    long_BL, fitting_BL, strange_BL = (
        torch.zeros(2, 129).long(),
        torch.zeros(2, 128).long(),
        torch.full((2, 64), 264),
    )
    CalibrationObjective(loaded, fitting_BL, KL())
    for windows_BL, complaint in (
        (long_BL, "129 tokens .* 128 positions: use `window` 128"),
        (strange_BL, "id 264 .* 264"),
    ):
        for use in (
            lambda w: CalibrationObjective(loaded, w, KL()),
            lambda w: rank_units(loaded.model, loaded.layers, w, "influence", "blocks"),
            lambda w: compensate(loaded, candidate, w, fitting_BL),
            lambda w: compensate(loaded, candidate, fitting_BL, w),
        ):
            with pytest.raises(DataError, match=complaint):
                use(windows_BL)
    with pytest.raises(DataError, match="use `window` 128"):
        plan_healing(loaded, candidate, HealRecipe(window=256, held_out_tokens=256, steps=1))


def test_a_model_with_few_positions_is_searched_timed_and_exported(
    short_folder: Path, prose: Path, tmp_path: Path
) -> None:
    options = RunOptions(
        storage=f"sqlite:///{tmp_path}/study.db",
        cache=str(tmp_path / "cache"),
        trials=2,
        device="cpu",
    )
    recipe = Recipe(
        model=str(short_folder), drop="1", calibration=str(prose), tokens=256, window=128
    )
    with open_session(recipe, options) as session:
        loaded = session.loaded
        assert timed_tokens(loaded.model) == 128
        assert len(measure_latency_model(loaded.model, loaded.layers, repeats=1).block_ms) == 6
        outcome = run_search(session, recipe, options)
        assert export(loaded, outcome.best.candidate, tmp_path / "out").verification.decoded > 0
    assert outcome.best_ms > 0
    with (
        pytest.raises(DataError, match="use `window` 128"),
        open_session(recipe.with_changes(window=256), options),
    ):
        pass
