"""The parts of `benchmarks.peers`."""
