"""The registries of the engine: importing this imports no algorithm, network or tracker."""

from envs_gpu.registry import Registry

algorithms = Registry("algorithm", "pi_incubator.algorithms", exclude=("advantage",))
networks = Registry("network", "pi_incubator.networks")
trackers = Registry("tracker", "pi_incubator.tracking")

algorithm = algorithms.register
network = networks.register
tracker = trackers.register
