"""One file for each fixed allocation. The file registers itself."""
