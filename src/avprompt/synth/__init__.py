"""A generated audio-visual world, written in each dataset's own on-disk layout."""
