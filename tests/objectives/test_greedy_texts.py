from pathlib import Path

import pytest

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives import greedy_texts
from tests.support.models import N_LAYERS


def test_texts_are_generated_once_for_each_candidate(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(greedy_texts, "TOKENS", 8)
    monkeypatch.setattr(greedy_texts, "PROMPTS", ("The capital", "def"))
    dense, lean = LayerSubset.of(N_LAYERS), LayerSubset.of(N_LAYERS, (0, 1, 2))
    with EvaluationCache(tmp_path / "cache") as cache:
        texts = greedy_texts.greedy_texts(loaded, dense, cache)
        assert [prompt for prompt, _ in texts] == ["The capital", "def"]
        assert all(text for _, text in texts)
        assert greedy_texts.greedy_texts(loaded, lean, cache) != texts
        monkeypatch.setattr(greedy_texts, "generate", None)
        assert greedy_texts.greedy_texts(loaded, dense, cache) == texts
