"""What tests and benchmarks share: tiny models, servers, and doubles of the engine and the model."""
