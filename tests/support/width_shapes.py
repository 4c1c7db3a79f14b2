"""The shapes of models whose layers are narrowed."""

from prunesearch.widths.shape import WidthShape

N = 30
SMOLLM2 = WidthShape(
    (1536,) * N, (3,) * N, (1728,) * N, (294_912,) * N, (1728,) * N, (294_912,) * N, 576
)
"""SmolLM2-135M."""
TOTAL = 134_515_008
"""Number of its parameters."""
