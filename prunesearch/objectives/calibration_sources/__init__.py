"""Sources of calibration text, one file each."""
