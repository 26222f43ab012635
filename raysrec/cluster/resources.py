"""What a cluster must have for a run, and the wait for it."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from raysrec.cluster.autoscaler import to_come
from raysrec.cluster.bundles import Need, name_of, total
from raysrec.cluster.placement import never_fits, room_in_words
from raysrec.cluster.runtime import ClusterError, in_cluster, wants_gpu
from raysrec.config import ScaleConfig

SAY_EVERY_S = 30
"""Seconds between two lines that say what is missing."""


_print_at_once = partial(print, flush=True)


def wait_for_room(need: Need, *, keep: bool = False, say: Callable[[str], None] = _print_at_once) -> Any:
    """Return when the cluster has room for some work.

    The room is asked for as a run asks for it, so that an autoscaler starts nodes. A Ray that starts here has all it
    will ever have, and is not waited for. Call inside `ray_session`.

    Args:
        need: What has to be free, and for how long to wait.
        keep: Hold it, so that an autoscaler takes no node that has come for idle.
        say: Is told now and then what is missing.

    Returns:
        What `give_back` is to be called with if it is kept.

    Raises:
        ClusterError: The cluster came to have no room within `scale.wait_s`, or never will.
    """
    import ray.util

    scale = need.scale
    if need.trains:
        _refuse_to_starve_reading(scale)
    if not in_cluster():
        if missing := _lacks(need, free=False):
            raise ClusterError("; ".join(filter(None, [missing, need.less])))
        return None
    if need.trains:
        _refuse_what_never_fits(scale)
    room = ray.util.placement_group(list(need.bundles), strategy=scale.placement.upper())
    said = time.monotonic()
    deadline = said + scale.wait_s
    try:
        # Signals wait while Ray waits, and it waits for whole seconds.
        while not room.wait(1):
            left = deadline - time.monotonic()
            if left > 0 and time.monotonic() < said + SAY_EVERY_S:
                continue
            said = time.monotonic()
            missing = _lacks(need, free=True) or "the cluster has enough in all, but no node with room for a worker"
            if left <= 0:
                instead = ", ".join(filter(None, ["add nodes", need.less, "or wait longer"]))
                raise ClusterError(
                    f"{missing}; that has not changed within scale.wait_s={scale.wait_s:g} seconds: {instead}"
                )
            say(f"{missing}; waiting up to {left:.0f} seconds more for nodes")
    except BaseException:
        give_back(room)
        raise
    if keep:
        return room
    give_back(room)
    return None


def give_back(room: Any) -> None:
    """Let others have the room that was kept; nothing if none was, or if it was given back before."""
    import ray.util

    if room is not None:
        ray.util.remove_placement_group(room)


def _refuse_to_starve_reading(scale: ScaleConfig) -> None:
    """Seen: two workers filled the only machine on which data could be read, and both waited for ever."""
    could_meet = in_cluster() and scale.data_resources and not scale.resources_per_worker
    if could_meet and scale.device != "cuda" and (scale.device == "cpu" or not wants_gpu(scale)):
        raise ClusterError(
            f"scale.data_resources={scale.data_resources}: workers without GPUs may fill the machines that have it, "
            "and then nothing is read; set scale.resources_per_worker to something that only other machines have, "
            "or drop scale.data_resources"
        )


def machines() -> list[dict[str, float]]:
    """What each machine of the cluster has in all, free or not; call inside `ray_session`."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_machines() -> list[dict[str, float]]:
    """What is free now on each machine of the cluster; call inside `ray_session`."""
    from ray._private.state import available_resources_per_node

    return [dict(free) for free in available_resources_per_node().values()]


def _refuse_what_never_fits(scale: ScaleConfig) -> None:
    """Do not wait where the autoscaler says what it may start, and that is not enough; others may join by themselves.

    So do the machines of a Slurm job, whose head starts nothing.
    """
    use_gpu = scale.device == "cuda"
    there, coming = machines(), to_come()
    if coming and coming.at_most and never_fits(scale, there, coming, use_gpu=use_gpu):
        said = room_in_words(scale, there, coming, use_gpu=use_gpu)
        raise ClusterError(
            f"{said}; lower scale.workers or what each asks for, or let the autoscaler start such machines"
        )


def _lacks(need: Need, *, free: bool) -> str:
    """What the cluster has and what is needed, if that is more."""
    import ray

    there: dict[str, Any] = ray.cluster_resources()
    left: dict[str, Any] = ray.available_resources() if free else there
    needs = {"CPU": 0.0, "GPU": 0.0} | total(need.bundles)
    if all(left.get(kind, 0) >= amount for kind, amount in needs.items()):
        return ""
    has = " and ".join(f"{there.get(kind, 0):g} {name_of(kind)} ({left.get(kind, 0):g} free)" for kind in needs)
    wants = " and ".join(f"{amount:g} {name_of(kind, amount)}" for kind, amount in needs.items() if amount)
    return f"{'the cluster' if in_cluster() else 'Ray here'} has {has}, but {need.who} need {wants}"
