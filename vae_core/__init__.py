"""Variational autoencoders: models, objectives, metrics. Needs torch, numpy and safetensors, nothing else."""

__version__ = "0.1.0"
