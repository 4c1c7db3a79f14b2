"""The objective ``hidden-cosine``: the angle between a candidate's final hidden states and the
dense model's.

The loss of a token is 1 - cos(x, y), where x is the final hidden state of the dense model and y
that of the candidate. ShortGPT ranks single blocks by the same measure of a block's input and
output and calls it block influence (X. Men et al., "ShortGPT: Layers in Large Language Models are
More Redundant Than You Expect", 2024, arXiv 2403.03853). Here it compares whole models.

The states are read after the final norm. These are what the vocabulary head multiplies, so two
states with the same direction rank all tokens alike. Before the norm, a few dimensions with huge
values dominate the cosine; the norm's weights scale them down. The vocabulary head itself is not
computed, which makes this objective cheaper than KL for models with a large vocabulary.

Shapes: B sequences of L tokens, R = B * L token positions, E hidden size.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunesearch.candidate import LayerSubset
from prunesearch.objectives.base import Metrics
from prunesearch.objectives.registry import ObjectiveEntry, on_calibration_text, register

if TYPE_CHECKING:
    import torch

    from prunesearch.execution.head import Head


class HiddenCosine:
    """Mean over tokens of 1 - cosine similarity of the final hidden states."""

    metric = "hidden_cosine"
    loss_metric = "hidden_cosine"
    kind = "hidden cosine"

    def version(self, head: "Head") -> int:
        """Return the version of the numbers."""
        from prunesearch.objectives.identity import SCORING_VERSION

        return SCORING_VERSION

    def fits(self, reference: "Mapping[str, torch.Tensor]", head: "Head") -> bool:
        """Return True: the head is not used."""
        return True

    def reference(self, dense_RE: "torch.Tensor", head: "Head") -> "dict[str, torch.Tensor]":
        """Return the dense model's final hidden states."""
        return {"states_RE": dense_RE}

    def compare(
        self,
        windows_BL: "torch.Tensor",
        reference: "Mapping[str, torch.Tensor]",
        normed_states: "Mapping[LayerSubset, torch.Tensor]",
        head: "Head",
    ) -> dict[LayerSubset, list[list[float]]]:
        """Return ``[sum of 1 - cosine, tokens]`` per sequence for each candidate."""
        from torch.nn.functional import normalize

        x_RE = normalize(reference["states_RE"].to(windows_BL.device).float(), dim=-1)
        sums: dict[LayerSubset, list[list[float]]] = {}
        for candidate, normed_RE in normed_states.items():
            y_RE = normalize(normed_RE.float(), dim=-1)
            # For unit vectors, 1 - x.y = |x - y|^2 / 2. This form is exact for equal states.
            loss_BL = ((x_RE - y_RE).square().sum(-1) / 2).view(windows_BL.shape)
            loss_B = loss_BL.double().sum(1).tolist()
            sums[candidate] = [[loss, windows_BL.shape[1]] for loss in loss_B]
        return sums

    def metrics(self, per_sequence: Sequence[Sequence[float]]) -> Metrics:
        """Return the mean over tokens, and its standard error over sequences."""
        tokens = sum(length for _, length in per_sequence)
        values = {self.metric: math.fsum(loss for loss, _ in per_sequence) / tokens}
        if len(per_sequence) < 2:
            return Metrics(values)
        error = statistics.stdev(self.losses(per_sequence)) / math.sqrt(len(per_sequence))
        return Metrics(values, {self.metric: error})

    def losses(self, per_sequence: Sequence[Sequence[float]]) -> list[float]:
        """Return the mean of each sequence."""
        return [loss / length for loss, length in per_sequence]


register(
    ObjectiveEntry(
        "hidden-cosine",
        "1 - cosine similarity to the dense model's final hidden states",
        build=on_calibration_text(lambda _: HiddenCosine()),
        metric=HiddenCosine.metric,
        metric_labels={HiddenCosine.metric: "1 - cosine to dense"},
        order=20,
        zero_if_dense=True,
        stored=lambda _: HiddenCosine(),
    )
)
