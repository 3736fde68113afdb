"""Where metrics go beside metrics.jsonl: Weights & Biases and the terminal."""
