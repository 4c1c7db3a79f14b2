"""The parts of `benchmarks.races`."""
