"""Retraining: new data, a challenger, the champion beside it on the same images, and a decision that can be read."""
