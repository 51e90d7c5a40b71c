"""Sweeps against plain Ray Tune."""
