"""One file for each importance criterion. The file registers itself."""
