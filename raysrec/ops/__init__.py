"""Operators along a history: each a slow obvious reference, a fast path in torch, and CUDA where installed."""

from importlib.metadata import PackageNotFoundError, version


def kernels(device: str) -> dict[str, str]:
    """Which implementation each operator takes on a device type (`cpu` or `cuda`), in words."""
    return {
        "selective scan": _library("mamba-ssm") if device == "cuda" else "chunked torch",
        "short convolution": _library("causal-conv1d") if device == "cuda" else "torch",
        "linear attention": "chunked torch",
    }


def _library(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"torch ({package} is not installed)"
