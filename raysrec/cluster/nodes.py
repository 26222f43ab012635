"""Whether every machine of a cluster can do its part of a run: it has the same versions and sees the same folders.

Machines that start while a run waits for them are asked when it has waited; those that come later are looked at when a
worker starts on them.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raysrec.cluster.autoscaler import to_come
from raysrec.cluster.bundles import Need, need_to_prepare
from raysrec.cluster.placement import task_options
from raysrec.cluster.resources import machines, wait_for_room
from raysrec.cluster.runtime import ClusterError, in_cluster, job_folder
from raysrec.cluster.versions import differences, look_around, versions_here
from raysrec.config import ScaleConfig
from raysrec.config.run import RunConfig
from raysrec.errors import unwrapped
from raysrec.place import AnyPath, Place

ANSWER_S = 120.0
"""Seconds in which a machine must answer; a first worker on it has to be started and imports much."""

_print_at_once = partial(print, flush=True)

MACHINES_SAID = 3
"""Machines of which it is said what is wrong; more would say the same."""


def check_nodes(
    places: Sequence[Place], *, known: Collection[str] = (), say: Callable[[str], None] = _print_at_once
) -> set[str]:
    """Ask every machine of the cluster for its versions, and whether it sees these places; call in `ray_session`.

    Args:
        places: Those that workers read and write.
        known: Machines that were asked before, by Ray's names for them: what this returned then.
        say: Is told which machines did not answer; what they lack is found when a worker starts on them.

    Returns:
        Those that have been asked by now.

    Raises:
        ClusterError: A machine has other versions, cannot import raysrec, or does not see a place.
    """
    if not in_cluster():
        return set()
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folders = [str(place.absolute()) for place in places if place.is_local]
    task = ray.remote(num_cpus=0, max_retries=0)(look_around)
    there = _alive()
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(folders): node
        for node in there.keys() - set(known)
    }
    if not asked:
        return set(there)
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    if silent:
        say(f"{_some(there[asked[one]] for one in silent)} did not answer within {ANSWER_S:g} seconds; going on")
    answers = {asked[one]: _answer(one) for one in ready}
    # A machine may be taken away meanwhile; what it did not answer is no fault of it.
    remaining = _alive()
    refuse({there[node]: answer for node, answer in answers.items() if node in remaining or "failed" not in answer})
    return set(there)


def wait_for_nodes(places: Sequence[Place], need: Need, *, keep: bool = False) -> Any:
    """Return when the cluster has room, on machines that can do their part: those there are, and those that come.

    Call inside `ray_session`.

    Args:
        places: What workers read and write.
        need: For what there has to be room, and for how long to wait.
        keep: Hold the room.

    Returns:
        What `give_back` is to be called with if it is kept.

    Raises:
        ClusterError: The cluster came to have no room, or a machine cannot do its part.
    """
    asked = check_nodes(places)
    room = wait_for_room(need, keep=keep)
    check_nodes(places, known=asked)
    return room


def wait_for_data_nodes(places: Sequence[Place], scale: ScaleConfig) -> dict[str, Any]:
    """Return when the cluster has room for tasks that prepare data, on machines that can do their part.

    Call inside `ray_session`.

    Args:
        places: What tasks read and write.
        scale: On which machines, and for how long to wait.

    Returns:
        What each task is to ask Ray for.

    Raises:
        ClusterError: The cluster came to have no room, or a machine cannot do its part.
    """
    if in_cluster():
        wait_for_nodes(places, need_to_prepare(scale))
    return task_options(scale, machines(), to_come())


def refuse(answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse machines, given by their addresses, that cannot do their part.

    Raises:
        ClusterError: Some cannot.
    """
    here = versions_here()
    failed = {node: answer["failed"] for node, answer in answers.items() if "failed" in answer}
    if failed:
        reason = next(iter(failed.values()))
        raise ClusterError(f"raysrec does not run on {_some(failed)}: {reason}; {_SAME}")
    others = {node: differences(here, answer["versions"]) for node, answer in answers.items()}
    if others := {node: found for node, found in others.items() if found}:
        found = ", ".join(next(iter(others.values())))
        raise ClusterError(f"other versions on {_some(others)}: {found}; {_SAME}")
    blind = {node: answer["unseen"] for node, answer in answers.items() if answer["unseen"]}
    if blind:
        folder = next(iter(blind.values()))[0]
        raise ClusterError(
            f"{folder} is not there on {_some(blind)}; keep what is read and written (data.source, data.prepared, "
            "storage.root, --output) where all machines reach it: in a store (s3://…), or in a file system that they "
            "share"
        )


_SAME = "install the same everywhere (constraints.txt has the versions), or use one image for all (cluster/Dockerfile)"


def refuse_other_versions(expected: Mapping[str, str]) -> None:
    """Refuse to work where this process has other versions than the driver.

    Raises:
        ClusterError: It has others.
    """
    if found := differences(expected, versions_here()):
        raise ClusterError(
            f"other versions on {os.uname().nodename} than where the run was started: {', '.join(found)}; {_SAME}"
        )


def refuse_fleeting(config: RunConfig) -> None:
    """Refuse a submitted job that would write into the folder which Ray unpacked for it.

    Raises:
        ClusterError: What it writes would go with the job.
    """
    refuse_in_job_folder("storage.root", config.storage.root)
    refuse_in_job_folder("data.prepared", config.data.prepared)


def refuse_in_job_folder(key: str, given: AnyPath) -> None:
    """The same for one place.

    Args:
        key: What it is called on the command line.
        given: The place.

    Raises:
        ClusterError: What is written there would go with the job.
    """
    folder, place = job_folder(), Place.of(given)
    if folder and place.is_local and Path(place.absolute().path).is_relative_to(folder):
        raise ClusterError(
            f"{key}={given}: lies in the folder which Ray unpacked for this job and throws away with it; name "
            f"one that lasts and that all machines reach, such as {key}=s3://bucket/folder or {key}=/shared/folder"
        )


def _alive() -> dict[str, str]:
    """The address of each machine, by Ray's name for it."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _answer(reference: Any) -> dict[str, Any]:
    import ray

    try:
        return dict(ray.get(reference))
    except ray.exceptions.RayError as error:
        lines = [line for line in str(list(unwrapped(error))[-1]).splitlines() if line.strip()]
        return {"failed": lines[-1].strip() if lines else type(error).__name__}


def _some(nodes: Iterable[str]) -> str:
    found = sorted(set(nodes))
    more = f" and {len(found) - MACHINES_SAID} more" if len(found) > MACHINES_SAID else ""
    return ", ".join(found[:MACHINES_SAID]) + more
