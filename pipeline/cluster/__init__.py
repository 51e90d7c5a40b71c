"""Clusters that the pipeline runs on: one recipe, rendered for each kind of provider, and a check of the files."""
