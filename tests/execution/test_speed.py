"""Latencies of candidates side by side, and greedy generation."""

import pytest
import torch

from prunesearch.candidate import LayerSubset
from prunesearch.execution import greedy, speed
from prunesearch.execution.speed import measure_speeds
from prunesearch.models.loading import LoadedModel
from prunesearch.models.surgery import pruned
from tests.support.models import N_LAYERS


def test_each_candidate_is_measured_in_every_turn_but_the_first(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def now(_: object) -> float:
        # A pass takes a millisecond for each block that is there.
        nonlocal clock
        clock += len(loaded.model.model.layers) / 1000
        return clock

    monkeypatch.setattr(speed, "now", now)
    monkeypatch.setattr("prunesearch.execution.latency.now", now)
    dense, lean = LayerSubset.of(N_LAYERS), LayerSubset.of(N_LAYERS, (1, 4))
    speeds = measure_speeds(loaded.model, [dense, lean], most=3)
    assert list(speeds) == [dense, lean]
    for candidate, blocks in ((dense, N_LAYERS), (lean, N_LAYERS - 2)):
        assert speeds[candidate].prefill_ms == pytest.approx(blocks)
        assert speeds[candidate].decode_ms == pytest.approx(blocks)
        assert speeds[candidate].runs == 3
        assert speeds[candidate].prefill_error_ms == pytest.approx(0.0, abs=1e-9)


def test_generated_tokens_are_the_likeliest_and_own_settings_are_ignored(
    loaded: LoadedModel,
) -> None:
    loaded.model.generation_config.repetition_penalty = 5.0
    ids_1L = torch.arange(1, 9)[None]
    with pruned(loaded.model, LayerSubset.of(N_LAYERS, (2,))) as model, torch.inference_mode():
        written = greedy.generate(model, ids_1L, 5)
        expected: list[int] = []
        for _ in range(5):
            seen_1L = torch.cat([ids_1L, torch.tensor([expected], dtype=torch.int64)], dim=1)
            expected.append(int(model(input_ids=seen_1L).logits[0, -1].argmax()))
        assert written == expected
        # A text ends with the token that ends texts.
        assert greedy.generate(model, ids_1L, 5, end=expected[0]) == expected[:1]
