"""The sweep: what is tried, Ray Tune around the training loop, and what is kept of it."""
