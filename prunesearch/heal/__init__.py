"""Getting quality back after layers were dropped, in the same architecture."""
