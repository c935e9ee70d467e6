"""Media files, the prepared store, and the order in which clips are read."""
