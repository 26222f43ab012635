"""What a cluster's autoscaler may start, as far as that can be read on this machine.

The cluster itself does not know. Where `ray up` made it, the autoscaler is a process of the head that names the file of
its settings; under KubeRay it reads them from Kubernetes, and so does this.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from raysrec.cluster.placement import ToCome

logger = logging.getLogger(__name__)

PROCESSES = Path("/proc")

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where Kubernetes tells a pod in which namespace it is."""

NOTHING: Mapping[str, Any] = {"max_workers": 0, "available_node_types": {}}
"""Settings of a cluster that does not grow."""


def to_come() -> ToCome | None:
    """What may come besides the machines there are; None where this machine cannot tell. Call inside `ray_session`."""
    import ray

    settings = _of_process(ray.get_runtime_context().gcs_address) or _of_kuberay()
    if settings is None:
        return None
    alive = [node for node in ray.nodes() if node["Alive"]]
    workers = [node["Labels"] for node in alive if "node:__internal_head__" not in node["Resources"]]
    return ToCome.of(settings, [labels.get("ray.io/node-group", "") for labels in workers])


def _of_process(address: str) -> Mapping[str, Any] | None:
    """Settings of the autoscaler that runs on this machine for the cluster at this address; None if none does."""
    for words in _command_lines():
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        is_autoscaler = any(word.endswith("/monitor.py") for word in words)
        if not is_autoscaler or options.get("--gcs-address") != address:
            continue
        if "--autoscaling-config" not in options:
            return NOTHING
        try:
            settings: Mapping[str, Any] = yaml.safe_load(Path(options["--autoscaling-config"]).read_text())
        except (OSError, yaml.YAMLError) as error:
            logger.warning("what the autoscaler may start cannot be read: %s", error)
            return None
        return settings
    return None


def _command_lines() -> Iterator[list[str]]:
    for file in PROCESSES.glob("[0-9]*/cmdline"):
        try:
            yield file.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended, or is another user's


def _of_kuberay() -> Mapping[str, Any] | None:
    """The same of the RayCluster that this pod belongs to; None if this is no pod of one, or may not ask."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not NAMESPACE.is_file():
        return None
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        cluster = KubernetesHttpApiClient(NAMESPACE.read_text().strip()).get(f"rayclusters/{name}")
    except OSError as error:  # as all errors of requests are
        logger.warning("what the autoscaler may start cannot be asked of Kubernetes: %s", error)
        return None
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return NOTHING
    settings: Mapping[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)
    return settings
