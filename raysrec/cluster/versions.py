"""Which versions a process has, of what must be the same on all machines of a run.

It knows Python alone, so that a machine which lacks the rest can say so.

The code of raysrec itself travels with a run (`runtime.py`); torch, DeepSpeed and the rest are what a machine has
installed. Workers that have others than the driver fail far from the reason, or compute something else.
"""

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COMPARED = ("ray", "torch", "deepspeed", "pyarrow", "numpy")
"""Distributions that must be the same, but for the build (2.13.0+cpu and 2.13.0+cu130 work together)."""

ABSENT = "not installed"


def versions_here() -> dict[str, str]:
    """Name and version of each, with Python's (as 3.11) and raysrec's (by its code, which a version number is not)."""
    major, minor, _ = platform.python_version_tuple()
    return {"python": f"{major}.{minor}", "raysrec": f"code {_digest_of_code()}"} | {
        name: _installed(name) for name in COMPARED
    }


def look_around(folders: Sequence[str]) -> dict[str, Any]:
    """A task: what this machine has, and which of the folders it does not see."""
    return {"versions": versions_here(), "unseen": [folder for folder in folders if not os.path.exists(folder)]}


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """What is other there than here, in words."""
    return [
        f"{name} {there.get(name, ABSENT)} (here {expected})"
        for name, expected in here.items()
        if there.get(name, ABSENT) != expected
    ]


def _installed(name: str) -> str:
    found = version_of(name)
    return ABSENT if found is None else found.partition("+")[0]


@cache
def _digest_of_code() -> str:
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def version_of(package: str) -> str | None:
    """The version of an installed distribution; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
