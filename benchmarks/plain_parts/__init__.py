"""Parts of `benchmarks.plain_spaces`."""
