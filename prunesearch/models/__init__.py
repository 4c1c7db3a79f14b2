"""Models: where the blocks live, loading, the demo's weights, fingerprints and surgery."""
