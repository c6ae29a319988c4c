"""The registries of the engine: importing this imports none of their entries."""

from envs_gpu.registry import Registry

algorithms = Registry("algorithm", "pi_incubator.algorithms")
networks = Registry("network", "pi_incubator.networks")
exporters = Registry("exporter", "pi_incubator.deploy.exporters")
gates = Registry("gate", "pi_incubator.deploy.gates")
trackers = Registry("tracker", "pi_incubator.tracking")

algorithm = algorithms.register
exporter = exporters.register
gate = gates.register
network = networks.register
tracker = trackers.register
