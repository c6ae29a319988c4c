"""Runs an exported policy on a robot: numpy and onnxruntime or TensorRT, and nothing else of this project.

The folder is vendored into a robot's bundle as `pi_runtime`, so its modules import each other relatively, and
it runs on Python 3.10, JetPack 6's.
"""

from .bundle import Bundle, read_bundle
from .contract import Contract, read_contract
from .errors import (
    LinkError,
    LogError,
    ObservationError,
    PolicyRuntimeError,
    RuntimeBundleError,
    ScheduleError,
)
from .flags import Flags
from .policy import Policy

__all__ = [
    "Bundle",
    "Contract",
    "Flags",
    "LinkError",
    "LogError",
    "ObservationError",
    "Policy",
    "PolicyRuntimeError",
    "RuntimeBundleError",
    "ScheduleError",
    "read_bundle",
    "read_contract",
]
