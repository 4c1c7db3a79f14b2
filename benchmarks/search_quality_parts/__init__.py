"""The parts of `benchmarks.search_quality`; see the README of this folder."""
