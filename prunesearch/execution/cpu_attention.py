"""Attention in 16-bit on CPUs, as products of matrices.

torch's own function multiplies small tiles of queries and keys. Where the CPU has 16-bit
instructions but no tiles of them (AVX-512 BF16 without AMX), these products run at a fifth of the
rate of a product of whole matrices. Here the heads that share keys are stacked, and a block of
queries is multiplied with all keys before its end. Scores are rounded to 16 bits before the
softmax, as in transformers' attention ``eager``.

Shapes: B sequences of L tokens, H heads of size D, G key/value heads, Q queries and K keys.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from prunesearch.runtime.patching import replaced

_NARROW = (torch.bfloat16, torch.float16)
_QUERIES = 64  # queries of a block; fewer compute fewer scores after the diagonal
_SCORES = 2**20  # scores of a block: they stay in the cache of a core
_GAIN = 1.2  # our attention is used if it is faster by this factor
_ROUNDS = 3
_EXAMPLES = {"causal": (4, 256, 256), "masked": (8, 48, 112)}
"""Shapes (B, Q, K) that the two functions are timed with."""


class _Kind(NamedTuple):
    """A kind of attention, for which one choice is made."""

    how: str
    heads: int
    groups: int
    size: int
    dtype: torch.dtype
    threads: int


_faster: dict[_Kind, bool] = {}
"""The choices of this process: True where our attention is faster."""


_own = nn.functional.scaled_dot_product_attention
"""torch's own function, before it is replaced."""


