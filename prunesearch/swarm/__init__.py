"""The algorithms, on numpy alone: `pso` and `woa` propose subsets, `moves` is what both are made of."""
