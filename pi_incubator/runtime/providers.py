"""Which library runs the network."""

from __future__ import annotations

import logging

from ._network import Network
from ._onnxruntime import OnnxRuntimeNetwork
from ._tensorrt import TensorRTNetwork
from .bundle import Bundle
from .errors import RuntimeBundleError

logger = logging.getLogger(__name__)

PROVIDERS = ("auto", "onnxruntime", "tensorrt")


def make_network(bundle: Bundle, provider: str) -> Network:
    """The bundle's network, ready to run.

    Args:
        bundle: as read.
        provider: "onnxruntime", "tensorrt", or "auto": TensorRT where there is an engine for this GPU.

    Raises:
        RuntimeBundleError: no such provider, or it cannot run this bundle.
    """
    if provider not in PROVIDERS:
        raise RuntimeBundleError(f"provider: {provider!r} is not one of {', '.join(PROVIDERS)}")
    if provider == "tensorrt":
        return TensorRTNetwork(bundle)
    if provider == "auto" and bundle.engines:
        try:
            return TensorRTNetwork(bundle)
        except RuntimeBundleError as error:
            logger.warning("onnxruntime is used: %s", error)
    return OnnxRuntimeNetwork(bundle)
