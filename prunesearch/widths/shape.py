"""The shape of a model: how many channels and KV groups its blocks have, and what they cost."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class WidthShape:
    """The parts of a model's blocks that can be removed one by one.

    A *channel* is one input of the MLP's output projection, with its rows of the projections before
    it. In a block with experts, a channel is a whole expert. A *group* is one key-value head with
    its query heads and their columns of the attention's output projection.

    Attributes:
        channels, groups: number of channels and of groups in each block; 0 if the block has none
            that can be removed.
        channel_params, group_params: number of parameters of one channel and of one group in each
            block.
        channel_weights, group_weights: the same without biases. Budgets are counted in weights.
        hidden_size: size of the hidden state.
        top_k: number of experts that each token uses in blocks with experts, which keep at least as
            many; 0 for other blocks. Empty: the model has no experts.
    """

    channels: tuple[int, ...]
    groups: tuple[int, ...]
    channel_params: tuple[int, ...]
    group_params: tuple[int, ...]
    channel_weights: tuple[int, ...]
    group_weights: tuple[int, ...]
    hidden_size: int
    top_k: tuple[int, ...] = ()

    def experts_used(self, index: int) -> int:
        """Return the number of experts that each token uses in a block; 0 without experts."""
        if not self.top_k:
            return 0
        return self.top_k[index]

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.channels)

    @property
    def weights(self) -> int:
        """Number of weights that can be removed."""
        total = 0
        for index in range(self.n_layers):
            total += self.channels[index] * self.channel_weights[index]
            total += self.groups[index] * self.group_weights[index]
        return total
