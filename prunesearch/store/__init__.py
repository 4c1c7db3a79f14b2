"""What outlives a run: evaluations by content (`keys`, `disk`) and studies (`studies`). No torch here."""
