"""A real autoscaler, whose nodes are processes of this machine: they come for a training, and go after it.

The training is a command in a process of its own, as a user's is; this process only looks on. It takes four and a half
minutes on two cores with nothing beside it, too long for every check:

    python -m pytest tests/autoscaled_runs.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from test_jobs import free_port

from raysrec.runtime import LOCAL_SETTINGS, SETTINGS

HEAD_CPUS = 2

SETTING = {
    "data": {"synthetic": {"num_users": 401, "num_items": 50, "mean_length": 15}, "num_streams": 3},
    "model": {"name": "recgrela", "dim": 16, "num_blocks": 1, "max_length": 20},
    "train": {"epochs": 80, "batch_targets": 512, "learning_rate": 0.01, "patience": 100, "validate_every": 40},
    "engine": {"name": "torch"},
    "scale": {"workers": {"min": 2, "max": 3}, "threads_per_worker": 1, "device": "cpu"},
}

# `python -m raysrec.train`, which looks for room every two seconds rather than every minute.
COMMAND = """
from raysrec import resources, train
from raysrec.command_line import run_verb
train.RESIZE_CHECK_S, resources.SAY_EVERY_S = 2.0, 2
run_verb(train.main, train._parser())
"""


def autoscaling(address):
    """What `ray up` would write for the head: up to four nodes with a CPU each, which go after some idle seconds."""
    none = ("setup_commands", "initialization_commands", "head_setup_commands", "worker_setup_commands")
    none += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude")
    return {
        "cluster_name": "fake",
        "max_workers": 4,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.4,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        # The provider knows the head by this name alone.
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": HEAD_CPUS}, "node_config": {}, "max_workers": 0},
            "cpu": {
                "resources": {"CPU": 1, "object_store_memory": 10**8},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 4,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "rsync_filter": [],
        **{name: [] for name in none},
    }


class Nodes:
    """How many nodes there are, and were."""

    def __init__(self, address):
        self.address, self.counts = address, [1]
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        from ray._raylet import GcsClient

        client = GcsClient(address=self.address)
        while not self._gone.wait(0.5):
            count = sum(node.state == 0 for node in client.get_all_node_info(timeout=10).values())
            if count != self.counts[-1]:
                self.counts.append(count)

    def until(self, count, within_s=120):
        deadline = time.monotonic() + within_s
        while self.counts[-1] != count:
            assert self._thread.is_alive()
            assert time.monotonic() < deadline, self.counts
            time.sleep(0.2)

    def stop(self):
        self._gone.set()
        self._thread.join()


@pytest.fixture
def environment(monkeypatch):
    """Of the cluster and of the command."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    for name, value in (SETTINGS | LOCAL_SETTINGS).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def nodes(environment):
    """The nodes of a cluster that starts here as a head alone, and ends with the test."""
    # Not with Ray's own helper: that stops every Ray of this machine.
    folder = Path(tempfile.mkdtemp(prefix="raysrec-nodes-", dir="/tmp"))
    address = f"127.0.0.1:{free_port()}"
    (folder / "autoscaling.json").write_text(json.dumps(autoscaling(address)))
    options = {
        "autoscaling-config": folder / "autoscaling.json",
        "node-ip-address": "127.0.0.1",
        "port": address.rpartition(":")[2],
        "ray-client-server-port": free_port(),
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": HEAD_CPUS,
        "object-store-memory": 10**8,
        "include-dashboard": "false",
        "temp-dir": folder,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--{name}={value}" for name, value in options.items()]
    settings = os.environ | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=settings, cwd="/", stdout=log, stderr=log, start_new_session=True)
    found = None
    try:
        deadline = time.monotonic() + 240
        while "Ray runtime started" not in (folder / "log").read_text():
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        found = Nodes(address)
        yield found
    finally:
        if found:
            found.stop()
        processes = psutil.Process(head.pid).children(recursive=True)
        os.killpg(head.pid, signal.SIGKILL)
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_come_for_a_training_which_grows_with_them_and_go_after_it(nodes, tmp_path):
    setting = SETTING | {"storage": {"root": str(tmp_path / "runs"), "name": "run"}}
    setting["data"] = setting["data"] | {"prepared": str(tmp_path / "prepared")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(setting))
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "--config", tmp_path / "config.yaml"],
        env=os.environ | {"RAY_ADDRESS": nodes.address}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/run/metrics.json").is_file()
    log = (tmp_path / "runs/run/log.jsonl").read_text()
    events = [json.loads(line) for line in log.splitlines()]

    # Two workers and reading have no room on the head, and who waits is told.
    assert "the cluster has 2 CPUs (2 free)" in done.stdout
    assert "but 2 workers and reading need 2.5 CPUs; waiting up to 5" in done.stdout
    # Beside reading there is room for two workers when they start. A node comes for the third, on a very slow machine
    # before they start.
    workers = [event["workers"] for event in events if event["kind"] == "start"]
    assert workers[0] in (2, 3), log
    assert workers[-1] == 3, log
    if workers[0] == 2:
        assert "workers 0, 1: there is room for another number of workers" in log
    assert nodes.counts[0] == 1
    assert max(nodes.counts) >= 3
    nodes.until(1)
