"""The head is read in cheap ways that equal the model's own code."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prunesearch.execution import head_choice
from prunesearch.execution.head import Head
from prunesearch.execution.head_choice import choice_for, measure_choice
from prunesearch.execution.head_reading import HeadChoice, PickedTokens, read_head
from prunesearch.execution.logsumexp import EAGER, LogsumexpMethod, logsumexp
from tests.support.heads import LINEAR, headed_model, rows
from tests.support.model_types import tiny_model
from tests.support.models import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", LINEAR)
@torch.inference_mode()
def test_a_linear_head_is_called_directly(model_type: str, dtype: torch.dtype) -> None:
    model = headed_model(model_type, dtype)
    head, states_RE = Head(model), rows(model)
    assert head.linear is not None and head.linear.convert is not None
    assert head.linear.scale == LINEAR[model_type]
    assert head.linear.sliced
    assert (head.linear.bias_V is not None) == (model_type == "phi")
    assert torch.equal(head.logits(states_RE), head._own_logits(states_RE))
    normed_RE = head.apply_final_norm(states_RE)
    assert torch.equal(normed_RE, head._own_final_norm(states_RE))
    assert list(head._norms.values()) != [None]


def test_a_soft_cap_is_not_linear() -> None:
    model = tiny_model("gemma2")
    assert model.config.final_logit_softcapping
    head = Head(model)
    assert head.linear is None
    assert torch.equal(head.logits(rows(model)), head._own_logits(rows(model)))


@pytest.mark.parametrize("method", EAGER)
@pytest.mark.parametrize("columns", [None, 37, 64, 1000])
@torch.inference_mode()
def test_all_ways_read_the_same(method: LogsumexpMethod, columns: int | None) -> None:
    head, states_RE = Head(tiny_model("phi")), rows(tiny_model("phi"), 70)
    exact_RV = head.logits(states_RE).double()
    index_RP = torch.randint(0, exact_RV.shape[1], (70, 5), generator=torch.Generator())
    choice = HeadChoice(32, columns, method)
    reading = read_head(head, states_RE, PickedTokens(index_RP), choice)
    torch.testing.assert_close(
        reading.logsumexp_R.double(), exact_RV.logsumexp(1), rtol=0, atol=5e-6
    )
    torch.testing.assert_close(
        reading.picked_RP.double(), exact_RV.gather(1, index_RP), rtol=0, atol=5e-6
    )


@pytest.mark.parametrize("method", EAGER)
def test_logits_of_16_bits_are_summed_in_float32(method: LogsumexpMethod) -> None:
    logits_RV = (torch.randn(9, 40_000, generator=torch.Generator().manual_seed(1)) * 8).bfloat16()
    logits_RV[0, 5:] = float("-inf")
    before = logits_RV.clone()
    found_R = logsumexp(logits_RV, method)
    assert found_R.dtype == torch.float32
    torch.testing.assert_close(found_R.double(), logits_RV.double().logsumexp(1), rtol=0, atol=5e-6)
    assert torch.equal(logits_RV, before)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of measurements, with a tiny head counted as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(head_choice, "_SMALL", 0)
    monkeypatch.setattr(head_choice, "_chosen", {})
    yield tmp_path / "prunesearch"


def test_the_fastest_way_is_measured_once_for_each_machine(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    head = Head(model)
    few = choice_for(head, rows(model, 3))
    assert few.columns is None and not measured.exists(), "few rows are not measured"
    chosen = choice_for(head, rows(model, 256))
    (file,) = measured.iterdir()
    assert json.loads(file.read_text())["method"] in EAGER
    # Another process reads the file.
    monkeypatch.setattr(head_choice, "_chosen", {})
    monkeypatch.setattr(head_choice, "measure_choice", lambda *_: pytest.fail("measured again"))
    assert choice_for(head, rows(model, 3)) == chosen


def test_a_damaged_or_forbidden_file_is_measured_again(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    choice_for(Head(model), rows(model, 256))
    (file,) = measured.iterdir()
    for damaged in ("{", '{"rows": 0, "columns": null, "method": "softmax"}', "[]"):
        file.write_text(damaged)
        monkeypatch.setattr(head_choice, "_chosen", {})
        choice_for(Head(model), rows(model, 256))
        assert json.loads(file.read_text())["rows"] > 0
    # A file where the folder should be.
    monkeypatch.setattr(head_choice, "_chosen", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert choice_for(Head(model), rows(model, 256)).rows > 0


def test_a_way_that_cannot_be_compiled_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_compiler() -> None:
        raise RuntimeError("no compiler")

    model = tiny()
    monkeypatch.setattr("prunesearch.execution.logsumexp._compiled", without_compiler)
    monkeypatch.setattr(head_choice, "EAGER", ("compiled", "exp"))
    assert measure_choice(Head(model), rows(model, 16)).method == "exp"
