"""Search algorithms that use numpy only.

`pso` and `woa` propose subsets; both consist of the operators in `moves`.
"""
