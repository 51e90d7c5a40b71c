"""One self-contained page about a whole run of the pipeline."""
