"""The parts of `benchmarks.paper`."""
