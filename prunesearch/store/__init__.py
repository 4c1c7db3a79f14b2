"""What outlives a run: evaluations by content (`evaluations` over `tiers`) and studies (`studies`). No torch here."""
