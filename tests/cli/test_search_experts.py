"""Searches over the experts of a model, from the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prunesearch.models.loading import load
from prunesearch.models.width_shape import width_shape_of
from prunesearch.widths.layer_widths import LayerWidths
from tests.support.cli import FAST, run_json


def test_whole_experts_are_searched(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model("mixtral")
    words = ("search", model, "--space", "blocks+widths", "--target", "20%", *FAST)
    first = run_json(*words, "--sampler", "woa", "--trials", 9)
    loaded = load(str(model), device="cpu")
    shape = width_shape_of(loaded.model)
    best = LayerWidths.read(first["best"]["dropped"], shape, "flap-0")
    removed = sum(
        (shape.channels[i] - best.channels[i]) * shape.channel_weights[i]
        + (shape.groups[i] - best.groups[i]) * shape.group_weights[i]
        for i in range(shape.n_layers)
    )
    # Biases of FLAP are added to attentions only.
    assert first["best"]["cost"]["params"] <= loaded.sizes.params() - removed + 6 * 32
    assert removed == pytest.approx(0.2 * loaded.sizes.params(), abs=shape.channel_weights[0] / 2)
    for index in best.kept:
        assert best.channels[index] >= 2 or index in best.mlp
    (order,) = (tmp_path / "storage" / "cache" / "orders").iterdir()
    assert order.suffix == ".safetensors"
