"""Every way to score a candidate that narrows layers gives what a really narrow copy gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import StaticCache

from prunesearch.candidate import LayerSubset
from prunesearch.execution.latency import compare_latency, measure_latency_model
from prunesearch.models import reordering
from prunesearch.models.loading import LoadedModel
from prunesearch.models.surgery import pruned
from prunesearch.objectives.base import Objective
from prunesearch.objectives.calibration import CalibrationObjective
from prunesearch.objectives.identity import numerics_of
from prunesearch.objectives.metrics.perplexity import Perplexity
from prunesearch.objectives.task import TaskObjective
from prunesearch.widths.layer_widths import LayerWidths
from tests.support.models import N_LAYERS, results_of
from tests.support.widths import narrow_copy, order_for

IDS = torch.arange(1, 40)[None]


@pytest.fixture
def narrow(loaded: LoadedModel) -> "Narrow":
    """A model in an order, a candidate, and a copy of the model that is narrow for good."""
    candidate, small = narrow_copy(loaded)
    return loaded, candidate, small


Narrow = tuple[LoadedModel, LayerWidths, LoadedModel]


def both(narrow: Narrow, build: Callable[[LoadedModel], Objective]) -> tuple[list[Any], list[Any]]:
    """Rows of the candidate, and of the narrow copy that is scored as a dense model."""
    loaded, candidate, small = narrow
    [found] = results_of(loaded, build(loaded), candidate)
    [wanted] = results_of(small, build(small), LayerSubset.of(N_LAYERS))
    return found, wanted


def test_losses_on_text(narrow: Narrow) -> None:
    loaded, _, small = narrow
    windows = torch.randint(1, 257, (6, 32), generator=torch.Generator().manual_seed(0))

    def build(each: LoadedModel) -> Objective:
        return CalibrationObjective(each, windows, Perplexity(64))

    found, wanted = both(narrow, build)
    metrics = build(loaded).metrics(found).values
    same = build(small).metrics(wanted).values
    assert metrics["cross_entropy"] == pytest.approx(same["cross_entropy"], rel=1e-6)
    # The KL of the copy is to itself, that of the candidate to the dense model.
    assert same["kl"] == pytest.approx(0, abs=1e-6) and metrics["kl"] > 0.01


def test_log_likelihoods_of_a_task(narrow: Narrow, hellaswag_like: Path) -> None:
    found, wanted = both(
        narrow, lambda each: TaskObjective(each, "hellaswag", data=str(hellaswag_like), limit=4)
    )
    for rows, expected in zip(found, wanted, strict=True):
        assert [row[0] for row in rows] == pytest.approx([row[0] for row in expected], abs=1e-4)
        assert [row[1] for row in rows] == [row[1] for row in expected]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.inference_mode()
def test_generation_with_a_cache(narrow: Narrow, cache: str) -> None:
    loaded, candidate, small = narrow
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    if cache != "dynamic":
        settings["cache_implementation"] = cache
    wanted = small.model.generate(IDS, **settings)  # type: ignore[operator]
    with pruned(loaded.model, candidate) as model:
        found = model.generate(IDS, **settings)  # type: ignore[operator]
    assert torch.equal(found, wanted)
    # Decoding without a cache gives the same tokens.
    with pruned(loaded.model, candidate) as model:
        again = model.generate(
            IDS, **{**settings, "cache_implementation": None, "use_cache": False}
        )  # type: ignore[operator]
    assert torch.equal(again, found)


@torch.inference_mode()
def test_a_static_cache_that_was_made_before_is_filled(narrow: Narrow) -> None:
    """Its layers take the number of heads from the first keys that they get."""
    loaded, candidate, _ = narrow
    with pruned(loaded.model, candidate) as model:
        wanted = model(IDS, use_cache=False).logits
        cache = StaticCache(config=model.config, max_cache_len=64)
        model(IDS[:, :30], past_key_values=cache)
        found = model(IDS[:, 30:], past_key_values=cache).logits
    torch.testing.assert_close(found, wanted[:, 30:], rtol=0, atol=1e-4)


def test_sizes_are_those_of_the_copy(narrow: Narrow) -> None:
    loaded, candidate, small = narrow
    assert loaded.sizes.params(candidate) == small.sizes.params()
    assert loaded.sizes.bytes(candidate) == small.sizes.bytes()


def test_latency_is_measured_and_predicted(narrow: Narrow) -> None:
    loaded, candidate, _ = narrow
    dense, lean = compare_latency(loaded.model, candidate, repeats=3)
    assert dense > 0 and lean > 0
    latencies = measure_latency_model(loaded.model, loaded.layers, repeats=3)
    assert 0 < latencies.predict(candidate) < latencies.predict()


def test_keys_name_the_order(loaded: LoadedModel) -> None:
    """The dense model in an order sums in that order, so its results have keys of their own."""
    own = numerics_of(loaded.model)
    order = order_for(loaded.model, biases=False)
    reordering.reorder(loaded.model, order)
    assert numerics_of(loaded.model) == {**own, "channels": order.digest}
    with reordering.in_own_order(loaded.model):
        assert numerics_of(loaded.model) == own
