"""Attention by products of matrices: close to float64, and only for the forms that it knows."""

from typing import Any

import pytest
import torch
from torch import nn

from prunesearch.execution import cpu_attention
from prunesearch.execution.cpu_attention import fast_attention


@pytest.fixture(autouse=True)
def always_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use our attention without a measurement."""
    monkeypatch.setattr(cpu_attention, "_is_faster", lambda kind: True)
    monkeypatch.setattr(cpu_attention, "_faster", {})


def tensors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def attend(*given: Any, **settings: Any) -> torch.Tensor:  # noqa: ANN401
    return nn.functional.scaled_dot_product_attention(*given, **settings)


def away(
    found: torch.Tensor,
    *given: torch.Tensor,
    **settings: Any,  # noqa: ANN401
) -> tuple[float, float]:
    """Mean distance from float64, of a result and of torch's own function."""
    enabled = {"enable_gqa": given[0].shape[1] != given[1].shape[1], **settings}
    exact = attend(*(tensor.double() for tensor in given), **enabled)
    own = attend(*given, **enabled)
    return float((found - exact).abs().mean()), float((own - exact).abs().mean())


@pytest.mark.parametrize("scores", [2**20, 2**12])
@pytest.mark.parametrize(
    ("sequences", "heads", "groups", "length"), [(3, 9, 3, 150), (1, 4, 4, 64), (2, 8, 1, 65)]
)
def test_causal_attention_is_as_close_to_float64_as_torchs(
    sequences: int,
    heads: int,
    groups: int,
    length: int,
    scores: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_attention, "_SCORES", scores)  # few: blocks of single sequences
    query = tensors(sequences, length, heads, 16).transpose(1, 2)
    key, value = (tensors(sequences, length, groups, size).transpose(1, 2) for size in (16, 24))
    with fast_attention():
        found = attend(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    ours, torchs = away(found, query, key, value, is_causal=True, scale=0.3)
    assert ours < 3 * torchs


@pytest.mark.parametrize("scores", [2**20, 2**10])
def test_masked_attention_is_as_close_to_float64_as_torchs(
    scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "_SCORES", scores)
    query, key, value = tensors(5, 6, 7, 16), tensors(5, 2, 11, 16), tensors(5, 2, 11, 16)
    may = torch.rand(5, 1, 7, 11, generator=torch.Generator().manual_seed(1)) < 0.7
    may[..., 0] = True
    mask = torch.zeros(may.shape).masked_fill_(~may, float("-inf")).bfloat16()
    with fast_attention():
        found = attend(query, key, value, attn_mask=mask, enable_gqa=True)
    repeated = [heads.repeat_interleave(3, 1) for heads in (key, value)]
    exact = attend(query.double(), *(heads.double() for heads in repeated), attn_mask=mask.double())
    own = attend(query, *repeated, attn_mask=mask)
    assert (found - exact).abs().mean() < 3 * (own - exact).abs().mean()


@pytest.mark.parametrize(
    "settings",
    [
        {"is_causal": False},
        {"attn_mask": torch.ones(1, 1, 9, 9, dtype=torch.bool)},
        {"attn_mask": torch.zeros(9, 9, dtype=torch.bfloat16)},
    ],
)
def test_other_forms_are_torchs_to_the_bit(settings: dict[str, object]) -> None:
    given = tensors(1, 2, 9, 8), tensors(1, 2, 9, 8), tensors(1, 2, 9, 8)
    own = attend(*given, **settings)
    with fast_attention():
        found = attend(*given, **settings)
    assert torch.equal(found, own)


def test_float32_is_torchs_to_the_bit() -> None:
    given = [tensors(1, 2, 9, 8).float() for _ in range(3)]
    own = attend(*given, is_causal=True)
    with fast_attention():
        found = attend(*given, is_causal=True)
    assert torch.equal(found, own)


def test_a_choice_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []

    def slower(kind: object) -> bool:
        measured.append(kind)
        return False

    monkeypatch.setattr(cpu_attention, "_is_faster", slower)
    given = [tensors(1, 2, 9, 8) for _ in range(3)]
    own = attend(*given, is_causal=True)
    with fast_attention():
        for _ in range(2):
            found = attend(*given, is_causal=True)
    assert len(measured) == 1
    assert torch.equal(found, own), "the slower one is not used"
