"""Tools beside the stages: each file is a command."""
