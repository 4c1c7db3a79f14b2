"""What a config says of single blocks, and how it reads when blocks are gone.

The same names mean the same in all model types, so the rules are by field. A list with an entry for each block is
sliced, a list of block numbers is renumbered, a number of first blocks is counted anew.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from prunesearch.errors import InputError, ModelError

Kept = Sequence[int]
"""The blocks that stay, by their old numbers, in order."""
Rule = Callable[[PretrainedConfig, str, Kept], Mapping[str, Any]]


def _slice(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """One entry a block."""
    values = getattr(config, name)
    return {name: [values[i] for i in kept]} if isinstance(values, list | tuple) else {}


def _renumber(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """A list of block numbers; of all blocks' they may be as many as blocks, so length tells nothing."""
    numbers = set(getattr(config, name))
    return {name: [new for new, old in enumerate(kept) if old in numbers]}


def _first(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """How many of the first blocks are of one kind."""
    return {name: sum(old < getattr(config, name) for old in kept)}


def _window(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """From which block on attention is sliding, where other programs read it instead of ``layer_types``."""
    return _first(config, name, kept) if getattr(config, "use_sliding_window", False) else {}


def _sparse_step(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """Every so manieth block has experts, but for a list; behind a removal only the list can say so."""
    step, dense = getattr(config, name), set(getattr(config, "mlp_only_layers", None) or ())
    mlps = [new for new, old in enumerate(kept) if old in dense or (old + 1) % step]
    return {name: 1, "mlp_only_layers": mlps}


def _gpt_neo(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """``attention_layers`` is spelled out from ``attention_types``: [[kinds, repeats], ...]."""
    kinds = [getattr(config, "attention_layers")[i] for i in kept]  # noqa: B009 (no attribute of the base class)
    return {name: [[[kind], 1] for kind in kinds], "attention_layers": kinds}


def _scale_depth(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """MiniCPM scales what a block adds by this, divided by the square root of the number of blocks."""
    return {name: getattr(config, name) * math.sqrt(len(kept) / config.num_hidden_layers)}


def _block_types(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """Kinds that repeat; spelled out, they repeat once."""
    values = getattr(config, name)
    return {name: [values[i % len(values)] for i in kept]}


def _shared_kv(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """The last blocks read keys and values of the last blocks of each kind before them, their donors.

    Raises:
        ModelError: a donor is dropped and a reader of it is not.
    """
    shared, types = getattr(config, name) or 0, getattr(config, "layer_types")  # noqa: B009
    first = len(types) - shared
    readers = [i for i in kept if i >= first]
    for kind in {types[i] for i in readers}:
        donor = max(i for i in range(first) if types[i] == kind)
        if donor not in kept:
            raise ModelError(
                f"block {donor} cannot be dropped: blocks {first} to {len(types) - 1} read its keys and values; "
                f"keep it with --protect {donor}"
            )
    return {name: len(readers)}


def _moe_span(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """Blocks from a first to a last, at an interval, have experts.

    Raises:
        ModelError: those that are left are not in a row.
    """
    first, step, last = (getattr(config, f"moe_layer_{part}") for part in ("start_index", "interval", "end_index"))
    places = [new for new, old in enumerate(kept) if (old + 1) % step == 0 and first <= old <= last]
    if places and places[-1] + 1 - places[0] != len(places):
        raise ModelError("the blocks with experts that are left are not in a row, which this config cannot say")
    first, last = (places[0], places[-1]) if places else (len(kept), len(kept))
    return {"moe_layer_start_index": first, "moe_layer_end_index": last, "moe_layer_interval": 1}


def _by_number(config: PretrainedConfig, name: str, kept: Kept) -> Mapping[str, Any]:
    """Settings keyed by block number."""
    stored = {int(number): value for number, value in config.to_dict()[name].items()}
    return {name: {new: stored[old] for new, old in enumerate(kept) if old in stored}} if stored else {}


def _fixed(reason: str, harmless: Sequence[object] = (None, False, 0)) -> Rule:
    def refuse(config: PretrainedConfig, name: str, _: Kept) -> Mapping[str, Any]:
        if getattr(config, name) not in harmless:
            raise ModelError(f"this {config.model_type} model cannot lose blocks: {reason} ({name})")
        return {}

    return refuse


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        """layer_types mlp_layer_types indexer_types no_rope_layers layer_rope_theta num_attention_heads_per_layer
        num_key_value_heads_per_layer attention_layers activation_sparsity_pattern intermediate_size""".split(),
        _slice,
    ),
    **dict.fromkeys(
        "moe_layers full_attn_idxs attn_layer_indices rope_scaling_layers ple_layer_ids".split(), _renumber
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
    # of exports without some sublayers
    **dict.fromkeys("dropped_attention dropped_mlp".split(), _renumber),
    "scale_attn_by_inverse_layer_idx": _fixed("its attention is scaled by the block's number"),
}

PERIODS: Mapping[str, str] = {
    **dict.fromkeys(
        """sliding_window_pattern _sliding_window_pattern prefix_dense_sliding_window_pattern window_pattern
        full_attention_interval global_attn_every_n_layers""".split(),
        "layer_types",
    ),
    "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers",
    "moe_layer_freq": "mlp_layer_types",
    "index_topk_freq": "indexer_types",
}
"""Fields that say after how many blocks the kinds of blocks repeat, and the list that spells it out.

transformers 4.57 and 5 read the list wherever there is one.
"""


def edits(config: PretrainedConfig, count: str, kept: Kept) -> dict[str, Any]:
    """The config fields that change when only some blocks are kept.

    Args:
        config: of the whole model; it is not changed.
        count: its field with the number of blocks.
        kept: those that stay.

    Returns:
        New values by field, in the order in which they can be set.

    Raises:
        ModelError: no config says what would be left.
    """
    number = getattr(config, count)
    if len(kept) == number:
        return {}
    _check_attention(config, kept)
    _check_first(config, kept)
    _check_last(config, kept)
    stored = config.to_dict()
    changed: dict[str, Any] = {}
    for name, rule in RULES.items():
        if stored.get(name) is not None:
            _check_value(name, rule, getattr(config, name), number)
            changed |= rule(config, name, kept)
    for name, value in stored.items():
        if name not in changed and name not in RULES and not _is_of_tokens(name) and _one_each(value, number):
            changed[name] = [value[i] for i in kept]
    return changed | {count: len(kept)}


def _check_value(name: str, rule: Rule, value: object, number: int) -> None:
    """Refuse a value that its rule cannot read; transformers does not look at all of them.

    Raises:
        ModelError: names the field and its value.
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
            f"the config has {name} = {value!r:.60}, which says nothing of its {number} blocks: correct it"
        )


def _check_last(config: PretrainedConfig, kept: Kept) -> None:
    """Refuse what Gemma 4's config would change on its own: its last block always has full attention.

    Raises:
        ModelError: the last block that is left has another kind.
    """
    kinds = getattr(config, "layer_types", None)
    if config.model_type.startswith("gemma4") and kinds and kinds[kept[-1]] != "full_attention":
        last = max(i for i, kind in enumerate(kinds) if kind == "full_attention")
        raise ModelError(
            f"block {kept[-1]} has sliding attention, and the last block of a {config.model_type} model always has "
            f"full attention: keep the last with --protect {last}"
        )


def _check_first(config: PretrainedConfig, kept: Kept) -> None:
    """Refuse to take the first block of a type whose code builds another module there.

    Raises:
        ModelError: it is dropped.
    """
    if config.model_type == "modernbert-decoder" and 0 not in kept:
        raise ModelError("block 0 alone has no norm before its attention, and another cannot take its place: protect 0")


def _check_attention(config: PretrainedConfig, kept: Kept) -> None:
    """Refuse to take a hybrid's last block with attention, by which transformers' caches count tokens.

    Raises:
        ModelError: no block with attention would be left.
    """
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    attention = [i for i, kind in enumerate(kinds) if "attention" in kind and kind != "linear_attention"]
    if attention and not set(attention) & set(kept):
        raise ModelError(
            f"blocks {', '.join(map(str, attention))} are all that have attention, and without one of them "
            f"transformers cannot decode: keep one with --protect {attention[-1]}"
        )


def period_of(config: PretrainedConfig, number: int) -> int:
    """After how many blocks the kinds of blocks repeat, by the config's lists of one entry a block.

    Dropping whole periods keeps the pattern, which matters to programs that know a block's kind by its number alone.

    Args:
        config: of the whole model.
        number: its blocks.

    Raises:
        InputError: they do not repeat.
    """
    stored = config.to_dict()
    lists = [v for n, v in stored.items() if (RULES.get(n) is _slice or n not in RULES) and _one_each(v, number)]
    for period in range(1, number // 2 + 1):
        if all(values[i] == values[i % period] for values in lists for i in range(number)):
            return period
    raise InputError(f"the kinds of this {config.model_type} model's blocks do not repeat: leave out --keep-pattern")


def _is_of_tokens(name: str) -> bool:
    """Whether a field holds ids of tokens, which may be as many as blocks."""
    return name.endswith(("_token_id", "_token_ids"))


def _one_each(value: object, number: int) -> bool:
    """Whether an unknown field looks like one entry a block: its length fits and it is no list of numbers of blocks."""
    if not isinstance(value, list | tuple) or len(value) != number:
        return False
    numbers = all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
    return not (numbers and list(value) == sorted(set(value)))
