"""How much the experts of a block matter for its output.

M. Lasby et al., "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression",
arXiv:2510.13999: the score of expert j is the mean, over the tokens X_j that the router sends to
it, of

    g_j(x) * ||f_j(x)||

with g_j the weight that the router gives the expert and f_j its output. An expert that no token is
sent to has the score 0.

Shapes: T tokens, K experts of a token, U experts, E hidden size.
"""

from typing import Any

import torch
from torch import nn

from prunesearch.models.experts import NarrowableExperts


class RouterUse:
    """Records what a block's router and its experts do.

    Args:
        part: the experts.

    Attributes:
        sums_U: sum over tokens of router weight times norm of the output, float64.
        counts_U: number of tokens that were sent to each expert.
    """

    def __init__(self, part: NarrowableExperts) -> None:
        self.sums_U = torch.zeros(part.channels, dtype=torch.float64)
        self.counts_U = torch.zeros(part.channels, dtype=torch.int64)

    def note(self, experts: nn.Module, args: tuple[Any, ...]) -> None:
        """Record a call of the experts, before it computes. This is a forward pre-hook.

        Args:
            experts: module with all experts.
            args: hidden states (T, E), indices of the experts of each token (T, K), and the weights
                that the router gives them.
        """
        states_TE, chosen_TK, weights_TK = args
        for expert in chosen_TK.unique().tolist():
            # The tokens that are sent to this expert, and its place among their experts.
            rows, places = torch.where(chosen_TK == expert)
            # The module's own code computes the output of one expert, with the weight 1.
            only_T1 = torch.full((len(rows), 1), expert, device=chosen_TK.device)
            ones_T1 = torch.ones((len(rows), 1), dtype=weights_TK.dtype, device=weights_TK.device)
            output_TE: torch.Tensor = experts.forward(states_TE[rows], only_T1, ones_T1)
            norms_T = output_TE.float().norm(dim=-1) * weights_TK[rows, places].float()
            self.sums_U[expert] += norms_T.sum(dtype=torch.float64).cpu()
            self.counts_U[expert] += len(rows)

    @property
    def score_U(self) -> torch.Tensor:
        """Return the mean of each expert over its tokens."""
        return self.sums_U / self.counts_U.clamp_min(1)
