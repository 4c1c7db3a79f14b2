"""The evaluation cache: results by key, in a local and a shared backend.

The package knows nothing of studies or models, and does not import torch.
"""
