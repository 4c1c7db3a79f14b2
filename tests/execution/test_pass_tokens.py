"""How many tokens a pass should have, and how much memory states may take."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunesearch.execution import device_memory, pass_tokens
from prunesearch.execution.device_memory import STATE_BYTES, state_bytes
from prunesearch.execution.pass_tokens import double, pass_tokens_for
from prunesearch.execution.shared_forward import Forward
from prunesearch.models.loading import LoadedModel


def launches(tokens: int) -> float:
    """Seconds of a pass whose kernels take as long to start as 10,000 tokens to compute."""
    return 1.0 + tokens / 10_000


def test_tokens_are_doubled_while_the_time_per_token_falls() -> None:
    # 128,000 tokens take 0.11 ms each and 256,000 take 0.10 ms: 96 % of it.
    assert double(launches, 1000, 10**9) == 128_000
    assert double(lambda tokens: tokens * 1.0, 1000, 10**9) == 1000


def test_memory_ends_the_doubling() -> None:
    def limited(tokens: int) -> float:
        if tokens > 4000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return launches(tokens)

    assert double(launches, 1000, 3999) == 2000
    assert double(limited, 1000, 10**9) == 4000


def test_a_cpu_merges_nothing_and_measures_nothing(loaded: LoadedModel) -> None:
    def never(tokens: int) -> float:
        raise AssertionError(tokens)

    assert pass_tokens_for(loaded.model, 8, 64, never) == 0
    assert state_bytes(torch.device("cpu"), 10**12) == STATE_BYTES
    assert Forward(loaded.model, loaded.layers, None)._memory == STATE_BYTES


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU as far as these modules ask: 80 GiB free, 8 GiB reserved by torch, 6 of them used."""
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (72 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 8 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 6 * gib)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(pass_tokens, "input_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(pass_tokens, "_chosen", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def counted(calls: list[int]) -> Callable[[int], float]:
    def seconds(tokens: int) -> float:
        calls.append(tokens)
        return launches(tokens)

    return seconds


@pytest.mark.usefixtures("gpu")
def test_a_machine_measures_a_model_once(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    assert pass_tokens_for(loaded.model, 8, 1000, counted(calls)) == 128_000
    assert calls == [1000 * 2**power for power in range(9)]
    # Another process reads the file.
    monkeypatch.setattr(pass_tokens, "_chosen", {})
    assert pass_tokens_for(loaded.model, 8, 1000, counted(calls)) == 128_000
    assert len(calls) == 9
    # A damaged file is measured again.
    (path,) = (tmp_path / "prunesearch").iterdir()
    path.write_text("{")
    monkeypatch.setattr(pass_tokens, "_chosen", {})
    assert pass_tokens_for(loaded.model, 8, 1000, counted(calls)) == 128_000
    assert len(calls) == 18
    assert json.loads(path.read_text()) == 128_000


@pytest.mark.usefixtures("gpu")
def test_states_take_half_of_what_is_free_on_a_gpu() -> None:
    gib = 2**30
    device = torch.device("cuda")
    assert device_memory.free_bytes(device) == 74 * gib
    assert state_bytes(device, 14 * gib) == 30 * gib
    assert state_bytes(device, 100 * gib) == 2**28, "one candidate is always tried"
