"""The parts of `benchmarks.rates`; see the README of this folder."""
