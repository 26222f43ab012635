"""Killed and started again equals never killed, with the whole process group gone and a Ray that is new each time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from raysrec.checkpoint import RunDirectory
from raysrec.command_line import nest, overlay

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = {
    "data": {"synthetic": {"num_users": 401, "num_items": 50, "mean_length": 15}, "num_streams": 3},
    "model": {"name": "recgrela", "dim": 16, "num_blocks": 2, "max_length": 20},
    "train": {"epochs": 4, "batch_targets": 256, "learning_rate": 0.01, "warmup_steps": 5, "schedule": "cosine"},
    "engine": {"name": "deepspeed"},
    "scale": {"workers": 2, "threads_per_worker": 1},
}


def command_of(folder, name):
    """The command line that trains a run of this name; its Ray keeps its files apart from others'."""
    settings = overlay(SETTINGS, {"storage": {"root": str(folder / "runs"), "name": name}})
    settings = overlay(settings, nest("data.prepared", str(folder / "prepared")))
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return [sys.executable, "-m", "raysrec.train", "--config", str(file)]


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "RAY_TMPDIR": str(Path("/tmp") / f"raysrec-{os.getpid()}")}


def events(run, kind):
    lines = (run.path / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def kill_when(process, condition, within_s):
    """Kill the process and all it started as soon as the condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not get far enough to be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_after_an_epoch_and_started_again_equals_never_killed(tmp_path):
    subprocess.run(command_of(tmp_path, "whole"), env=environment(), check=True, capture_output=True, timeout=250)
    command = command_of(tmp_path, "killed")
    run, whole = (RunDirectory(tmp_path / "runs" / name) for name in ("killed", "whole"))

    process = subprocess.Popen(command, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
    kill_when(process, (run.path / "checkpoints" / "epoch_00002" / "state.json").exists, within_s=200)
    assert not run.metrics_file.exists()
    steps_before = len(events(run, "step"))

    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=250)
    assert json.loads(run.metrics_file.read_text())["splits"] == json.loads(whole.metrics_file.read_text())["splits"]
    assert min(event["epoch"] for event in events(run, "step")[steps_before:]) > 1
    # What lay in the mailbox when the driver was killed is lost from the log, and from nothing else.
    assert {3, 4} <= {event["epoch"] for event in events(run, "validation")}


def test_a_run_is_ranked_again_by_its_command_on_more_workers_than_trained_it(tmp_path):
    subprocess.run(command_of(tmp_path, "run"), env=environment(), check=True, capture_output=True, timeout=250)
    run = RunDirectory(tmp_path / "runs" / "run")
    before = json.loads(run.metrics_file.read_text())
    command = [sys.executable, "-m", "raysrec.evaluate", str(run.path)]
    subprocess.run([*command, "scale.workers=4"], env=environment(), check=True, capture_output=True, timeout=250)
    assert json.loads(run.metrics_file.read_text()) == before

    refused = subprocess.run(
        [*command, "train.epochs=9"], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: train.epochs=9: the run is trained; only evaluate.* and scale.*")
