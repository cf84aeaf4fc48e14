"""Data made or chosen before training."""
