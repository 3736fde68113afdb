"""What trained networks have learned: prediction depth, similarity, movement and calibration."""
