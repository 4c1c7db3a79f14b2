"""The fixed candidates of a model: published sets and orders, or rankings that are made here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers_parts.published import (
    DENSE,
    EVOPRESS,
    MODELS,
    RATIOS,
    Perplexities,
    PublishedModel,
)
from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.candidate import LayerSubset
from prunesearch.evaluation.engine import LocalEngine
from prunesearch.models.loading import LoadedModel
from prunesearch.models.model_configs import settings_of
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.objectives.importance import rank_units
from prunesearch.objectives.next_token_loss import loss_objective
from prunesearch.pipeline.session import require

OWN_INFLUENCE, OWN_SINGLE, OWN_LAST = "own: as ShortGPT", "own: as Shortened LLaMA", "own: last k"


@dataclass(frozen=True)
class Fixed:
    """A candidate that nothing searches.

    Attributes:
        method: who chose it.
        ratio: share of the blocks, or of the sublayers of each kind; 0 for the dense model.
        candidate: the candidate.
        published: its published perplexities on WikiText-2 and C4; None without.
        note: why there are none.
    """

    method: str
    ratio: float
    candidate: LayerSubset
    published: Perplexities | None = None
    note: str = ""


def recognised(config: Any, name: str | None) -> str | None:  # noqa: ANN401 (of transformers)
    """Return the name of the published model that a config describes; None for another model.

    Args:
        config: config of the model.
        name: the name that the user says; it must fit the number of blocks.

    Raises:
        SystemExit: the name is not known, or the model has another number of blocks.
    """
    settings = settings_of(config)
    if name is not None:
        if name not in MODELS:
            raise SystemExit(f"--as {name}: there are {', '.join(MODELS)}")
        if settings.num_hidden_layers != MODELS[name].blocks:
            raise SystemExit(
                f"--as {name}: it has {MODELS[name].blocks} blocks, and the model "
                f"{settings.num_hidden_layers}"
            )
        return name
    for known, entry in MODELS.items():
        expected = (
            entry.model_type, entry.hidden, entry.blocks, entry.vocabulary, entry.positions
        )  # fmt: skip
        found = (
            settings.model_type, settings.hidden_size, settings.num_hidden_layers,
            settings.vocab_size, settings.max_position_embeddings,
        )  # fmt: skip
        if found == expected:
            return known
    return None


def published_candidates(entry: PublishedModel) -> list[Fixed]:
    """Return the dense model, and all published sets of a model."""
    blocks = entry.blocks
    found = [Fixed(DENSE, 0.0, LayerSubset.of(blocks), entry.dense)]
    for ratio in RATIOS:
        if ratio in entry.sets:
            candidate = LayerSubset.parse(entry.sets[ratio].replace(" ", ","), blocks)
            published = entry.published(EVOPRESS, ratio)
            note = entry.unclear.get(ratio, "")
            found.append(Fixed(EVOPRESS, ratio, candidate, published, note))
        for method, order in entry.orders.items():
            names = order.split()[: round(ratio * blocks)]
            candidate = LayerSubset.parse(",".join(names), blocks)
            found.append(Fixed(method, ratio, candidate, entry.published(method, ratio)))
    return found


def own_candidates(
    loaded: LoadedModel, cache: EvaluationCache, text: str, tokens: int
) -> list[Fixed]:
    """Return candidates of a model that nothing is published of.

    The published orders are those of other weights, so they are not scaled to it. The methods are
    run instead, on text of ours: block influence, and the loss without each block.

    Args:
        loaded: the model.
        cache: cache of the losses.
        text: calibration text.
        tokens: number of its tokens that are read.
    """
    n_layers = loaded.n_layers
    windows_BL = token_windows(text, loaded.tokenizer, tokens, min(256, tokens))
    influence = rank_units(loaded.model, loaded.layers, windows_BL, "influence", "blocks")
    engine = LocalEngine(loaded, loss_objective(loaded, windows_BL), cache)
    singles = [LayerSubset.parse(str(block), n_layers) for block in range(n_layers)]
    losses = []
    for evaluation in engine.evaluate_now(singles):
        losses.append(require(evaluation).metrics["cross_entropy"])
    orders: Mapping[str, Sequence[int]] = {
        OWN_INFLUENCE: sorted(range(n_layers), key=influence.__getitem__),
        OWN_SINGLE: sorted(range(n_layers), key=losses.__getitem__),
        OWN_LAST: list(reversed(range(n_layers))),
    }
    found = [Fixed(DENSE, 0.0, LayerSubset.of(n_layers))]
    for ratio in RATIOS:
        for method, order in orders.items():
            names = map(str, order[: max(1, round(ratio * n_layers))])
            candidate = LayerSubset.parse(",".join(names), n_layers)
            found.append(Fixed(method, ratio, candidate))
    return found
