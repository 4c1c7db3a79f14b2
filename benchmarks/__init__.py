"""Benchmarks: one file per question; see results/ for the last full runs."""
