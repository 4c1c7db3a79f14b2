"""Scoring: what a candidate's quality, size and speed are."""
