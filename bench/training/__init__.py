"""Training against its peers: the systems, what is measured of them, and the stage around the loop."""
