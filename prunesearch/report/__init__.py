"""Output for people: progress during a search, and tables after it. Nothing here uses a model."""
