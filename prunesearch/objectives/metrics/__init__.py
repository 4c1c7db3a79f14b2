"""One file for each objective. They are found by `objectives.registry`."""