@contextmanager
def fast_attention() -> Iterator[None]:
    """Use our attention inside the ``with`` block where it is measured to be faster.

    It replaces `torch.nn.functional.scaled_dot_product_attention`. Float32, GPUs, and forms of
    attention that it does not know are left to torch.
    """
    with replaced(nn.functional, "scaled_dot_product_attention", _attention):
        yield


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Compute attention. The arguments are those of torch's own function."""
    if _knows(query, key, attn_mask, dropout_p, is_causal):
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        # A compiler takes the whole as one operation.
        if torch.compiler.is_compiling():
            out: torch.Tensor = _attend_as_operation(query, key, value, attn_mask, factor)
            return out
        return _attend(query, key, value, attn_mask, factor)
    return _own(
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def _knows(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    is_causal: bool,
) -> bool:
    """Return True if this is a form of attention that is computed here."""
    if query.dtype not in _NARROW or query.device.type != "cpu" or query.dim() != 4 or dropout:
        return False
    if query.shape[1] % key.shape[1]:
        return False
    if mask is None:
        return is_causal and query.shape[2] == key.shape[2] and query.shape[2] > 1
    # A mask of numbers that all heads share.
    shape = (query.shape[0], 1, query.shape[2], key.shape[2])
    return not is_causal and mask.dtype == query.dtype and mask.shape == shape


def _attend(
    query_BHQD: torch.Tensor,
    key_BGKD: torch.Tensor,
    value_BGKD: torch.Tensor,
    mask_B1QK: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Compute attention by the faster of the two functions: shape (B, H, Q, D)."""
    how = "causal" if mask_B1QK is None else "masked"
    heads, groups, size = query_BHQD.shape[1], key_BGKD.shape[1], query_BHQD.shape[-1]
    kind = _Kind(how, heads, groups, size, query_BHQD.dtype, torch.get_num_threads())
    if kind not in _faster:
        _faster[kind] = _is_faster(kind)
    if not _faster[kind]:
        return _by_torch(query_BHQD, key_BGKD, value_BGKD, mask_B1QK, scale)
    if mask_B1QK is None:
        return _causal(query_BHQD, key_BGKD, value_BGKD, scale)
    return _masked(query_BHQD, key_BGKD, value_BGKD, mask_B1QK, scale)


@torch.library.custom_op("prunesearch::attend", mutates_args=())
def _attend_as_operation(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    return _attend(query, key, value, mask, scale).contiguous()


@_attend_as_operation.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


def _by_torch(
    query_BHQD: torch.Tensor,
    key_BGKD: torch.Tensor,
    value_BGKD: torch.Tensor,
    mask_B1QK: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Compute attention by torch's own function."""
    return _own(
        query_BHQD,
        key_BGKD,
        value_BGKD,
        attn_mask=mask_B1QK,
        is_causal=mask_B1QK is None,
        scale=scale,
        enable_gqa=query_BHQD.shape[1] != key_BGKD.shape[1],
    )


def _causal(
    query_BHLD: torch.Tensor, key_BGLD: torch.Tensor, value_BGLD: torch.Tensor, scale: float
) -> torch.Tensor:
    """Compute causal attention: shape (B, H, L, D)."""
    n_sequences, heads, length, size = query_BHLD.shape
    groups = key_BGLD.shape[1]
    stacked = heads // groups
    out_BLHD = query_BHLD.new_empty(n_sequences, length, heads, value_BGLD.shape[-1])
    # A block has as many sequences as keep their scores in the cache.
    at_once = max(1, _SCORES // (heads * min(_QUERIES, length) * length))
    step = _QUERIES
    if at_once < n_sequences and at_once < 4:
        step = 2 * _QUERIES
    within = query_BHLD.new_full((step, step), float("-inf")).triu_(1)
    for first in range(0, n_sequences, at_once):
        some = slice(first, min(first + at_once, n_sequences))
        count = some.stop - some.start
        keys = key_BGLD[some].reshape(count * groups, length, size).transpose(1, 2)
        values = value_BGLD[some].reshape(count * groups, length, -1)
        for start in range(0, length, step):
            # The queries of a block attend to all tokens before it, and to themselves.
            end = min(start + step, length)
            n = end - start
            queries = query_BHLD[some, :, start:end].reshape(count * groups, stacked * n, size)
            mask = query_BHLD.new_zeros(n, end)
            mask[:, start:] = within[:n, :n]
            out = _product(
                queries, keys[:, :, :end], values[:, :end], mask.repeat(stacked, 1), scale
            )
            out_BLHD[some, start:end] = out.view(count, heads, n, -1).transpose(1, 2)
    return out_BLHD.transpose(1, 2)


def _masked(
    query_BHQD: torch.Tensor,
    key_BGKD: torch.Tensor,
    value_BGKD: torch.Tensor,
    mask_B1QK: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Compute attention with a mask: shape (B, H, Q, D)."""
    n_sequences, heads, n_queries, size = query_BHQD.shape
    groups, n_keys = key_BGKD.shape[1:3]
    stacked = heads // groups
    parts = []
    at_once = max(1, _SCORES // (heads * n_queries * n_keys))
    for first in range(0, n_sequences, at_once):
        some = slice(first, min(first + at_once, n_sequences))
        count = some.stop - some.start
        mask = mask_B1QK[some].expand(count, groups * stacked, n_queries, n_keys)
        out = _product(
            query_BHQD[some].reshape(count * groups, stacked * n_queries, size),
            key_BGKD[some].reshape(count * groups, n_keys, size).transpose(1, 2),
            value_BGKD[some].reshape(count * groups, n_keys, -1),
            mask.reshape(count * groups, stacked * n_queries, n_keys),
            scale,
        )
        parts.append(out.view(count, heads, n_queries, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _product(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Return softmax(scale * queries keys + mask) values, in batches."""
    scores = torch.baddbmm(mask, queries, keys, alpha=scale)
    return torch.bmm(torch.softmax(scores, dim=-1), values)


@torch.inference_mode()
def _is_faster(kind: _Kind) -> bool:
    """Time both functions in turns on an example, and return True if ours is faster."""
    n, n_queries, n_keys = _EXAMPLES[kind.how]
    query = torch.ones(n, kind.heads, n_queries, kind.size, dtype=kind.dtype)
    key = torch.ones(n, kind.groups, n_keys, kind.size, dtype=kind.dtype)
    mask = None
    if kind.how == "masked":
        mask = torch.zeros(n, 1, n_queries, n_keys, dtype=kind.dtype)
    least = [float("inf"), float("inf")]
    # The first round warms up.
    for round_ in range(_ROUNDS + 1):
        for which in range(2):
            start = time.perf_counter()
            if which:
                _by_torch(query, key, key, mask, 1.0)
            elif mask is None:
                _causal(query, key, key, 1.0)
            else:
                _masked(query, key, key, mask, 1.0)
            if round_:
                least[which] = min(least[which], time.perf_counter() - start)
    return _GAIN * least[0] < least[1]
