"""On which nodes of a real Ray the parts of a run are, and that work goes on on those that come."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from clusters import NODE, Seen, cluster_of

from raysrec.cluster.nodes import wait_for_data_nodes
from raysrec.config import ScaleConfig
from raysrec.config.loading import validate
from raysrec.tasks import run_with_ray
from raysrec.tracking.progress import stage
from raysrec.train import train

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(800)]

WAIT_S = 240

SCALE = {
    "workers": 2,
    "device": "cpu",
    "threads_per_worker": 1,
    "placement": "spread",
    "resources_per_worker": {"gpu": 0.001},
    "data_resources": {"data": 0.001},
}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, two nodes that stand for machines with a GPU, and one for data."""
    training, data = {"num_cpus": 1, "resources": {"gpu": 1000}}, {"num_cpus": 2, "resources": {"data": 1000}}
    with cluster_of(training, training, data, head_cpus=0) as found:
        yield found


@pytest.fixture
def nodes(cluster, monkeypatch):
    """The nodes by their kind, in a cluster that knows itself as one."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    kinds = {"head": [cluster.head_node], "gpu": [], "data": []}
    for node in cluster.worker_nodes:
        kinds["gpu" if "gpu" in node.get_resource_and_label_spec().resources else "data"].append(node)
    return kinds


def test_workers_train_on_some_nodes_and_others_prepare_read_validate_and_rank(nodes, tmp_path):
    config = validate(
        {
            "data": {
                "synthetic": {"num_users": 401, "num_items": 50, "mean_length": 15},
                "num_streams": 2,
                "prepared": str(tmp_path / "prepared"),
                "distributed": True,
            },
            "model": {"name": "recgrela", "dim": 16, "num_blocks": 1, "max_length": 20},
            "train": {"epochs": 3, "batch_targets": 512, "validate_every": 1},
            "evaluate": {"concurrent": True},
            "engine": {"name": "torch"},
            "scale": SCALE,
            "storage": {"root": str(tmp_path / "runs"), "name": "placed"},
        }
    )
    with Seen(nodes) as seen:
        run = train(config)
    assert json.loads(run.metrics_file.read_text())["splits"]["test"]["users"] > 0
    assert seen.on("RayTrainWorker") == {"gpu"}
    assert seen.on("(_Task)") == {"data"}  # prepares
    assert seen.on("(read_unit)") == {"data"}
    assert seen.on("(_Actor)") == {"data"}  # validates and ranks


def test_a_stage_goes_on_on_nodes_that_come_while_it_is_done(cluster, nodes, tmp_path):
    def meet(number, count):
        """Wait for so many tasks that are done at the same time."""
        (tmp_path / f"{number}").touch()
        deadline = time.monotonic() + WAIT_S
        while len(list(tmp_path.iterdir())) < count:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield number

    there = 2 + 2  # CPUs, of which tasks may have the latter
    work = [(number, there + 1) for number in range(there + 1)]
    options = wait_for_data_nodes([], ScaleConfig.model_validate(SCALE))
    results = run_with_ray("meeting", meet, work, bar=partial(stage, say=print), options=options)
    with ThreadPoolExecutor(1) as thread:  # a node is started in the main one
        done = thread.submit(list, results)
        list(meet(0, 2))
        cluster.add_node(**NODE, num_cpus=3, resources={"data": 1000})
        assert done.result(WAIT_S) == list(range(there + 1))
