"""What a search over widths needs of the model: the channel order, its space, and where it starts.

The order is computed once by the process that opens the session. It is kept beside the cache, and
workers get it by value, so that all of them narrow layers to the same channels.
"""

from collections.abc import Sequence
from pathlib import Path

from optuna.study import Study

from prunesearch import events
from prunesearch.cache.location import CacheLocation
from prunesearch.config.data import DataSection
from prunesearch.config.recipe import Recipe
from prunesearch.config.run_options import RunOptions
from prunesearch.config.search import ORDER_TOKENS, SearchSection
from prunesearch.errors import InputError, StudyError
from prunesearch.importance.allocations.registry import fixed_allocations
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.importance.orders import MeasuredOrder, channel_order, kept_order
from prunesearch.models.bf16_cpu import wide_products
from prunesearch.models.loading import LoadedModel
from prunesearch.models.reordering import order_of, reorder
from prunesearch.models.structure import most_positions
from prunesearch.models.width_shape import width_shape_of
from prunesearch.objectives.calibration_data import token_windows
from prunesearch.space import parse_protect
from prunesearch.studies import study_recipe
from prunesearch.widths.layer_widths import LayerWidths
from prunesearch.widths.space import WidthSpace


def check_resident(recipe: Recipe, options: RunOptions) -> None:
    """Refuse run options with which layers cannot be narrowed, before the model is loaded.

    Raises:
        InputError: weights would not all be in the memory of one device.
    """
    if not recipe.search.narrows:
        return
    space = recipe.search.space
    if options.offload != "none":
        raise InputError(
            f"`space` {space} needs all weights in memory, because layers are narrowed there: "
            f"leave out `offload` {options.offload}, or search blocks with `drop`"
        )
    # Views of weights need the whole weight on one device.
    split = options.device_map is not None or (options.gpus_per_worker or 0) > 1
    if split:
        raise InputError(
            f"`space` {space} needs all weights on one device: leave out `device_map` and give at "
            "most one GPU to a worker, or search blocks with `drop`"
        )


def put_in_order(
    criterion: str | None,
    tokens: int | None,
    data: DataSection,
    loaded: LoadedModel,
    options: RunOptions,
) -> MeasuredOrder | None:
    """Put the channels of a model in the order that a search over widths asks for.

    Args:
        criterion: name of the importance score; None for a search that drops layers.
        tokens: most tokens of the text that channels are ordered on. A shorter text is used whole,
            if it has the tokens that candidates are scored on.
        data: section of the recipe with the calibration text.
        loaded: the dense model.
        options: location of the cache, beside which orders are kept.

    Returns:
        The order and the statistics of the layers; None if the search drops layers only.

    Raises:
        ModelError: the layers of the model cannot be narrowed.
        DataError: the calibration text is too short.
    """
    if criterion is None:
        return None
    # Refuse a model that cannot be narrowed before the text is read.
    width_shape_of(loaded.model)
    events.tell(events.StageProgress(f"ordering the channels by {criterion}"))
    # Score the channels on the calibration text, in windows that the model can take.
    window = min(data.window, most_positions(loaded.model) or data.window)
    most = max(data.tokens, tokens or ORDER_TOKENS)
    windows = token_windows(data.calibration, loaded.tokenizer, most, window, data.tokens)
    with wide_products():
        measured = channel_order(loaded, windows, criterion, _folder(options))
    reorder(loaded.model, measured.order)
    return measured


def put_in_order_of(
    study: Study, recipe: Recipe, loaded: LoadedModel, options: RunOptions
) -> MeasuredOrder | None:
    """Put the channels of a model in the order that a study over widths was searched in.

    The order is read from the cache's folder. Without it there, it is computed again.

    Args:
        study: the study.
        recipe: its recipe, with the present location of the calibration text.
        loaded: the model that was searched.
        options: location of the cache.

    Returns:
        The order; None if the study drops layers only.

    Raises:
        StudyError: the calibration text or the arithmetic here gives another order.
    """
    if not recipe.search.narrows:
        return None
    # Read the order that the study was searched in.
    digest = str(study_recipe.identity_of(study)[study_recipe.CHANNEL_ORDER])
    measured = kept_order(_folder(options), digest)
    if measured is not None:
        reorder(loaded.model, measured.order)
        return measured
    # It is not there: compute it, and hold it against the study.
    measured = put_in_order(
        recipe.search.criterion, recipe.search.order_tokens, recipe.data, loaded, options
    )
    assert measured is not None
    if measured.order.digest != digest:
        raise StudyError(
            f"study {study.study_name!r} was searched in the channel order {digest}, and the "
            f"calibration text gives {measured.order.digest} here: give the `cache` that it was "
            "searched with"
        )
    return measured


def _folder(options: RunOptions) -> Path:
    """Return the folder of channel orders."""
    return CacheLocation.parse(options.cache).folder / "orders"


def width_space_of(section: SearchSection, loaded: LoadedModel) -> WidthSpace:
    """Return the space of widths of a recipe on a model whose channels are in order.

    Raises:
        InputError: the model does not allow what the recipe asks for.
    """
    order = order_of(loaded.model)
    if order is None or order.criterion != section.criterion:
        found = "their own order" if order is None else f"the order of {order.criterion}"
        raise InputError(
            f"the channels of the model are in {found}, and a search asks for `criterion` "
            f"{section.criterion}: search one criterion at a time"
        )
    return _parsed(section, loaded, order.digest, order.biases)


def check_widths(section: SearchSection, loaded: LoadedModel) -> None:
    """Refuse widths that a model does not have, before its channels are ordered.

    Raises:
        ModelError: the layers of the model cannot be narrowed.
        InputError: the model does not allow what the recipe asks for.
    """
    if section.narrows:
        _parsed(section, loaded, "", biases=False)


def _parsed(section: SearchSection, loaded: LoadedModel, order: str, biases: bool) -> WidthSpace:
    """Return the space of widths of a recipe in a channel order."""
    assert section.target is not None
    assert section.align is not None
    return WidthSpace.parse(
        width_shape_of(loaded.model),
        section.target,
        loaded.sizes.params(),
        loaded.sizes.bytes_per_param,
        align=section.align,
        protected=parse_protect(section.protect, loaded.n_layers),
        blocks=section.space == "blocks+widths",
        order=order,
        biases=biases,
    )


def first_widths(space: WidthSpace, layers: Sequence[LayerStatistics]) -> list[LayerWidths]:
    """Return the fixed allocations, which a search over widths begins with."""
    return [allocation.candidate for allocation in fixed_allocations(space, layers)]


def harm_of_units(space: WidthSpace, layers: Sequence[LayerStatistics]) -> list[float]:
    """Return the estimated harm of each unit of a space: of the channels or groups of one level.

    It is their share of the scores of their sublayer, times the influence of the layer.
    """
    harm = []
    for gene, limit in zip(space.genes, space.limit_G.tolist(), strict=True):
        layer = layers[gene.block]
        # Levels remove units from the end of the order, the least important ones first.
        scores = layer.group_scores if gene.attention else layer.channel_scores
        total = float(scores.sum()) or 1.0
        for level in range(limit):
            end = gene.full - level * gene.step
            share = float(scores[end - gene.step : end].sum()) / total
            harm.append(max(share * layer.influence, 1e-12))
    return harm
