"""Per-block config fields, and how they change when blocks are removed.

A field name means the same thing in every model type, so there is one rule per field. A list with
one entry per block is sliced. A list of block indices is renumbered. A count of leading blocks is
counted again over the kept blocks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from transformers import PretrainedConfig

from prunesearch.errors import InputError, ModelError
from prunesearch.models.architectures import ARCHITECTURES, Architecture
from prunesearch.runtime.json_values import Json

Item = TypeVar("Item")

ConfigValue: TypeAlias = Json | Mapping[int, Json]
"""Value of a config field. A few fields have settings by block index."""
Changes: TypeAlias = Mapping[str, ConfigValue]
"""New values by field."""
Kept = Sequence[int]
"""Indices of the kept blocks in the dense model, in ascending order."""
Rule = Callable[[PretrainedConfig, str, Kept], Changes]
"""Takes the config, the field's name and the kept blocks; returns the new values by field."""


def _slice(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Keep the entries of the kept blocks, in a list with one entry per block."""
    values = getattr(config, name)
    if not isinstance(values, list | tuple):
        return {}
    return {name: _entries(values, kept)}


def _entries(values: Sequence[Item], kept: Kept) -> list[Item]:
    """Return the entries of the kept blocks."""
    return [values[i] for i in kept]


def _renumber(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Renumber a list of block indices.

    The list may contain every index, so its length cannot tell it apart from a per-block list.
    """
    numbers = set(getattr(config, name))
    return {name: [new for new, old in enumerate(kept) if old in numbers]}


def _first(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Count how many of the leading blocks, which are of one kind, are kept."""
    limit = getattr(config, name)
    return {name: sum(old < limit for old in kept)}


def _window(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Count the blocks before the first one with sliding attention.

    Some programs read this number instead of ``layer_types``.
    """
    if not getattr(config, "use_sliding_window", False):
        return {}
    return _first(config, name, kept)


def _sparse_step(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Every `step`-th block has experts, except those listed in ``mlp_only_layers``.

    After blocks are removed, only the explicit list can express which blocks have experts.
    """
    step, dense = getattr(config, name), set(getattr(config, "mlp_only_layers", None) or ())
    mlps = []
    for new, old in enumerate(kept):
        if old in dense or (old + 1) % step:
            mlps.append(new)
    return {name: 1, "mlp_only_layers": mlps}


def _gpt_neo(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Slice ``attention_layers``, and write ``attention_types`` ([[kinds, repeats], ...]) to match
    it.
    """
    # The base class of configs does not have the attribute.
    kinds = _entries(getattr(config, "attention_layers"), kept)  # noqa: B009
    return {name: [[[kind], 1] for kind in kinds], "attention_layers": kinds}


def _scale_depth(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Keep the scale of a block's output the same.

    MiniCPM multiplies what a block adds by this value, divided by the square root of the number of
    blocks.
    """
    return {name: getattr(config, name) * math.sqrt(len(kept) / config.num_hidden_layers)}


def _block_types(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Spell out a repeating pattern of kinds, so that the kept blocks keep their kinds."""
    values = getattr(config, name)
    return {name: [values[i % len(values)] for i in kept]}


def _shared_kv(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Count the kept blocks that read the keys and values of another block.

    The last blocks are readers. Each reads the keys and values of its donor: the last block of the
    same kind that comes before all readers.

    Raises:
        ModelError: a donor is dropped and one of its readers is kept.
    """
    shared, types = getattr(config, name) or 0, getattr(config, "layer_types")  # noqa: B009
    first = len(types) - shared
    readers = [i for i in kept if i >= first]
    # Each kind that a kept reader has needs its donor.
    for kind in {types[i] for i in readers}:
        donor = max(i for i in range(first) if types[i] == kind)
        if donor not in kept:
            raise ModelError(
                f"block {donor} cannot be dropped: blocks {first} to {len(types) - 1} read its "
                f"keys and values; "
                f"keep it with `protect` {donor}"
            )
    return {name: len(readers)}


def _moe_span(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Find the range of blocks with experts again, which a first block, a last block and a step
    describe.

    Raises:
        ModelError: the kept blocks with experts are not consecutive.
    """
    settings: Any = config
    first, last = settings.moe_layer_start_index, settings.moe_layer_end_index
    step = settings.moe_layer_interval
    location = []
    for new, old in enumerate(kept):
        if (old + 1) % step == 0 and first <= old <= last:
            location.append(new)
    if location and location[-1] + 1 - location[0] != len(location):
        raise ModelError(
            "the blocks with experts that are left are not in a row, which this config cannot say"
        )
    if location:
        first, last = location[0], location[-1]
    else:
        # No block with experts is kept, so the range starts after the last block.
        first = last = len(kept)
    return {"moe_layer_start_index": first, "moe_layer_end_index": last, "moe_layer_interval": 1}


def _by_number(config: PretrainedConfig, name: str, kept: Kept) -> Changes:
    """Renumber settings that are keyed by block index."""
    # JSON has text keys, so the indices are read as numbers first.
    stored = {int(number): value for number, value in config.to_dict()[name].items()}
    if not stored:
        return {}
    renumbered = {}
    for new, old in enumerate(kept):
        if old in stored:
            renumbered[new] = stored[old]
    return {name: renumbered}


def _fixed(reason: str, harmless: Sequence[object] = (None, False, 0)) -> Rule:
    """Make a rule that refuses to drop blocks.

    Args:
        reason: why no block can be dropped, for the message.
        harmless: values of the field with which blocks can be dropped after all.
    """

    def refuse(config: PretrainedConfig, name: str, _: Kept) -> Changes:
        if getattr(config, name) not in harmless:
            raise ModelError(
                f"this {config.model_type} model cannot lose blocks: {reason} ({name})"
            )
        return {}

    return refuse


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        """layer_types mlp_layer_types indexer_types no_rope_layers layer_rope_theta
        num_attention_heads_per_layer num_key_value_heads_per_layer attention_layers
        activation_sparsity_pattern intermediate_size""".split(),
        _slice,
    ),
    **dict.fromkeys(
        "moe_layers full_attn_idxs attn_layer_indices rope_scaling_layers ple_layer_ids".split(),
        _renumber,
    ),
    **dict.fromkeys("first_k_dense_replace num_dense_layers".split(), _first),
    "max_window_layers": _window,
    "decoder_sparse_step": _sparse_step,
    "scale_depth": _scale_depth,
    "attention_types": _gpt_neo,
    "block_types": _block_types,
    "num_kv_shared_layers": _shared_kv,
    "moe_layer_start_index": _moe_span,
    "per_layer_config": _by_number,
    # Fields of exports that lack some sublayers.
    **dict.fromkeys("dropped_attention dropped_mlp".split(), _renumber),
    "scale_attn_by_inverse_layer_idx": _fixed("its attention is scaled by the block's number"),
}
"""The rule of each per-block field, by the field's name."""

PERIODS: Mapping[str, str] = {
    **dict.fromkeys(
        """sliding_window_pattern _sliding_window_pattern prefix_dense_sliding_window_pattern
        window_pattern full_attention_interval global_attn_every_n_layers""".split(),
        "layer_types",
    ),
    "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers",
    "moe_layer_freq": "mlp_layer_types",
    "index_topk_freq": "indexer_types",
}
"""Fields that hold the period of the kinds of blocks, each with the list that spells the kinds out.

transformers 4.57 and 5 read the list if there is one, so the period itself needs no rule.
"""


def edits(config: PretrainedConfig, count: str, kept: Kept) -> dict[str, ConfigValue]:
    """Return the config fields that change when only some blocks are kept.

    Args:
        config: config of the dense model; it is not changed.
        count: name of the field that holds the number of blocks.
        kept: indices of the kept blocks.

    Returns:
        New values by field, in the order in which they must be set.

    Raises:
        ModelError: no config can describe the kept blocks.
    """
    number = getattr(config, count)
    if len(kept) == number:
        return {}
    # Some model types cannot lose certain blocks, whatever their config says.
    _check_attention(config, kept)
    _check_first(config, kept)
    _check_last(config, kept)
    # Known fields follow their rules.
    stored = config.to_dict()
    changed: dict[str, ConfigValue] = {}
    for name, rule in RULES.items():
        if stored.get(name) is not None:
            _check_value(name, rule, getattr(config, name), number)
            changed |= rule(config, name, kept)
    # A list of a type that nobody has described yet is sliced if it has one entry per block.
    for name, value in stored.items():
        known = name in changed or name in RULES
        if not known and not _is_of_tokens(name) and _one_each(value, number):
            changed[name] = _entries(value, kept)
    return changed | {count: len(kept)}


def _check_value(name: str, rule: Rule, value: object, number: int) -> None:
    """Refuse a value that its rule cannot read. transformers does not check all of these fields.

    Raises:
        ModelError: the value has the wrong type or too few entries.
    """
    fits = True
    if rule is _slice and isinstance(value, list | tuple):
        fits = len(value) >= number
    elif rule is _renumber:
        fits = isinstance(value, list | tuple) and all(isinstance(entry, int) for entry in value)
    elif rule in (_first, _window):
        fits = isinstance(value, int)
    elif rule is _sparse_step:
        fits = isinstance(value, int) and value > 0
    elif rule is _block_types:
        fits = isinstance(value, list | tuple) and len(value) > 0
    if not fits:
        raise ModelError(
            f"the config has {name} = {value!r:.60}, which says nothing of its {number} blocks: "
            f"correct it"
        )


def _check_last(config: PretrainedConfig, kept: Kept) -> None:
    """Refuse a last block of another kind than the type's code always gives it.

    Raises:
        ModelError: the last kept block has another kind.
    """
    kinds = getattr(config, "layer_types", None)
    demanded = ARCHITECTURES.get(config.model_type, Architecture()).last_kind
    if demanded is None or not kinds or kinds[kept[-1]] == demanded:
        return
    last = max(i for i, kind in enumerate(kinds) if kind == demanded)
    raise ModelError(
        f"block {kept[-1]} has {_spoken(kinds[kept[-1]])}, and the last block of a "
        f"{config.model_type} model always has {_spoken(demanded)}: keep the last with `protect` "
        f"{last}"
    )


def _spoken(kind: str) -> str:
    return kind.replace("_", " ")


def _check_first(config: PretrainedConfig, kept: Kept) -> None:
    """Refuse to drop the first block of a type whose code builds a different module there.

    Raises:
        ModelError: the first block is dropped.
    """
    reason = ARCHITECTURES.get(config.model_type, Architecture()).first_block
    if reason is not None and 0 not in kept:
        raise ModelError(
            f"block 0 cannot be dropped, and another cannot take its place: {reason}: protect 0"
        )


def _check_attention(config: PretrainedConfig, kept: Kept) -> None:
    """Refuse to drop every block with attention of a hybrid model.

    The caches of transformers count tokens in a block with attention, so at least one must stay.

    Raises:
        ModelError: no block with attention would be kept.
    """
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    attention = [
        i for i, kind in enumerate(kinds) if "attention" in kind and kind != "linear_attention"
    ]
    if attention and not set(attention) & set(kept):
        raise ModelError(
            f"blocks {', '.join(map(str, attention))} are all that have attention, and without one "
            f"of them "
            f"transformers cannot decode: keep one with `protect` {attention[-1]}"
        )


def period_of(config: PretrainedConfig, number: int) -> int:
    """Return the number of blocks after which the kinds of blocks repeat.

    Dropping whole periods keeps the pattern. This matters to programs that infer a block's kind
    from its index alone.

    Args:
        config: config of the dense model.
        number: number of blocks of the dense model.

    Raises:
        InputError: the kinds do not repeat.
    """
    # The lists with one entry per block tell the kinds of the blocks apart.
    lists = []
    for name, value in config.to_dict().items():
        sliced = name not in RULES or RULES[name] is _slice
        if sliced and _one_each(value, number):
            lists.append(list(value))
    # The shortest period that all lists share.
    for period in range(1, number // 2 + 1):
        if all(values[period:] == values[:-period] for values in lists):
            return period
    raise InputError(
        f"the kinds of this {config.model_type} model's blocks do not repeat: leave out "
        f"`keep_pattern`"
    )


def _is_of_tokens(name: str) -> bool:
    """Return whether a field holds token ids. There may be as many of them as blocks."""
    return name.endswith(("_token_id", "_token_ids"))


def _one_each(value: object, number: int) -> bool:
    """Return whether the value of an unknown field looks like a list with one entry per block.

    Its length must be the number of blocks, and it must not be a list of block indices.
    """
    if not isinstance(value, list | tuple) or len(value) != number:
        return False
    numbers = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
    return not (numbers and list(value) == sorted(set(value)))
