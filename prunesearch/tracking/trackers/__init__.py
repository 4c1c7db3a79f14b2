"""One file for each tracker. The file registers itself."""
