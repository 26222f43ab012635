"""What happens to workers and nodes, in a process of its own: Ray remembers what a session before it was told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_happens_to_workers_and_nodes_the_run_goes_on_or_says_why_not():
    file = Path(__file__).with_name("struck_runs.py")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:]
