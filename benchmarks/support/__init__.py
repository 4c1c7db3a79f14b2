"""What benchmarks share: the record of figures, and the tools that they compare with."""
