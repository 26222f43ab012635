"""Tensors into a file: safetensors, whose failures are those of any other file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(values: Mapping[str, Tensor], file: Path, about: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file.

    Args:
        values: Contiguous tensors by name.
        file: Where to.
        about: What stands in its header besides.

    Raises:
        OSError: It cannot be written: the disk is full, say.
    """
    try:
        save_file(dict(values), file, dict(about) if about else None)
    except SafetensorError as error:
        # The library has an error of its own for what every other writer calls an OSError.
        raise OSError(f"{file}: {error}") from None
