"""Data that is kept between runs: evaluations (`evaluations` over `tiers`) and studies (`studies`).

The package does not import torch.
"""
