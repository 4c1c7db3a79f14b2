"""prunesearch finds the layers a large language model does not need and hands back a checkpoint
that just loads.

The public names are imported when first used, so that ``import prunesearch`` loads neither torch
nor optuna.
"""

import importlib
from typing import TYPE_CHECKING, Any

from prunesearch.runtime.version import __version__ as __version__

if TYPE_CHECKING:
    from prunesearch.candidate import Evaluation, LayerSubset
    from prunesearch.config.recipe import Recipe
    from prunesearch.config.run_options import RunOptions
    from prunesearch.errors import PruneSearchError
    from prunesearch.pipeline.run import RunResult, run
    from prunesearch.samplers import PSOSampler, WOASampler
    from prunesearch.space import SearchSpace
    from prunesearch.widths.layer_widths import LayerWidths
    from prunesearch.widths.space import WidthSpace

_HOMES = {
    "Evaluation": "candidate",
    "LayerSubset": "candidate",
    "LayerWidths": "widths.layer_widths",
    "PSOSampler": "samplers",
    "PruneSearchError": "errors",
    "Recipe": "config.recipe",
    "RunOptions": "config.recipe",
    "RunResult": "pipeline.run",
    "SearchSpace": "space",
    "WOASampler": "samplers",
    "WidthSpace": "widths.space",
    "run": "pipeline.run",
}
__all__ = [
    "Evaluation",
    "LayerSubset",
    "LayerWidths",
    "PSOSampler",
    "PruneSearchError",
    "Recipe",
    "RunOptions",
    "RunResult",
    "SearchSpace",
    "WOASampler",
    "WidthSpace",
    "run",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any public object)
    if name not in _HOMES:
        raise AttributeError(f"module 'prunesearch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prunesearch.{_HOMES[name]}"), name)
