"""Figures over a whole split: accumulate sums and counts, sum them over the ranks, only then divide."""
