"""The parts of the benchmark `confirmation`."""
