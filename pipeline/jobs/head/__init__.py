"""What runs on the head for a job: clones the commit, runs the command there, and sends the results home.

This folder is sent to the cluster, with job.json and changes.patch beside it, and runs as `python -m head`. It has the
standard library alone: the nodes have what the project depends on, but not its code.
"""
