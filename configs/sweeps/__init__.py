"""Models small enough to train on a CPU in minutes."""
