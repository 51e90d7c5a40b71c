"""The best model as files that others can use."""
