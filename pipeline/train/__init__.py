"""Training: a run and its name, the loop, checkpoints, and Ray Train around them."""
