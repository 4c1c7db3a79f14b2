"""The allocation ``flap-global``: one threshold for the scores of all layers.

Y. An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024,
arXiv:2312.11983, in the structure ``AL-AM`` of its code: the scores of a layer's
channels are standardised to mean 0 and standard deviation 1, those of its KV groups too, and the
units with the smallest standardised scores of the whole model are removed until the budget is met.
A unit counts with its number of weights, where FLAP's code has the fixed weight 512 / 3 of a head
of models without grouped queries.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from prunesearch.importance.allocations.registry import AllocationEntry, register
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.widths.genes import Real
from prunesearch.widths.space import WidthSpace


def standardised(scores: Real) -> Real:
    """Return scores with mean 0 and sample standard deviation 1; zeros if all are equal."""
    if len(scores) < 2 or not scores.std() > 0:
        return np.zeros(len(scores))
    return np.asarray((scores - scores.mean()) / scores.std(ddof=1))


def levels(space: WidthSpace, layers: Sequence[LayerStatistics]) -> Mapping[str, Real]:
    """Return the levels that one threshold gives."""
    # The units that each gene may lose, the least important first.
    scores: list[Real] = []
    costs: list[Real] = []
    genes: list[Real] = []
    for place, gene in enumerate(space.genes):
        # What a gene must keep is not among them.
        layer = layers[gene.block]
        of_gene = layer.group_scores if gene.attention else layer.channel_scores
        removable = standardised(of_gene.astype(np.float64))[::-1][: gene.most * gene.step]
        scores.append(removable)
        costs.append(np.full(len(removable), gene.cost / gene.step))
        genes.append(np.full(len(removable), float(place)))
    # Remove units from the smallest score on, until the budget is met.
    gene_U, cost_U = np.concatenate(genes).astype(np.intp), np.concatenate(costs)
    order_U = np.argsort(np.concatenate(scores), kind="stable")
    before_U = np.cumsum(cost_U[order_U]) - cost_U[order_U]
    removed_G = np.bincount(gene_U[order_U[before_U < space.budget]], minlength=space.n_genes)
    step_G = np.array([gene.step for gene in space.genes])
    return {"flap-global": removed_G / step_G}


register(
    AllocationEntry(
        "flap-global", "one threshold for the scores of all layers (FLAP)", levels, order=40
    )
)
