"""One run on Ray."""
