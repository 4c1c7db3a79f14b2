"""Candidates that narrow layers, and the space of all candidates of one size."""
