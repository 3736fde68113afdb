"""Data sets: what can be prepared, the .beton files, how batches are read and augmented."""
