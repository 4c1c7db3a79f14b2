"""Statistics of finished searches, as pure functions on arrays; numpy and scipy only."""
