"""The registry of objectives states facts that hold."""

import subprocess
import sys

import pytest
import torch

from prunesearch.candidate import LayerSubset
from prunesearch.config.objective import ObjectiveSection
from prunesearch.errors import InputError, UnknownNameError
from prunesearch.models.loading import LoadedModel
from prunesearch.objectives.base import Objective
from prunesearch.objectives.reference_cache import ReferenceCache
from prunesearch.objectives.registry import (
    REGISTRY,
    ObjectiveEntry,
    ObjectiveInputs,
    metric_labels,
    names_with,
    relative_metrics,
    task_entry,
    zero_metrics,
)
from prunesearch.objectives.weighted_sum import build_mix
from tests.support.models import N_LAYERS, results_of

WINDOWS = torch.arange(4 * 32).view(4, 32) % 264
ON_TEXT = [entry for entry in REGISTRY.entries() if entry.needs_calibration]


def built(loaded: LoadedModel, entry: ObjectiveEntry) -> Objective:
    return entry.build(ObjectiveInputs(loaded, lambda: WINDOWS, ReferenceCache(None)))


def test_the_objectives_are_these() -> None:
    known = ["kl", "perplexity", "hidden-cosine", "task"]
    assert [name for name in REGISTRY.names() if name in known] == known
    assert task_entry().name == "task"
    assert "task" not in names_with("in_mixes")
    assert relative_metrics() == ["perplexity"]
    assert set(zero_metrics()) >= {"kl", "hidden_cosine"}
    assert metric_labels()["kl"] == "KL to dense (nats/token)"
    with pytest.raises(UnknownNameError, match="did you mean 'perplexity'"):
        REGISTRY.get("perplexty")


@pytest.mark.parametrize("entry", ON_TEXT, ids=lambda entry: entry.name)
def test_an_objective_does_what_its_entry_says(loaded: LoadedModel, entry: ObjectiveEntry) -> None:
    objective = built(loaded, entry)
    assert entry.label
    assert objective.metric == entry.metric
    dense, pruned = results_of(
        loaded, objective, LayerSubset.of(N_LAYERS), LayerSubset.of(N_LAYERS, [1, 2])
    )
    metrics = objective.metrics(dense).values
    assert (metrics[objective.metric] == 0) == entry.zero_if_dense
    assert entry.relative_metric is None or entry.relative_metric in metrics
    assert (len(objective.losses(pruned)) == len(WINDOWS)) == entry.races


def test_objectives_of_one_part_share_their_keys_and_others_do_not(loaded: LoadedModel) -> None:
    kinds: dict[str, set[str]] = {}
    for entry in ON_TEXT:
        kind = str(built(loaded, entry).chunks[0].identity["kind"])
        kinds.setdefault(kind, set()).add(entry.part or entry.name)
    assert all(len(parts) == 1 for parts in kinds.values())
    assert len(kinds) == len({entry.part or entry.name for entry in ON_TEXT})


def test_a_mix_computes_a_part_once(loaded: LoadedModel) -> None:
    inputs = ObjectiveInputs(loaded, lambda: WINDOWS, ReferenceCache(None))
    both = build_mix({"kl": 1.0, "perplexity": 0.5}, inputs)
    alone = build_mix({"kl": 1.0}, inputs)
    assert len(both.chunks) == len(alone.chunks)
    more = build_mix({"kl": 1.0, "hidden-cosine": 2.0}, inputs)
    assert len(more.chunks) == 2 * len(alone.chunks)


def test_a_recipe_is_checked_by_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An objective that is registered from anywhere is known to the recipes."""
    slow = ObjectiveEntry("slow", "cannot race", REGISTRY.get("kl").build, races=False)
    monkeypatch.setitem(REGISTRY._entries, "slow", slow)
    assert ObjectiveSection(name="slow").calibrated == ("slow",)
    assert ObjectiveSection(name="slow=1,hellaswag=2").tasks == ("hellaswag",)
    with pytest.raises(InputError, match=r"race.*goes with"):
        ObjectiveSection(name="slow", race=True)
    with pytest.raises(InputError, match=r"kl_top.*goes with .*kl"):
        ObjectiveSection(name="slow", kl_top=4)
    assert ObjectiveSection(name="slow=1,kl=1", kl_top=4).kl_top == 4


def test_names_are_read_without_torch() -> None:
    code = (
        "import sys; from prunesearch.objectives.registry import REGISTRY; "
        "print(len(REGISTRY.names())); "
        "assert not {'numpy', 'torch', 'transformers', 'lm_eval'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
