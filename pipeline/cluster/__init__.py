"""Clusters that the pipeline runs on: one recipe, rendered for AWS, for given machines and for Kubernetes, and checked."""
