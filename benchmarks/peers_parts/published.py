"""Published removal sets and perplexities, as data.

* EvoPress: O. Sieberling et al., arXiv:2410.14649; sets from the configurations that its repository
  ships (`drop_configs`, Apache-2.0), perplexities from its tables of depth pruning. It removes as
  many attention as MLP sublayers; "25 %" is the share of each kind, not of the parameters.
* ShortGPT: X. Men et al., arXiv:2403.03853, and Shortened LLaMA: B.-K. Kim et al.,
  arXiv:2402.02834; orders of removal and perplexities as the EvoPress paper reports them.

In the sets, ``12`` is a block, ``11m`` its MLP, ``24a`` its attention, and ``6-12`` a range. The
numbers come from transcriptions of the paper: compare with it before you cite them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

RATIOS = (0.125, 0.25, 0.375, 0.5)
EVOPRESS, SHORTGPT, SHORTENED = "evopress", "shortgpt", "shortened-llama"
DENSE = "dense"
Perplexities = tuple[float, float]
"""Perplexity of WikiText-2 and of C4."""


@dataclass(frozen=True)
class PublishedModel:
    """What is published of one model.

    Attributes:
        model_type, hidden, blocks, vocabulary: what its config says.
        positions: largest number of positions in its config, which tells Llama 3 from 3.1.
        window: tokens of a window of the published perplexities.
        sets: EvoPress's sets by ratio.
        orders: orders of removal by method: the first k blocks are removed.
        dense: perplexities of the dense model.
        perplexities: perplexities by method, in the order of `RATIOS`.
        unclear: ratios whose set does not say which row of the table it belongs to, or belongs to
            another row, with the reason.
    """

    model_type: str
    hidden: int
    blocks: int
    vocabulary: int
    positions: int
    window: int
    sets: Mapping[float, str]
    orders: Mapping[str, str]
    dense: Perplexities
    perplexities: Mapping[str, tuple[Perplexities, ...]]
    unclear: Mapping[float, str] = field(default_factory=lambda: MappingProxyType({}))

    def published(self, method: str, ratio: float) -> Perplexities | None:
        """Return the published perplexities of a method; None if none can be named."""
        if method == DENSE:
            return self.dense
        if method not in self.perplexities:
            return None
        if method == EVOPRESS and ratio in self.unclear:
            return None
        return self.perplexities[method][RATIOS.index(ratio)]


MODELS: Mapping[str, PublishedModel] = {
    "llama-2-7b": PublishedModel(
        "llama", 4096, 32, 32_000, 4096, 4096,
        sets={
            0.125: "11m 12 23 24a 25",
            0.25: "9m 10 11m 12 13 14a 22m 23 24a 25 27a",
            0.375: "5m 6a 9m 10 11m 12-14 15a 21m 22m 23 24a 25 26m 27a 28a 30a",
            0.5: "5m 6 9m 10-14 15a 18m 19a 21a 22m 23 24a 25 26m 27 28a 29m 30 31a",
        },
        orders={
            SHORTGPT: "27 25 26 28 29 24 23 22 21 30 20 19 18 17 15 14",
            SHORTENED: "11 12 8 9 10 6 24 25 7 14 23 13 22 21 15 27",
        },
        dense=(5.21, 6.93),
        perplexities={
            EVOPRESS: ((6.42, 8.60), (9.15, 11.46), (17.98, 18.91), (48.84, 42.29)),
            SHORTENED: ((7.68, 10.44), (13.86, 14.08), (35.37, 26.07), (145.78, 87.40)),
            SHORTGPT: ((8.86, 10.78), (23.41, 30.30), (70.94, 63.51), (226.0, 171.0)),
        },
    ),
    "llama-3-8b": PublishedModel(
        "llama", 4096, 32, 128_256, 8192, 8192,
        sets={
            0.125: "8m 9 20a 25m 26 27a",
            0.25: "4 8m 9 10m 11a 19 20a 25 26 27a 28m",
            0.375: "6m 7-10 11a 12m 18m 19 20a 22a 23m 24a 25 26 27a 28m",
            0.5: "7-12 13a 14m 15m 16a 18m 19 20a 22 23 24a 25m 26 27a 28m 30m 31a",
        },
        orders={
            SHORTGPT: "25 26 27 24 28 23 22 29 20 21 19 18 30 17 16 11",
            SHORTENED: "10 8 9 11 26 25 12 22 24 23 14 13 28 6 19 21",
        },
        dense=(5.54, 8.80),
        perplexities={
            EVOPRESS: ((7.72, 12.61), (13.99, 22.83), (27.56, 35.70), (84.99, 87.86)),
            SHORTENED: ((9.42, 15.09), (16.59, 20.81), (50.20, 61.56), (725.0, 666.0)),
            SHORTGPT: ((13.21, 19.56), (5528.0, 11590.0), (64281.0, 13836.0), (1664.0, 1740.0)),
        },
    ),
    "llama-3.1-8b": PublishedModel(
        "llama", 4096, 32, 128_256, 131_072, 8192,
        sets={
            0.125: "8m 9m 10 11a 26 27a",
            0.25: "8m 9m 10 11 12a 19 20a 25 26 27a 28m",
            0.375: "3 7m 8m 9-11 12a 18m 19a 20a 22m 23 24a 25 26 27a 28m",
            0.5: "6-12 13a 14m 15a 20-24 25m 26 27a 28m",
        },
        orders={
            SHORTGPT: "25 26 24 27 23 28 22 29 20 21 19 18 17 30 16 10",
            SHORTENED: "10 9 11 8 26 25 12 24 22 23 14 28 6 13 19 21",
        },
        dense=(5.61, 8.90),
        perplexities={
            EVOPRESS: ((7.58, 12.24), (11.59, 17.84), (24.98, 35.77), (105.84, 110.69)),
            SHORTENED: ((9.27, 14.80), (20.41, 20.33), (41.34, 43.53), (455.0, 309.0)),
            SHORTGPT: ((12.54, 19.21), (4278.0, 6755.0), (123044.0, 22072.0), (1630.0, 1680.0)),
        },
    ),
    "mistral-7b-v0.3": PublishedModel(
        "mistral", 4096, 32, 32_768, 32_768, 8192,
        sets={
            0.125: "11-13 27",
            0.25: "8m 11m 12m 13 14a 22a 23-25 26a 27m 28a",
            0.375: "8-11 13 14 21 22 24 26 28 30",
            0.5: "5 8m 10 11 12m 13-15 16a 21-27 28a 31",
        },
        orders={
            SHORTGPT: "26 25 24 27 23 22 28 30 21 29 20 19 13 17 18 12",
            SHORTENED: "10 12 13 11 8 9 14 15 7 6 4 27 24 16 25 5",
        },
        dense=(4.82, 7.72),
        perplexities={
            EVOPRESS: ((6.06, 9.00), (8.66, 12.04), (17.52, 21.60), (61.75, 54.15)),
            SHORTENED: ((6.64, 9.71), (14.94, 19.30), (440.0, 442.0), (5242.0, 3596.0)),
            SHORTGPT: ((7.19, 10.18), (43.26, 40.16), (2899.0, 2723.0), (2423.0, 2135.0)),
        },
        unclear={
            0.125: "the set has whole blocks only: 6.06/9.00 (sublayers) or 6.33/9.44 (blocks)",
            0.375: "the set has whole blocks only: 17.52/21.60 (sublayers) or 21.62/25.17 (blocks)",
        },
    ),
}  # fmt: skip
"""The models by name."""
