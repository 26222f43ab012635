"""Ray's two real autoscalers, whose nodes are processes of this machine: they come for a run, and go after it.

`ray up` and KubeRay start the second one (v2). The run is commands in processes of their own, as a user's are; this
process only looks on.
"""

import json
import os
import re
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

from raysrec.cluster.runtime import LOCAL_SETTINGS, SETTINGS
from raysrec.config.settings import overlay

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1800)]

HEAD_CPUS = 2
HEAD_ID = "f" * 51 + "00000"
"""Of the head, as the provider of nodes has it; a node's own is as long."""

# A training long enough for nodes to come and be used before it ends.
SETTING = {
    "data": {"synthetic": {"num_users": 4001, "num_items": 50, "mean_length": 15}, "num_streams": 3},
    "model": {"name": "recgrela", "dim": 16, "num_blocks": 1, "max_length": 20},
    "train": {"epochs": 24, "batch_targets": 2048, "learning_rate": 0.01, "patience": 100, "validate_every": 12},
    "engine": {"name": "torch"},
    "scale": {"workers": {"min": 1, "max": 3}, "threads_per_worker": 1, "device": "cpu"},
}

# `python -m raysrec.…`, which looks for room every two seconds rather than every half minute and every minute.
TRAIN = """
from raysrec.cluster import resources
from raysrec import train
from raysrec.command_line import run_verb
from raysrec.training import driver
driver.RESIZE_CHECK_S, resources.SAY_EVERY_S = 2.0, 2
run_verb(train.main, train.parser())
"""
PREPARE = """
from raysrec import prepare
from raysrec.cluster import resources
from raysrec.command_line import run_verb
resources.SAY_EVERY_S = 2
run_verb(prepare.main, prepare.parser())
"""

V2 = {
    "type": "external",
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "launch_multiple": True,
    "head_node_id": HEAD_ID,
}
ENVIRONMENT_OF_V2 = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
}


def autoscaling(address, version):
    """What `ray up` would write for the head: up to four small nodes of two kinds, which go after some idle seconds."""
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
            **(V2 if version == "v2" else {}),
        },
        # The provider knows the head by this name alone.
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": HEAD_CPUS}, "node_config": {}, "max_workers": 0},
            "cpu": nodes_with({"CPU": 1}, at_most=3),
            "data": nodes_with({"CPU": 2, "data": 1000}, at_most=1),
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "rsync_filter": [],
        **{name: [] for name in none},
    }


def nodes_with(resources, *, at_most):
    resources = resources | {"object_store_memory": 10**8}
    return {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": at_most}


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

    def until(self, count, within_s=240):
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


@pytest.fixture(params=["v1", "v2"])
def nodes(environment, request):
    """The nodes of a cluster that starts here as a head alone, and ends with the test."""
    # Not with Ray's own helper: that stops every Ray of this machine.
    folder = Path(tempfile.mkdtemp(prefix="raysrec-nodes-", dir="/tmp"))
    address = f"127.0.0.1:{free_port()}"
    (folder / "autoscaling.json").write_text(json.dumps(autoscaling(address, request.param)))
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
    settings |= {"RAY_enable_autoscaler_v2": "0"} if request.param == "v1" else ENVIRONMENT_OF_V2
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=settings, cwd="/", stdout=log, stderr=log, start_new_session=True)
    found = None
    try:
        deadline = time.monotonic() + 240
        while "Ray runtime started" not in (folder / "log").read_text():
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        started = [process.as_dict(["cmdline"]) for process in psutil.Process(head.pid).children(recursive=True)]
        [autoscaler] = [part for one in started for part in one["cmdline"] or [] if part.endswith("/monitor.py")]
        assert ("/v2/" in autoscaler) == (request.param == "v2")
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


@pytest.fixture
def run(nodes, tmp_path):
    """Runs a verb with these settings on the cluster, and returns what it said."""

    def command(script, settings, within_s):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        done = subprocess.run(
            [sys.executable, "-c", script, "--config", tmp_path / "config.yaml"],
            env=os.environ | {"RAY_ADDRESS": nodes.address}, capture_output=True, text=True, timeout=within_s,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return command


def test_nodes_come_for_a_training_that_has_begun_and_for_preparing_and_go_after_it(nodes, run, tmp_path):
    places = {"storage": {"root": str(tmp_path / "runs"), "name": "run"}, "data": {"prepared": str(tmp_path / "data")}}
    run(TRAIN, overlay(SETTING, places), within_s=900)
    log = (tmp_path / "runs/run/log.jsonl").read_text()
    workers = [event["workers"] for event in map(json.loads, log.splitlines()) if event["kind"] == "start"]
    # It begins with what is there: the head has two CPUs, of which reading needs half a one.
    assert workers[0] == 1, log
    assert workers[-1] == 3, log
    assert ": there is room for another number of workers" in log
    assert (tmp_path / "runs/run/metrics.json").is_file()
    assert nodes.counts[0] == 1
    assert max(nodes.counts) >= 3
    nodes.until(1)

    # Nobody has what tasks need, and who waits is told.
    there = len(nodes.counts)
    tasks = overlay(places, {"data": {"distributed": True, "prepared": str(tmp_path / "again")}})
    tasks = overlay(tasks, {"scale": {"data_resources": {"data": 0.001}}})
    said = run(PREPARE, overlay(SETTING, tasks), within_s=400)
    needs = r"but preparing and reading need 1\.5 CPUs and 0\.002 data; waiting up to"
    assert re.search(rf"has 2 CPUs \(2 free\) .* and 0 data \(0 free\), {needs}", said), said
    assert max(nodes.counts[there:]) >= 2
    [again], [first] = ([path.name for path in (tmp_path / name).iterdir()] for name in ("again", "data"))
    assert again == first  # the same fingerprint
    nodes.until(1)
