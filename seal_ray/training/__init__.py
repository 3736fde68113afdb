"""The loop: a run in progress, its optimizer, gradients over shards and workers."""
