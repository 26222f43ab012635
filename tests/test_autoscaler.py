"""Where the settings of an autoscaler are found; stand-ins answer for Ray and for Kubernetes."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from raysrec.cluster import autoscaler as module
from raysrec.cluster.autoscaler import to_come
from raysrec.cluster.placement import ToCome

CLUSTER = Path(__file__).parent.parent / "cluster"
HEAD = {"Alive": True, "Resources": {"node:__internal_head__": 1.0}, "Labels": {"ray.io/node-group": "head"}}
GPU = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}, "Labels": {"ray.io/node-group": "gpu"}}


@pytest.fixture
def autoscaler(tmp_path, monkeypatch):
    """Stands in for the machines of a cluster, and for the process on the head with these options."""
    stand_in = SimpleNamespace(
        get_runtime_context=lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"),
        nodes=lambda: [HEAD, GPU, GPU | {"Alive": False}],
    )
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.setattr(module, "PROCESSES", tmp_path)
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)

    def started(*options):
        words = ["/venv/bin/python", "-u", "/venv/ray/autoscaler/v2/monitor.py", "--logs-dir=/tmp/a", *options]
        (tmp_path / "7").mkdir()
        (tmp_path / "7/cmdline").write_bytes("\0".join([*words, ""]).encode())

    return started


def test_on_the_head_it_is_what_ray_up_wrote_less_what_is_there(autoscaler):
    autoscaler("--gcs-address=10.0.0.1:6379", f"--autoscaling-config={CLUSTER}/aws.yaml")
    found = to_come()
    assert str(found) == "8 data, 7 gpu"
    assert found.kinds["gpu"] == (7, {"CPU": 8, "GPU": 1})


def test_a_head_without_an_autoscaler_gets_no_machines(autoscaler):
    autoscaler("--gcs-address=10.0.0.1:6379")
    assert to_come() == ToCome({}, 0)


@pytest.mark.parametrize(
    "options",
    [
        ("--gcs-address=10.0.0.2:6379", f"--autoscaling-config={CLUSTER}/aws.yaml"),  # of another cluster
        ("--gcs-address=10.0.0.1:6379", "--autoscaling-config=/nowhere.yaml"),
    ],
)
def test_elsewhere_it_is_not_known(autoscaler, options):
    autoscaler(*options)
    assert to_come() is None


def test_a_pod_asks_kubernetes(monkeypatch, tmp_path):
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    asked = []
    cluster = yaml.safe_load((CLUSTER / "raycluster.yaml").read_text())
    cluster["metadata"]["namespace"] = "ours"

    def get(client, path):
        asked.append((client._namespace, path))
        if path.endswith("/other"):
            raise ConnectionError("403: other may not be asked for")
        return cluster

    monkeypatch.setattr(
        KubernetesHttpApiClient, "__init__", lambda self, namespace: vars(self).update(_namespace=namespace)
    )
    monkeypatch.setattr(KubernetesHttpApiClient, "get", get)
    (tmp_path / "namespace").write_text("ours\n")
    monkeypatch.setattr(module, "NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "raysrec")
    assert str(ToCome.of(module._of_kuberay(), ["gpu-spot"])) == "8 data, 7 gpu-spot, 8 gpu-on-demand"
    cluster["spec"]["enableInTreeAutoscaling"] = False
    assert module._of_kuberay() == module.NOTHING
    monkeypatch.setenv("RAY_CLUSTER_NAME", "other")
    assert module._of_kuberay() is None
    assert asked == [("ours", "rayclusters/raysrec")] * 2 + [("ours", "rayclusters/other")]
