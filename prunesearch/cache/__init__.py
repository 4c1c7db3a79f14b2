"""Data that is kept between runs: evaluations (`evaluations` over `backends`) and studies
(`studies`).

The package does not import torch.
"""
