"""The model registry: versions and stages of each family's artifact, as GTO's tags in the project's own repository."""
