"""Settings of the algorithms: one torch-free class a file, chosen by `algorithm.name`."""
