"""Checks of the published tables themselves: a slip of the pen would score another model."""

from transformers import AutoConfig

from benchmarks.peers_parts.candidates import recognised
from benchmarks.peers_parts.published import MODELS, RATIOS
from benchmarks.support.record import Record
from prunesearch.candidate import LayerSubset


def check(record: Record) -> None:
    """Add the number of sets, orders and models that cannot be right."""
    record.add("sets_with_unequal_kinds", _unequal_sets(), "<= 0")
    record.add("orders_that_are_not_half_of_the_blocks", _wrong_orders(), "<= 0")
    record.add("models_that_are_not_recognised", _unknown_models(), "<= 0")


def _unequal_sets() -> float:
    """Count sets that do not remove k attention and k MLP sublayers."""
    wrong = 0
    for entry in MODELS.values():
        for ratio, text in entry.sets.items():
            candidate = LayerSubset.parse(text.replace(" ", ","), entry.blocks)
            words = candidate.text.split(",")
            attention = sum(not word.endswith("m") for word in words)
            mlp = sum(not word.endswith("a") for word in words)
            wrong += not attention == mlp == round(ratio * entry.blocks)
    return float(wrong)


def _wrong_orders() -> float:
    """Count orders that repeat a block, or that end before or after the largest ratio."""
    wrong = 0
    for entry in MODELS.values():
        for order in entry.orders.values():
            blocks = [int(word) for word in order.split()]
            right = len(blocks) == len(set(blocks)) == round(RATIOS[-1] * entry.blocks)
            wrong += not (right and set(blocks) < set(range(entry.blocks)))
    return float(wrong)


def _unknown_models() -> float:
    """Count models that are not recognised by a config with their numbers."""
    wrong = 0
    for name, entry in MODELS.items():
        config = AutoConfig.for_model(
            entry.model_type,
            hidden_size=entry.hidden,
            num_hidden_layers=entry.blocks,
            vocab_size=entry.vocabulary,
            max_position_embeddings=entry.positions,
        )
        wrong += recognised(config, None) != name
    return float(wrong)
