"""Which library runs the network."""

from __future__ import annotations

from ._network import Network
from .bundle import Bundle
from .errors import RuntimeBundleError

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
    # The libraries are large: only the one that is used is imported.
    from . import _onnxruntime

    return _onnxruntime.OnnxRuntimeNetwork(bundle)
