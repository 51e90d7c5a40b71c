"""Looks at all that the pipeline needs, and says of each thing whether it is well, and what would mend it."""
