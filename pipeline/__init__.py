"""The engineering around vae_core: DVC stages on Ray. Run as `python -m pipeline COMMAND`."""
