"""Settings of the networks: one class a file, chosen by `network.name`."""
