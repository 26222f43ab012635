"""What the parts of a run ask Ray for, and whether some machines have it; knows Ray's words and not Ray.

A cluster may have machines of two kinds: those with GPUs train; those without read, prepare and rank, and cost a tenth.
Two things keep the second kind of work off the first kind of machine: training workers may ask for a GPU machine's CPUs
(`scale.cpus_per_worker`), and data tasks for something that only the others have (`scale.data_resources`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysrec.config import RunConfig, ScaleConfig

READING_CPUS = 0.5
"""What a task that reads asks Ray for: it mostly waits for storage."""

Bundle = dict[str, float]
"""What must be free together on one machine, by the names that Ray has for it."""


def worker_bundle(scale: ScaleConfig, *, use_gpu: bool) -> Bundle:
    """What each training worker asks for."""
    gpu = {"GPU": scale.gpus_per_worker} if use_gpu else {}
    return {"CPU": float(scale.cpus_per_worker)} | gpu | scale.resources_per_worker


def data_bundles(scale: ScaleConfig) -> list[Bundle]:
    """What must be there besides the workers, so that reading goes on."""
    if not scale.data_cpus:
        return [{"CPU": READING_CPUS} | scale.data_resources]
    return [{"CPU": 1.0} | scale.data_resources for _ in range(math.ceil(scale.data_cpus))]


def scale_to_train(config: RunConfig) -> ScaleConfig:
    """The scale that a training needs room for: a process that ranks beside it counts as one that reads."""
    if not config.evaluate.concurrent:
        return config.scale
    return config.scale.model_copy(update={"data_cpus": (config.scale.data_cpus or READING_CPUS) + 1})


def reading_options(scale: ScaleConfig) -> dict[str, Any]:
    """What Ray Data is told of the tasks that read for one training worker."""
    at_once = {}
    if scale.data_cpus:
        at_once = {"concurrency": max(1, int(scale.data_cpus / READING_CPUS / scale.max_workers))}
    return {"num_cpus": READING_CPUS, "resources": dict(scale.data_resources)} | at_once


def task_options(scale: ScaleConfig) -> dict[str, Any]:
    """What Ray is told of a task that prepares data."""
    return {"num_cpus": 1, "resources": dict(scale.data_resources)}


def model_bundle(scale: ScaleConfig, *, use_gpu: bool) -> Bundle:
    """What each process asks for that ranks with a trained model: a GPU, or else a machine for data."""
    return {"CPU": 1.0} | ({"GPU": scale.gpus_per_worker} if use_gpu else scale.data_resources)


def model_options(scale: ScaleConfig, *, use_gpu: bool) -> dict[str, Any]:
    """What Ray is told of such a process."""
    if use_gpu:
        return {"num_cpus": 1, "num_gpus": scale.gpus_per_worker}
    return {"num_cpus": 1, "resources": dict(scale.data_resources)}


def in_words(bundle: Mapping[str, float]) -> str:
    """Such as "6 CPUs, 1 GPU and 0.001 data"."""
    parts = [f"{amount:g} {name_of(kind, amount)}" for kind, amount in bundle.items() if amount]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "nothing"


def asked_for(scale: ScaleConfig, *, use_gpu: bool) -> str:
    """What a run asks a cluster for."""
    least, most = scale.min_workers, scale.max_workers
    workers = f"{most}" if least == most else f"{least} to {most}"
    reading = total(data_bundles(scale))
    together = "on few machines" if scale.placement == "pack" else "on many machines"
    preparing = in_words({"CPU": 1.0} | scale.data_resources)
    ranking = in_words(model_bundle(scale, use_gpu=use_gpu))
    tasks = f"{preparing} a task to prepare and rank"
    if ranking != preparing:
        tasks = f"{preparing} a task to prepare, {ranking} to rank"
    return (
        f"{workers} x {in_words(worker_bundle(scale, use_gpu=use_gpu))} to train, {together}; "
        f"{in_words(reading)} to read; {tasks}"
    )


def total(bundles: Iterable[Bundle]) -> Bundle:
    """All of them together, as if on one machine."""
    sums: Bundle = {}
    for bundle in bundles:
        for kind, amount in bundle.items():
            sums[kind] = sums.get(kind, 0.0) + amount
    return sums


def name_of(kind: str, amount: float = math.inf) -> str:
    """What so much of it, or any, is called."""
    return f"{kind}s" if kind in ("CPU", "GPU") and amount != 1 else kind


@dataclass(frozen=True)
class Machines:
    """What a cluster has, and may come to have."""

    there: Sequence[Mapping[str, float]]
    """What each machine has in all, free or not."""
    may_come: Mapping[str, tuple[int, Mapping[str, float]]]
    """How many more of each kind an autoscaler may start, and what such a machine has."""


def room(scale: ScaleConfig, machines: Machines, *, use_gpu: bool) -> str:
    """Whether the machines have room for the fewest workers that train, now or ever, in words."""
    bundles = _fewest(scale, use_gpu=use_gpu)
    said = _said_of(machines, bundles)
    if not_placed(bundles, machines.there) is None:
        return f"{said}: enough for {scale.min_workers} workers, once it is free"
    said += _said_to_come(machines)
    if (left_over := not_placed(bundles, _all_of(machines))) is None:
        return f"{said}: enough for {scale.min_workers} workers when those have started"
    return f"{said}: NEVER enough for {scale.min_workers} workers; no machine has room for {in_words(left_over)}"


def fits(scale: ScaleConfig, machines: Machines, *, use_gpu: bool) -> bool:
    """Have the machines room for the fewest workers that train, now or when all that may come have?"""
    return not_placed(_fewest(scale, use_gpu=use_gpu), _all_of(machines)) is None


def lacking(scale: ScaleConfig, machines: Machines, *, use_gpu: bool) -> str:
    """What is said where the machines have no room for the fewest workers that train; empty where they have."""
    bundles = _fewest(scale, use_gpu=use_gpu)
    if not_placed(bundles, machines.there) is None:
        return ""
    return (
        f"no room for {scale.min_workers} workers and reading on {_said_of(machines, bundles)}{_said_to_come(machines)}"
    )


def most_workers(
    worker: Bundle, reading: Sequence[Bundle], machines: Sequence[Mapping[str, float]], *, at_most: int
) -> int:
    """How many workers there may be, so that what reads has room, too.

    Args:
        worker: What each asks for.
        reading: What must have room besides; where it has none on empty machines either, workers do not matter to it.
        machines: What each machine has.
        at_most: More workers are not wanted.
    """
    if not_placed(reading, machines) is not None:
        return at_most
    counts = range(at_most, 0, -1)
    return next((count for count in counts if not_placed([worker] * count + [*reading], machines) is None), 0)


def _fewest(scale: ScaleConfig, *, use_gpu: bool) -> list[Bundle]:
    return [worker_bundle(scale, use_gpu=use_gpu)] * scale.min_workers + data_bundles(scale)


def _all_of(machines: Machines) -> list[Mapping[str, float]]:
    return [*machines.there, *(of for count, of in machines.may_come.values() for _ in range(count))]


def _said_of(machines: Machines, bundles: Sequence[Bundle]) -> str:
    has = in_words(total([{kind: of.get(kind, 0.0) for kind in total(bundles)} for of in machines.there]))
    return f"{len(machines.there)} machines with {has}"


def _said_to_come(machines: Machines) -> str:
    growing = ", ".join(f"{count} {kind}" for kind, (count, _) in machines.may_come.items() if count)
    return f", and up to {growing} to come" if growing else ""


def not_placed(bundles: Sequence[Bundle], machines: Iterable[Mapping[str, float]]) -> Bundle | None:
    """A bundle for which there is no room when the others are placed, the largest first; None if there is for all."""
    free = [dict(machine) for machine in machines]
    # What only few machines have is placed first, and what few machines have is spared for it.
    rarity = {kind: sum(1 for machine in free if machine.get(kind)) for kind in total(bundles)}
    for bundle in sorted(bundles, key=lambda one: (min(rarity[kind] for kind in one), -sum(one.values()))):
        fitting = [
            machine
            for machine in free
            if all(machine.get(kind, 0.0) >= amount - 1e-9 for kind, amount in bundle.items())
        ]
        if not fitting:
            return bundle
        taken = min(
            fitting, key=lambda machine: (machine.get("GPU", 0.0) * ("GPU" not in bundle), machine.get("CPU", 0.0))
        )
        for kind, amount in bundle.items():
            taken[kind] -= amount
    return None
