"""A real Ray of several nodes on which workers die, stall and are asked to leave, and nodes go: nothing is lost.

It takes some ten minutes on two cores.
"""

import json
import signal
import threading
import time

import psutil
import pytest
from clusters import NODE, cluster_of
from test_loop import start

from raysrec.checkpoints import Checkpoints
from raysrec.config.loading import validate
from raysrec.config.settings import nest, overlay
from raysrec.run_directory import RunDirectory, RunError
from raysrec.train import train

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(800)]

WAIT_S = 240
BEGAN = time.monotonic()

BASE = {
    "data": {"synthetic": {"num_users": 401, "num_items": 50, "mean_length": 15}, "num_streams": 2},
    "model": {"name": "recgrela", "dim": 16, "num_blocks": 1, "max_length": 20},
    "train": {"epochs": 60, "batch_targets": 512, "learning_rate": 0.01, "patience": 100, "validate_every": 20},
    "scale": {"workers": 2, "threads_per_worker": 1, "stalled_after_s": 30},
    "checkpoint": {"every_steps": 5},
}


@pytest.fixture(scope="module")
def cluster():
    """A head for the driver, and two nodes that have room for a worker each."""
    with cluster_of({"num_cpus": 1}, {"num_cpus": 1}, head_cpus=1) as found:
        yield found


def configure(folder, name, **changes):
    settings = overlay(BASE, {"storage": {"root": str(folder / "runs"), "name": name}})
    settings = overlay(settings, nest("data.prepared", str(folder / "prepared")))
    for key, value in changes.items():
        settings = overlay(settings, nest(key.replace("__", "."), value))
    return validate(settings)


class Running:
    """A training in a thread, whose workers can be found."""

    def __init__(self, config):
        self.run = RunDirectory(config.run_directory)
        self.checkpoints = Checkpoints(self.run.checkpoints)
        self.error = None
        self._thread = threading.Thread(target=self._train, args=(config,), daemon=True)
        self._thread.start()

    def _train(self, config):
        try:
            train(config)
        except Exception as error:
            self.error = error

    def step(self):
        """The step of the newest checkpoint."""
        names = self.checkpoints.names()
        return int(names[0][5:13]) if names else 0

    def until_saved_after(self, step):
        until(lambda: self.step() > step or not self._thread.is_alive())
        assert self._thread.is_alive(), self.error
        return self.step()

    def until_workers(self, count=2, others_than=()):
        until(lambda: len(set(worker_processes()) - set(others_than)) == count)
        return worker_processes()

    def finish(self):
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def starts_after(self, count):
        """On how many workers training went on last, if more often than so many times."""
        starts = self.events("start")
        return starts[-1]["workers"] if len(starts) > count else 0

    def events(self, kind):
        file = self.run.path.local / "log.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [event for event in map(json.loads, lines) if event["kind"] == kind]


def say(text):
    """What happens when, for `pytest -s`."""
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker_processes():
    """The training workers of this process's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::RayTrainWo") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # it has just ended
    return sorted(found, key=lambda process: process.pid)


def node_of_a_worker(cluster):
    """A node, not the head, on which training is done; another may only read, and nobody would miss it."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    return next(raylets[worker.ppid()] for worker in worker_processes() if worker.ppid() in raylets)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The best validation score of a training that nothing happens to, in this process."""
    log = start(configure(folder, "undisturbed"), folder / "undisturbed")
    return max(scores["ndcg@10"] for scores in log.scores)


def test_whatever_happens_to_workers_and_nodes_the_run_ends_as_if_nothing_had(cluster, folder, undisturbed):
    training = Running(configure(folder, "disturbed"))

    def struck(strike):
        """Do something to a worker after a checkpoint, and wait until others have gone on beyond it."""
        step = training.until_saved_after(training.step())
        victims = training.until_workers()
        say(f"{strike.__name__} after step {step}")
        strike(victims[-1])
        training.until_saved_after(training.step())
        until(lambda: training.step() > step + 10)
        say(f"gone on to step {training.step()}")

    def node_is_lost(process):
        cluster.remove_node(node_of_a_worker(cluster), allow_graceful=False)
        cluster.add_node(**NODE, num_cpus=1)

    def killed(process):
        process.send_signal(signal.SIGKILL)

    def asked_to_leave(process):
        process.send_signal(signal.SIGTERM)

    def stalled(process):
        process.send_signal(signal.SIGSTOP)

    struck(killed)
    struck(asked_to_leave)
    struck(stalled)
    struck(node_is_lost)
    training.finish()
    assert training.error is None
    record = json.loads((training.run.path.local / "metrics.json").read_text())
    assert record["splits"]["validation"]["model"]["ndcg@10"]["mean"] == pytest.approx(undisturbed, abs=1e-6)
    assert len(record["training"]["restarts"]) >= 8  # why, and where training went on
    said = [event["text"] for event in training.events("failure")]
    assert len(said) >= 4  # on a slow machine one strike may look like two
    assert any("about to be taken away" in text for text in said)
    starts = training.events("start")
    assert {event["workers"] for event in starts} == {2}
    assert len(starts) >= 5
    assert all(event["step"] > 0 for event in starts[1:])


def test_workers_come_and_go_with_nodes(cluster, folder, undisturbed, monkeypatch):
    monkeypatch.setattr("raysrec.training.driver.RESIZE_CHECK_S", 2.0)
    training = Running(configure(folder, "elastic", scale__workers={"min": 1, "max": 2}))

    def until_on(workers, after):
        until(lambda: training.starts_after(after) == workers)
        training.until_saved_after(training.step())
        say(f"{workers} workers have gone on to step {training.step()}")
        return len(training.events("start"))

    seen = until_on(2, 0)
    cluster.remove_node(node_of_a_worker(cluster), allow_graceful=False)
    seen = until_on(1, seen)
    cluster.add_node(**NODE, num_cpus=1)
    seen = until_on(2, seen)
    cluster.add_node(**NODE, num_cpus=1)
    drain(cluster, node_of_a_worker(cluster))
    seen = until_on(2, seen)
    training.finish()
    assert training.error is None
    record = json.loads((training.run.path.local / "metrics.json").read_text())
    assert record["splits"]["validation"]["model"]["ndcg@10"]["mean"] == pytest.approx(undisturbed, abs=1e-6)
    assert any("about to be taken away" in event["text"] for event in training.events("failure"))


def drain(cluster, node, within_s=60):
    """What a cluster's autoscaler says when the machine of a node is about to be taken away."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    gcs = GcsClient(address=cluster.address)
    assert gcs.drain_node(node.node_id, reason, "a spot machine", int(1000 * (time.time() + within_s)))[0]


def test_what_would_only_happen_again_ends_the_run_and_says_why(cluster, folder):
    with pytest.raises(RunError, match=r"diverged: step \d+, in epoch \d+: the loss is not finite; worker \d"):
        train(configure(folder, "diverged", train__learning_rate=1e30, engine={"name": "torch"}))
