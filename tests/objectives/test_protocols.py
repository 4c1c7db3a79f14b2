"""Published protocols of perplexity, against a loop over windows that is written here."""

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.errors import DataError, UnknownNameError
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.execution.batches import Rows
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel
from prunesearch.models.surgery import pruned
from prunesearch.objectives.base import ChunkWork
from prunesearch.objectives.next_token_loss import loss_objective
from prunesearch.objectives.protocol_windows import FULL_TEXT, read_protocol
from prunesearch.objectives.protocols import C4, PROTOCOLS, WIKITEXT2, Protocol, protocol_of
from tests.support.cli import refused, run, run_json
from tests.support.models import byte_tokenizer

RAW = "\n = Title = \n\n The first paragraph has words . \n\n Another one . \n"
"""The beginning of a file as WikiText-2 has it: blank lines, and spaces around each line."""
ROWS = ["", " = Title = \n", "", " The first paragraph has words . \n", "", " Another one . \n"]
"""Its rows as the hub has them."""


def with_bos() -> PreTrainedTokenizerFast:
    """The tokenizer of one token per byte; it adds token 0 in front."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def small(text: str, window: int, separator: str, special: bool, most: int | None) -> Protocol:
    """A protocol with short windows."""
    of = {"wikitext2": WIKITEXT2, "c4": C4}[text]
    return Protocol("small", of, window, separator, special, "tests", most)


def perplexity_by_hand(loaded: LoadedModel, ids: list[int], window: int, dropped: str) -> float:
    """Perplexity as GPTQ's code has it: the mean loss of each window times its length, summed, and
    divided by the number of tokens in windows.
    """
    count = len(ids) // window
    total = 0.0
    with pruned(loaded.model, LayerSubset.parse(dropped, loaded.n_layers)) as model:
        for index in range(count):
            part_1L = torch.tensor([ids[index * window : (index + 1) * window]])
            with torch.no_grad():
                logits_1LV = model(input_ids=part_1L, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits_1LV[0, :-1], part_1L[0, 1:])
            total += float(loss) * window
    return math.exp(total / (count * window))


@pytest.mark.parametrize(
    ("text", "separator", "special", "most"),
    [("wikitext2", "\n\n", True, None), ("wikitext2", "\n\n", False, None), ("c4", " ", True, 3)],
)
def test_perplexity_equals_a_loop_over_windows(
    loaded: LoadedModel, tmp_path: Path, text: str, separator: str, special: bool, most: int | None
) -> None:
    protocol = small(text, 16, separator, special, most)
    tokenizer = with_bos()
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    read = read_protocol(protocol, tokenizer, str(path))

    # The text by hand: one token per byte, and 0 for BOS, once.
    joined = separator.join(ROWS)
    words = tokenizer.get_vocab()
    ids = [0] if special else []
    for letter in joined:
        ids.append(words[{" ": "Ġ", "\n": "Ċ"}.get(letter, letter)])
    assert len(ids) % 16, "there is a remainder, which is left out"
    count = min(len(ids) // 16, most or 1000)
    assert read.windows_BL.flatten().tolist() == ids[: count * 16]
    assert (read.tokens, read.rows) == (len(ids), 6)
    assert read.text == f"6 of {protocol.text.rows} rows"

    engine = LocalEngine(
        loaded, loss_objective(loaded, read.windows_BL), EvaluationCache(str(tmp_path / "cache"))
    )
    for dropped in ("none", "1,4", "2a,3m"):
        candidate = LayerSubset.parse(dropped, loaded.n_layers)
        (found,) = engine.evaluate_now([candidate])
        wanted = perplexity_by_hand(loaded, ids[: count * 16], 16, dropped)
        assert found.metrics["perplexity"] == pytest.approx(wanted, rel=1e-5)
        assert found.metrics["cross_entropy"] == pytest.approx(math.log(wanted), rel=1e-5)
        losses = torch.tensor(engine.losses([candidate])[0], dtype=torch.float64)
        error = float(losses.std()) / math.sqrt(count)
        assert found.stderr["cross_entropy"] == pytest.approx(error)
        assert found.stderr["perplexity"] == pytest.approx(wanted * error, rel=1e-5)


def test_each_kind_of_file_has_the_same_rows(tmp_path: Path) -> None:
    protocol, tokenizer = small("wikitext2", 16, "\n\n", False, None), byte_tokenizer()
    plain = tmp_path / "wiki.test.raw"
    plain.write_text(RAW)
    table = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ROWS}), table)
    packed = tmp_path / "c4-validation.00000-of-00008.json.gz"
    with gzip.open(packed, "wt") as file:
        file.writelines(json.dumps({"text": row, "url": "x"}) + "\n" for row in ROWS)
    found = []
    for path in (plain, table, packed):
        found.append(read_protocol(protocol, tokenizer, str(path)).windows_BL.tolist())
    assert found[0] == found[1] == found[2]


def test_only_the_first_documents_of_c4_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c4.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n:04}"}) + "\n" for n in range(1200)))
    read = read_protocol(small("c4", 8, " ", False, None), byte_tokenizer(), str(path))
    assert (read.rows, read.text) == (1100, FULL_TEXT)
    assert read.tokens == 1100 * 4 + 1099
    assert len(read.windows_BL) == (1100 * 4 + 1099) // 8


def test_a_longer_raw_file_is_another_split(tmp_path: Path) -> None:
    protocol, tokenizer = small("wikitext2", 16, "\n\n", False, None), byte_tokenizer()
    path = tmp_path / "wiki.train.raw"
    path.write_text("a line\n" * 4359)
    read = read_protocol(protocol, tokenizer, str(path))
    assert read.text == "another text: it has 4359 rows, and the published one 4358"
    path.write_text("a line\n" * 4358)
    assert read_protocol(protocol, tokenizer, str(path)).text == FULL_TEXT


def test_the_hubs_rows_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load_dataset(name: str, config: str | None, **settings: object) -> dict[str, list[str]]:
        asked[name] = (config, settings["split"], settings["data_files"], settings["revision"])
        return {"text": ROWS}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    tokenizer = byte_tokenizer()
    read = read_protocol(small("wikitext2", 16, "\n\n", False, None), tokenizer)
    assert read.tokens == len("\n\n".join(ROWS))
    read_protocol(small("c4", 16, " ", False, None), tokenizer)
    assert asked["Salesforce/wikitext"] == ("wikitext-2-raw-v1", "test[:4358]", None, None)
    files = {"validation": "en/c4-validation.00000-of-00008.json.gz"}
    assert asked["allenai/c4"][:3] == (None, "validation[:1100]", files)


def test_the_published_settings() -> None:
    found = {}
    for name, protocol in PROTOCOLS.items():
        of = protocol.text.repository.partition("/")[2]
        found[name] = (of, protocol.window, protocol.separator, protocol.special_tokens)
    assert found == {
        "wikitext2-2048": ("wikitext", 2048, "\n\n", True),
        "wikitext2-4096": ("wikitext", 4096, "\n\n", False),
        "wikitext2-8192": ("wikitext", 8192, "\n\n", False),
        "c4-2048": ("c4", 2048, " ", True),
        "c4-4096": ("c4", 4096, "\n\n", False),
        "c4-8192": ("c4", 8192, "\n\n", False),
    }
    assert PROTOCOLS["c4-2048"].most_windows == 256
    with pytest.raises(UnknownNameError, match="did you mean 'wikitext2-2048'"):
        protocol_of("wikitext-2048")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    plain = tmp_path / "text.txt"
    plain.write_text(RAW)
    with pytest.raises(DataError, match="no file"):
        read_protocol(protocol_of("c4-2048"), tokenizer, str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"plain text.*give JSON lines or Parquet"):
        read_protocol(protocol_of("c4-2048"), tokenizer, str(plain))
    with pytest.raises(DataError, match="a window has 2048: give more text"):
        read_protocol(protocol_of("wikitext2-2048"), tokenizer, str(plain))
    plain.write_text(RAW.replace("Title", "<unk>"))
    read = read_protocol(small("wikitext2", 16, "\n\n", False, None), tokenizer, str(plain))
    assert read.text == "another version of the text, in which rare words are <unk>"


def test_evaluate_measures_a_protocol_through_the_cache(
    tiny_folder: Path,
    tmp_path: Path,
    loaded: LoadedModel,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = tmp_path / "wiki.test.raw"
    plain.write_text(60 * RAW)
    asked = ("evaluate", tiny_folder, "--layers", "1,4", "--cache", tmp_path / "cache")
    protocol = ("--protocol", "wikitext2-2048", "--protocol-data", plain)
    found = run_json(*asked, *protocol)
    read = read_protocol(protocol_of("wikitext2-2048"), loaded.tokenizer, str(plain))
    ids = read.windows_BL.flatten().tolist()
    wanted = perplexity_by_hand(loaded, ids, 2048, "1,4")
    assert found["metrics"]["perplexity"] == pytest.approx(wanted, rel=1e-5)
    assert found["stderr"].keys() == {"perplexity", "cross_entropy"}
    assert found["protocol"] == {
        "name": "wikitext2-2048",
        "papers": "GPTQ, SparseGPT, Wanda",
        "windows": len(ids) // 2048,
        "window": 2048,
        "rows": 360,
        "tokens": read.tokens,
        "text": "360 of 4358 rows",
        "comparable": False,
    }
    again = run(*asked, *protocol)
    assert "from the cache" in again.stdout
    assert "not comparable with published numbers: 360 of 4358 rows" in again.stdout
    # What a protocol decides itself is refused.
    said = refused(capsys, monkeypatch, *asked, *protocol, "--window", 256)
    assert "--window does not go with --protocol wikitext2-2048" in said
    said = refused(capsys, monkeypatch, *asked, "--protocol-data", plain)
    assert "--protocol-data goes with --protocol NAME" in said
    said = refused(capsys, monkeypatch, *asked, "--protocol", "wiki", "--task", "hellaswag")
    assert "--task does not go with --protocol" in said


def test_no_dense_model_is_run_for_a_protocol(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = loss_objective(loaded, torch.arange(64).view(4, 16))
    forward = Forward(loaded.model, loaded.layers)
    ran: list[LayerSubset] = []
    run_before = forward.run

    def watched(jobs: list[tuple[Rows, list[LayerSubset]]]) -> Iterator[Any]:
        for _, candidates in jobs:
            ran.extend(candidates)
        return run_before(jobs)

    monkeypatch.setattr(forward, "run", watched)
    candidate = LayerSubset.parse("2", loaded.n_layers)
    list(objective.score([ChunkWork(chunk, [candidate]) for chunk in objective.chunks], forward))
    assert ran == [candidate] * len(objective.chunks)
