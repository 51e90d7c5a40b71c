"""Jobs: a cluster runs a command in a clone of a commit, and its results come home through Git and DVC."""
