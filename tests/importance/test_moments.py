"""Moments of inputs against plain formulas."""

import pytest
import torch

from prunesearch.importance.moments import InputMoments


def plain(rows_TC: torch.Tensor) -> InputMoments:
    mean_C = rows_TC.double().mean(0)
    return InputMoments(len(rows_TC), mean_C, (rows_TC.double() - mean_C).square().sum(0))


@pytest.mark.parametrize("sizes", [(7,), (1, 6), (3, 3, 1), (1,) * 7])
def test_moments_do_not_depend_on_the_batches(sizes: tuple[int, ...]) -> None:
    rows_TC = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)) * 3 + 10
    batches = rows_TC.split(sizes)
    found = InputMoments.of(batches[0])
    for batch in batches[1:]:
        found = found.merged(InputMoments.of(batch))
    assert found.count == 7
    torch.testing.assert_close(found.mean_C, rows_TC.double().mean(0))
    torch.testing.assert_close(found.variance_C, rows_TC.double().var(0))
    torch.testing.assert_close(found.mean_square_C, rows_TC.double().square().mean(0))


def test_a_large_mean_does_not_hide_a_small_variance() -> None:
    rows_TC = 1e8 + torch.arange(6, dtype=torch.float64)[:, None]
    found = InputMoments.of(rows_TC[:2]).merged(InputMoments.of(rows_TC[2:]))
    assert float(found.variance_C) == pytest.approx(3.5)


def test_constant_columns_and_single_tokens_have_no_variance() -> None:
    constant = InputMoments.of(torch.full((4, 2), 0.1))
    assert constant.merged(constant).variance_C.tolist() == [0.0, 0.0]
    assert InputMoments.of(torch.tensor([[1.0, 2.0]])).variance_C.tolist() == [0.0, 0.0]


def test_dimensions_before_the_last_are_tokens() -> None:
    input_BLC = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
    found, expected = InputMoments.of(input_BLC), plain(input_BLC.reshape(6, 4))
    assert found.count == expected.count
    torch.testing.assert_close(found.deviation_C, expected.deviation_C)
