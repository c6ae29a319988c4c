"""The registries of the engine: importing this imports no algorithm, network, tracker or exporter."""

from envs_gpu.registry import Registry

algorithms = Registry("algorithm", "pi_incubator.algorithms", exclude=("advantage",))
networks = Registry("network", "pi_incubator.networks")
exporters = Registry(
    "exporter",
    "pi_incubator.deploy",
    exclude=(
        "artifact",
        "bundle",
        "contract",
        "graph",
        "pixels",
        "precision",
        "program",
        "record",
        "session",
    ),
)
trackers = Registry("tracker", "pi_incubator.tracking")

algorithm = algorithms.register
exporter = exporters.register
network = networks.register
tracker = trackers.register
