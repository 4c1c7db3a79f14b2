"""The candidate that a user names: layers to drop, or widths of layers."""

from dataclasses import dataclass

from prunesearch.candidate import LayerSubset
from prunesearch.config.data import DataSection
from prunesearch.config.run_options import RunOptions
from prunesearch.models.loading import LoadedModel
from prunesearch.models.width_shape import width_shape_of
from prunesearch.pipeline.width_search import put_in_order
from prunesearch.widths.layer_widths import parse_candidate


@dataclass(frozen=True)
class NamedOrder:
    """What orders the channels of named widths.

    Attributes:
        data: calibration text that the importance scores are measured on.
        criterion: name of the importance score.
        tokens: most tokens that channels are ordered on.
    """

    data: DataSection
    criterion: str
    tokens: int


def candidate_named(
    text: str, order: NamedOrder | None, loaded: LoadedModel, options: RunOptions
) -> LayerSubset:
    """Return the candidate that a text names. For widths, the channels are put in order.

    Args:
        text: layers to drop, as ``3,7a``, or widths, as ``3:1024/2,7``.
        order: what orders the channels; None: the text names layers.
        loaded: the dense model.
        options: location of the cache, beside which orders are kept.

    Raises:
        InputError: the text cannot be read, or it does not fit the model.
        ModelError: the layers of the model cannot be narrowed.
    """
    if order is None:
        return LayerSubset.parse(text, loaded.n_layers)
    # Read the text before the channels are ordered, which takes long.
    shape = width_shape_of(loaded.model)
    parse_candidate(text, loaded.n_layers, shape)
    measured = put_in_order(order.criterion, order.tokens, order.data, loaded, options)
    assert measured is not None
    found = measured.order
    return parse_candidate(text, loaded.n_layers, shape, found.digest, found.biases)
