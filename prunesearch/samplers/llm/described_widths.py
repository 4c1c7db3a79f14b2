"""Widths as a language model sees them: a candidate says how many steps each layer loses.

A request and a reply have one number for each layer, in lists for the MLPs and for the attentions.
Levels that do not meet the budget are projected to the nearest ones that do.
"""

from collections.abc import Sequence

import numpy as np

from prunesearch.algorithms.operators import Mask, Real
from prunesearch.runtime.json_values import JsonObject
from prunesearch.samplers.llm.described_search import (
    Repaired,
    integers_schema,
    listed,
    reply_schema,
    scaled,
)
from prunesearch.samplers.llm.parsing import Numbers
from prunesearch.samplers.llm.settings import LayerTable
from prunesearch.widths.genes import Levels
from prunesearch.widths.space import WidthSpace

_MLP, _ATTENTION = "mlp", "kv"
"""Names of the lists: steps of the MLPs' channels, and KV groups of the attentions."""


class DescribedWidths:
    """Widths of layers.

    Args:
        space: search space.
        table: statistics of the layers.
        renamed: number under which each layer is shown.
    """

    def __init__(self, space: WidthSpace, table: LayerTable, renamed: Sequence[int]) -> None:
        table.check(space.n_layers)
        self._space, self._table = space, table
        self._name_of = list(renamed)
        self._layer_of = [self._name_of.index(name) for name in range(space.n_layers)]
        # Gene of each layer in each list; -1 if the layer has none.
        self._genes: dict[str, Levels] = {}
        for name, attention in ((_MLP, False), (_ATTENTION, True)):
            gene_L = np.full(space.n_layers, -1, dtype=np.intp)
            for index, gene in enumerate(space.genes):
                if gene.attention == attention:
                    gene_L[gene.block] = index
            if (gene_L >= 0).any():
                self._genes[name] = gene_L

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the lists of numbers that a candidate has."""
        return tuple(self._genes)

    def describe(self) -> str:
        """Return the task, the rules of a candidate, and the table of layers."""
        space = self._space
        order = "Layers are numbered in the order in which they compute."
        if self._name_of != sorted(self._name_of):
            order = "The numbers of the layers are names without an order."
        lines = [
            f"A language model has {space.n_layers} layers, 0 to {space.n_layers - 1}. {order}"
        ]
        lines.append("Each layer is narrowed. A candidate says by how much, for each layer:")
        unit = int(np.gcd.reduce(space.cost_G))
        for name, gene_L in self._genes.items():
            genes = gene_L[gene_L >= 0]
            what = "steps of its MLP"
            if name == _ATTENTION:
                what = "groups of its attention"
            most, cost = int(space.limit_G[genes].max()), space.cost_G[genes] // unit
            lines.append(
                f"- {name}: {what} that are removed, 0 to {most}; one costs {listed(_range(cost))}"
            )
        lines.append(
            f"The total cost of all removals must be {space.budget // unit} in every candidate. "
            f"That is {self._share():.0%} of all that can be removed."
        )
        if space.blocks:
            lines.append("A layer that loses everything is dropped as a whole.")
        lines.append("The loss says how much worse the smaller model is: lower is better.")
        lines.append("Layers that matter little should lose more than layers that matter much.")
        return "\n".join(lines) + self._rows()

    def _share(self) -> float:
        """Return the budget as a share of what can be removed."""
        return self._space.budget / max(1, self._space.removable)

    def _rows(self) -> str:
        """Return the table of layers, in the order of their names."""
        protected = sorted(self._name_of[layer] for layer in self._space.protected)
        text = ""
        if protected:
            text = f"\nThese stay whole, so their numbers are 0: {listed(protected)}."
        if not self._table.columns:
            return text
        lines = [text, "", "LAYERS", " ".join(["number", *self._table.columns])]
        columns = [scaled(values) for values in self._table.columns.values()]
        for name, layer in enumerate(self._layer_of):
            lines.append(" ".join([str(name), *(str(column[layer]) for column in columns)]))
        lines.append("(importance as shares of the largest value, in percent)")
        return "\n".join(lines)

    def example(self) -> str:
        """Return a candidate's form in words."""
        lists = [f'"{name}":[{self._space.n_layers} numbers]' for name in self._genes]
        return ",".join(lists)

    def schema(self, count: int) -> JsonObject:
        """Return the JSON schema of a reply with `count` candidates."""
        lists: JsonObject = {}
        for name, gene_L in self._genes.items():
            most = int(self._space.limit_G[gene_L[gene_L >= 0]].max())
            lists[name] = integers_schema(self._space.n_layers, self._space.n_layers, most)
        return reply_schema(lists, count)

    def shown(self, X_D: Mask) -> str:
        """Return the levels of each list, in the order of the layers' names."""
        levels_G = np.add.reduceat(X_D.astype(np.intp), self._space.first_unit_G)
        words = []
        for name, gene_L in self._genes.items():
            numbers = []
            for layer in self._layer_of:
                gene = gene_L[layer]
                numbers.append(int(levels_G[gene]) if gene >= 0 else 0)
            words.append(f"{name}:{listed(numbers)}")
        return " ".join(words)

    def read(self, numbers: Numbers) -> Repaired | None:
        """Project levels to the budget. A list of another length stands for nothing."""
        # 1. Collect the wanted level of each gene.
        space = self._space
        wanted_G: Real = np.zeros(space.n_genes)
        ignored = 0
        for name, gene_L in self._genes.items():
            values = numbers[name]
            if len(values) != space.n_layers:
                return None
            for layer, value in zip(self._layer_of, values, strict=True):
                if gene_L[layer] >= 0:
                    wanted_G[gene_L[layer]] = value
                else:
                    ignored += abs(value)
        # 2. Project them to the budget.
        found_MG = space.project(wanted_G[None])
        if found_MG is None:
            return None
        levels_G = found_MG[0]
        # 3. What was changed, as a share of what the candidate removes.
        changed = float(np.abs(levels_G - wanted_G) @ space.cost_G) / space.budget
        share = changed + ignored * float(space.cost_G.min()) / space.budget
        # 4. Level l is the first l units of its gene.
        place_D = np.arange(space.n_units) - space.first_unit_G[space.gene_D]
        return Repaired(np.asarray(place_D < levels_G[space.gene_D]), round(share, 4))

    def reply_characters(self) -> int:
        """Return the length of a candidate in a reply."""
        return len(self._genes) * (4 * self._space.n_layers + 12)


def _range(numbers: Levels) -> list[int]:
    """Return the distinct numbers in order; at most the smallest and the largest."""
    distinct = [int(number) for number in np.unique(numbers)]
    if len(distinct) > 2:
        return [distinct[0], distinct[-1]]
    return distinct
