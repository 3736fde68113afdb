"""What lies in a storage: run folders, checkpoints, keys, weights."""
