"""Reads the vocabulary head: the logsumexp of each row, and the logits of a few tokens.

Only these are needed for a likelihood, and for the KL divergence to a distribution of which
sufficient statistics are known. The logits are computed in blocks of rows, or, where the head is
a plain linear layer, in tiles: some rows times a part of the vocabulary. A tile stays in the cache
of the processor, and each part of the weight is read once for all rows.

Shapes: E hidden size, R rows, P tokens picked at each row, V vocabulary, N tokens picked in a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from prunesearch.execution.head import Head
from prunesearch.execution.linear_head import LinearHead
from prunesearch.execution.logsumexp import LogsumexpMethod, logsumexp

TILE_ROWS = 1024
"""Rows of a tile: the rows of a chunk on a CPU."""


@dataclass(frozen=True)
class HeadChoice:
    """How the head is read.

    Attributes:
        rows: rows whose logits are computed at a time.
        columns: tokens of the vocabulary that are computed at a time, for up to `TILE_ROWS` rows.
            None: all of them, for `rows` rows.
        method: how the logsumexp of a row is computed.
    """

    rows: int
    columns: int | None
    method: LogsumexpMethod


@dataclass(frozen=True)
class HeadReading:
    """What is read of the logits of rows.

    Attributes:
        logsumexp_R: logsumexp of the logits, in float32.
        picked_RP: logits of the picked tokens, rounded as the logits are, in float32.
    """

    logsumexp_R: torch.Tensor
    picked_RP: torch.Tensor


class PickedTokens:
    """The tokens whose logits are read at each row.

    Args:
        index_RP: token ids, on the device of the rows.
    """

    def __init__(self, index_RP: torch.Tensor) -> None:
        self.index_RP = index_RP
        self._places: dict[tuple[int, int, int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def places(
        self, start: int, stop: int, width: int, vocabulary: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return for each tile of some rows which numbers of it are picked.

        Args:
            start: first row.
            stop: row after the last one.
            width: columns of a tile.
            vocabulary: columns of all tiles.

        Returns:
            For each tile, the places among the (R, P) picked numbers, and the places in the tile,
            both counted along the rows, shape (N,). They are kept for the next candidate.
        """
        key = start, stop, width, vocabulary
        if key not in self._places:
            self._places[key] = list(self._in_tiles(start, stop, width, vocabulary))
        return self._places[key]

    def _in_tiles(
        self, start: int, stop: int, width: int, vocabulary: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Sort the picked tokens by tile."""
        picks, flat = self.index_RP.shape[1], self.index_RP[start:stop].flatten()
        tile = flat // width
        order = tile.argsort(stable=True)
        tiles = -(-vocabulary // width)
        counts = torch.bincount(tile, minlength=tiles).tolist()
        for number, place_N in enumerate(torch.split(order, counts)):
            columns = min(width, vocabulary - number * width)
            row_N = place_N // picks
            yield place_N, row_N * columns + flat[place_N] - number * width


@torch.inference_mode()
def read_head(
    head: Head, normed_RE: torch.Tensor, picked: PickedTokens, choice: HeadChoice
) -> HeadReading:
    """Read the head at some rows, without a synchronisation with a GPU.

    Args:
        head: the vocabulary head.
        normed_RE: hidden states after the final norm.
        picked: the tokens whose logits are returned.
        choice: how it is computed, see `head_choice.choice_for`.
    """
    linear = head.linear
    lse_R = torch.empty(len(normed_RE), dtype=torch.float32, device=normed_RE.device)
    picked_RP = torch.empty(picked.index_RP.shape, dtype=torch.float32, device=normed_RE.device)
    tiled = linear is not None and linear.sliced and linear.weight_VE.dtype == normed_RE.dtype
    columns = choice.columns if tiled else None
    step = choice.rows if columns is None else TILE_ROWS
    for start in range(0, len(normed_RE), step):
        stop = min(start + step, len(normed_RE))
        rows_RE = normed_RE[start:stop]
        if columns is not None and linear is not None:
            places = picked.places(start, stop, columns, len(linear.weight_VE))
            parts = []
            flat = picked_RP[start:stop].view(-1)
            tiles = zip(_tiles(head, linear, rows_RE, columns), places, strict=True)
            for tile_RV, (place_N, offset_N) in tiles:
                flat[place_N] = tile_RV.view(-1)[offset_N].float()
                parts.append(logsumexp(tile_RV, choice.method))
            lse_R[start:stop] = torch.stack(parts).logsumexp(0)
            continue
        logits_RV = head.logits(rows_RE)
        picked_RP[start:stop] = logits_RV.gather(1, picked.index_RP[start:stop]).float()
        lse_R[start:stop] = logsumexp(logits_RV, choice.method)
    return HeadReading(lse_R, picked_RP)


def _tiles(
    head: Head, linear: LinearHead, rows_RE: torch.Tensor, columns: int
) -> Iterator[torch.Tensor]:
    """Yield the logits of rows, a part of the vocabulary at a time."""
    assert linear.convert is not None
    for start in range(0, len(linear.weight_VE), columns):
        with head.code():
            bias_V = None if linear.bias_V is None else linear.bias_V[start : start + columns]
            tile_RV = torch.nn.functional.linear(
                rows_RE, linear.weight_VE[start : start + columns], bias_V
            )
            yield linear.convert(tile_RV)
