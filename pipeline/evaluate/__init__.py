"""Figures and pictures of a model on the test split."""
