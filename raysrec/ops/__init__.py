"""Operators along a history: each a slow obvious reference, a fast path in torch, and CUDA where installed."""

from importlib import import_module
from importlib.metadata import version


def kernels(device: str) -> dict[str, str]:
    """Which implementation each operator takes on a device type (`cpu` or `cuda`), in words."""
    return {
        "selective scan": _library("mamba-ssm") if device == "cuda" else "chunked torch",
        "short convolution": _library("causal-conv1d") if device == "cuda" else "torch",
        "linear attention": "chunked torch",
        "linear recurrence": "chunked torch",
        "additive attention": "chunked torch",
    }


def _library(package: str) -> str:
    try:
        import_module(package.replace("-", "_"))
    except ImportError as error:
        return f"torch ({package}: {error})"
    return f"{package} {version(package)}"
