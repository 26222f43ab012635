"""A Ray of several nodes, which are processes of this machine, and what is done on each."""

import os
import threading
from collections import defaultdict
from contextlib import contextmanager

import psutil
import pytest

from raysrec.cluster.runtime import SETTINGS

NODE = {"object_store_memory": 10**8}


@contextmanager
def cluster_of(*nodes, head_cpus):
    """A head for the driver, which is this process, and nodes with what each is given besides."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (SETTINGS | {"RAY_AUTH_MODE": "disabled"}).items():
            environment.setenv(name, value)
        environment.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
        environment.setenv("RAY_TMPDIR", os.environ.get("RAY_TMPDIR", f"/tmp/raysrec-{os.getpid()}"))
        # Not before: Ray takes its settings when it is imported.
        import ray
        from ray.cluster_utils import Cluster

        # A node that is gone is noticed in seconds.
        settings = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        head = {"num_cpus": head_cpus, "_system_config": settings, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=NODE | head)
        try:
            for node in nodes:
                cluster.add_node(**NODE | node)
            variables = {name: os.environ[name] for name in SETTINGS}
            ray.init(
                address=cluster.address, runtime_env={"env_vars": variables}, logging_level="ERROR", log_to_driver=False
            )
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


class Seen:
    """What processes of Ray called themselves (`ray::MapBatches(read_unit)`), by the kind of node they ran on.

    It is looked at all the time; what takes less than some hundredths of a second may be missed.
    """

    def __init__(self, nodes):
        self.titles = defaultdict(set)
        self._raylets = {kind: [_raylet(node) for node in some] for kind, some in nodes.items()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def on(self, part):
        """Kinds of nodes on which there was a process with this in its name."""
        return {kind for kind, titles in self.titles.items() if any(part in title for title in titles)}

    def _look(self):
        while not self._over.wait(0.01):
            for kind, raylets in self._raylets.items():
                for process in (child for raylet in raylets for child in raylet.children()):
                    try:
                        title = process.cmdline()[:1]
                    except psutil.Error:
                        continue  # it has just ended
                    self.titles[kind].update(one for one in title if one.startswith("ray::"))


def _raylet(node):
    return psutil.Process(node.all_processes["raylet"][0].process.pid)
