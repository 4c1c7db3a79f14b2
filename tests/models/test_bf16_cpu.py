"""16-bit products through float32: the same operands, one rounding, and nothing else touched."""

import pytest
import torch
from torch import nn

from prunesearch.models import bf16_cpu
from prunesearch.models.bf16_cpu import wide_products

X = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(48, 32).requires_grad_(False).to(dtype)


@pytest.fixture
def narrow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_cpu, "widens", lambda: True)


@pytest.mark.usefixtures("narrow_cpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_summed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    layer, x = linear(dtype), X.to(dtype)
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    with wide_products():
        found = layer(x)
    assert found.dtype == dtype
    half_a_step = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(found.double(), exact, rtol=1.01 * half_a_step, atol=1e-5)


@pytest.mark.usefixtures("narrow_cpu")
def test_float32_and_few_rows_are_left_alone() -> None:
    plain, few = linear()(X), linear(torch.bfloat16)(X[:2].bfloat16())
    with wide_products():
        assert torch.equal(linear()(X), plain)
        assert torch.equal(linear(torch.bfloat16)(X[:2].bfloat16()), few)


@pytest.mark.usefixtures("narrow_cpu")
def test_a_kept_weight_is_widened_again_once_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_cpu, "_KEPT", 1)
    layer, x = linear(torch.bfloat16), X.bfloat16()
    with wide_products():
        before = layer(x)
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        assert torch.equal(layer(x), before * 2)


@pytest.mark.usefixtures("narrow_cpu")
def test_torch_is_as_it_was_afterwards() -> None:
    before = nn.functional.linear

    def fail() -> None:
        with wide_products():
            assert nn.functional.linear is not before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert nn.functional.linear is before
