"""Layer-wise pruning rates: importance scores, channel orders and fixed allocations."""
