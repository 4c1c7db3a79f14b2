"""Search algorithms that use numpy only.

`pso` and `woa` propose subsets. Both consist of the operators in `operators`.
"""
