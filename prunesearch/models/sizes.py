"""Count the parameters and bytes of a model and of its candidates."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.models.structure import architecture_of, blocks_of, parts_of
from prunesearch.widths.layer_widths import LayerWidths


@dataclass(frozen=True)
class Sizes:
    """Exact parameter counts and bytes of a model, computed from shapes alone.

    Attributes:
        block_params: number of parameters of each block.
        attention_params: number of parameters of each block's attention and its norms. The rest of
            a block counts as its MLP.
        other_params: number of all other parameters (embeddings, final norm, head). Tied weights
            count once.
        bytes_per_param: bytes per parameter in the dtype of the model.
    """

    block_params: tuple[int, ...]
    attention_params: tuple[int, ...]
    other_params: int
    bytes_per_param: int

    def params(self, candidate: LayerSubset | None = None) -> int:
        """Return the number of parameters that a candidate keeps.

        Without a candidate: of the dense model.
        """
        total = self.other_params + sum(self.block_params)
        if not isinstance(candidate, LayerWidths):
            return total - int(lost(self.block_params, self.attention_params, candidate))
        # Blocks and sublayers that are gone, and then what narrower sublayers have lost.
        gone = LayerSubset(
            candidate.n_layers, candidate.dropped, candidate.attention, candidate.mlp
        )
        total -= int(lost(self.block_params, self.attention_params, gone))
        return total - candidate.narrowing_params

    def bytes(self, candidate: LayerSubset | None = None) -> int:
        """Return the bytes of the weights that a candidate keeps.

        Without a candidate: of the dense model.
        """
        return self.params(candidate) * self.bytes_per_param


def sizes_of(model: PreTrainedModel) -> Sizes:
    """Count the parameters of a model. The model may be on the meta device."""
    sublayer = architecture_of(model.config).attention
    names = sublayer.parts if sublayer else ()
    per_block: list[int] = []
    attention: list[int] = []
    for block in blocks_of(model):
        per_block.append(_params_of(block))
        attention.append(sum(map(_params_of, parts_of(block, names))))
    # parameters() yields a tied weight once.
    other = _params_of(model) - sum(per_block)
    return Sizes(tuple(per_block), tuple(attention), other, model.dtype.itemsize)


def _params_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def lost(
    block: Sequence[float], attention: Sequence[float], candidate: LayerSubset | None
) -> float:
    """Return how much of a quantity a candidate saves.

    Args:
        block: the quantity of each block.
        attention: the share of each block's attention. The rest of the block is the share of its
            MLP.
        candidate: candidate that drops blocks or sublayers. None saves nothing.
    """
    if candidate is None:
        return 0.0
    # Whole blocks, then the attention of kept blocks, then their MLPs.
    blocks = sum(block[i] for i in candidate.dropped)
    attentions = sum(attention[i] for i in candidate.attention)
    mlps = sum(block[i] - attention[i] for i in candidate.mlp)
    saved = blocks + attentions + mlps
    # A narrower sublayer saves in proportion.
    if isinstance(candidate, LayerWidths):
        for i in candidate.kept:
            use = candidate.use(i)
            if use is not None and use.groups is not None:
                saved += attention[i] * (1 - use.groups / candidate.shape.groups[i])
            # A token uses as many experts as before, so removed experts save no time.
            experts = candidate.shape.experts_used(i) > 0
            if use is not None and use.channels is not None and not experts:
                saved += (block[i] - attention[i]) * (
                    1 - use.channels / candidate.shape.channels[i]
                )
    return saved
