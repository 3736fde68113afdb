"""Data sets that what was learned is tried on, each read from its official archives or their folder."""
