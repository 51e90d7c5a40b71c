"""Training of the prior over the codes of a quantised model."""
