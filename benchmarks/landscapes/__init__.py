"""Landscapes, for benchmarks of the search that need no model.

`landscape(name, seed)` makes one, and `best_known(name, seed)` returns its best known true loss.
"""

from benchmarks.landscapes.best_known import best_known, strong
from benchmarks.landscapes.catalogue import NAMES, landscape
from benchmarks.landscapes.landscape import Landscape

__all__ = ["NAMES", "Landscape", "best_known", "landscape", "strong"]
