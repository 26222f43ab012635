"""Where a run comes from: what it keeps of the process that began it."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raysrec.cluster.versions import COMPARED, version_of


def provenance(fingerprint: str, command: Sequence[str]) -> dict[str, Any]:
    """Where a run comes from: versions, commit and machine of this process.

    Args:
        fingerprint: Of its data.
        command: What was typed.
    """
    return {
        "data_fingerprint": fingerprint,
        "commit": _commit(),
        "command": list(command),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in ("raysrec", *COMPARED)},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
    }


def _commit() -> str | None:
    """The commit of the code, with a + where files were changed after it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty=+", "--abbrev=12"],  # noqa: S607 - by PATH, as typed
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip()
