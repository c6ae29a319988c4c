"""Launchers start the processes of a training on the nodes of a cluster, each of which calls `run()`."""
