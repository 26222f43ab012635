"""What the parts of a run ask Ray for, and whether some machines have it; knows Ray's words and not Ray.

A cluster may have machines of two kinds: those with GPUs train; those without read, prepare and rank, and cost a tenth.
Two things keep the second kind of work off the first kind of machine: training workers may ask for a GPU machine's CPUs
(`scale.cpus_per_worker`), and data tasks for something that only the others have (`scale.data_resources`).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysrec.config import ScaleConfig
from raysrec.config.run import RunConfig
from raysrec.config.scale import ElasticWorkers

READING_CPUS = 0.5
"""What a task that reads asks Ray for: it mostly waits for storage."""

TASK_BYTES = 1 << 30
"""What a task that prepares data may need, its process included."""

Bundle = dict[str, float]
"""What must be free together on one machine, by the names that Ray has for it."""

Machine = Mapping[str, float]
"""What a machine has, by the same names."""


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


def scale_to_rank(config: RunConfig) -> ScaleConfig:
    """The scale that a finished run is ranked on, and recommends: without GPUs where others can do it, and reading."""
    device = config.evaluate.device
    if device == "auto":
        device = "cpu" if config.scale.data_resources else config.scale.device
    # Who asks for GPUs begins with as few as there are; `auto` takes them where there is one for each worker.
    fewest = {"workers": ElasticWorkers(min=1, max=config.scale.max_workers)} if device == "cuda" else {}
    return config.scale.model_copy(update={"device": device, "data_cpus": 0.0} | fewest)


@dataclass(frozen=True)
class Need:
    """What has to be free at the same time before some work begins."""

    scale: ScaleConfig
    """Whose workers, how they are placed, and for how long to wait."""
    bundles: tuple[Bundle, ...]
    who: str
    """What needs it, in words that "need" follows."""
    less: str
    """What to set where there is no room; empty if nothing needs less."""
    trains: bool = False


def need_to_train(scale: ScaleConfig) -> Need:
    """What the fewest workers that train need, and reading beside them."""
    use_gpu = scale.device == "cuda"
    less = "lower scale.workers" + (" or set scale.device=cpu" if use_gpu else "")
    who = f"{counted(scale.min_workers, 'worker')} and reading"
    return Need(scale, tuple(_fewest(scale, use_gpu=use_gpu)), who, less, trains=True)


def need_to_rank(config: RunConfig) -> Need:
    """What one process that ranks needs, or recommends, and reading beside it: others join it where there is room."""
    scale = scale_to_rank(config)
    use_gpu = scale.device == "cuda"
    bundles = (model_bundle(scale, use_gpu=use_gpu), *data_bundles(scale))
    return Need(scale, bundles, "ranking and reading", "set evaluate.device=cpu" if use_gpu else "")


def need_to_prepare(scale: ScaleConfig) -> Need:
    """What one task that prepares data needs, and reading beside it; Ray Data asks for more as there is more to do."""
    reading = data_bundles(scale.model_copy(update={"data_cpus": 0.0}))
    return Need(scale, (task_bundle(scale), *reading), "preparing and reading", "")


def reading_options(scale: ScaleConfig) -> dict[str, Any]:
    """What Ray Data is told of the tasks that read for one training worker."""
    at_once = {}
    if scale.data_cpus:
        at_once = {"concurrency": max(1, int(scale.data_cpus / READING_CPUS / scale.max_workers))}
    return {"num_cpus": READING_CPUS, "resources": dict(scale.data_resources)} | at_once


def task_bundle(scale: ScaleConfig) -> Bundle:
    """What each task asks for that prepares data."""
    return {"CPU": 1.0} | scale.data_resources


def task_options(scale: ScaleConfig, there: Sequence["Machine"], to_come: "ToCome | None") -> dict[str, Any]:
    """What Ray is told of such a task: of a machine it takes a CPU and memory, so that no more run there than fit.

    An autoscaler starts no machine for memory that its configuration does not declare (Google's `ray up`, for one);
    where one of that kind may come, CPUs alone are asked for.

    Args:
        scale: On which machines.
        there: What each machine has in all, free or not.
        to_come: What may come besides; None if that is not known.
    """
    options: dict[str, Any] = {"num_cpus": 1, "resources": dict(scale.data_resources)}
    kinds = [*there, *(of for _, of in to_come.kinds.values())] if to_come else there
    memory = [kind.get("memory", 0) for kind in kinds if not unplaced([task_bundle(scale)], [kind])]
    if not memory or not all(memory):
        return options
    # Where even the largest machine has less, a task takes all of it.
    return options | {"memory": int(min(TASK_BYTES, max(memory)))}


def model_bundle(scale: ScaleConfig, *, use_gpu: bool) -> Bundle:
    """What each process asks for that ranks with a trained model: a GPU, or else a machine for data."""
    return {"CPU": 1.0} | ({"GPU": scale.gpus_per_worker} if use_gpu else scale.data_resources)


def model_options(scale: ScaleConfig, *, use_gpu: bool) -> dict[str, Any]:
    """What Ray is told of such a process."""
    if use_gpu:
        return {"num_cpus": 1, "num_gpus": scale.gpus_per_worker}
    return {"num_cpus": 1, "resources": dict(scale.data_resources)}


def counted(count: int, thing: str) -> str:
    """Such as "1 worker" and "2 workers"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def amounts_in_words(bundle: Mapping[str, float]) -> str:
    """Such as "6 CPUs, 1 GPU and 0.001 data"."""
    parts = [f"{amount:g} {name_of(kind, amount)}" for kind, amount in bundle.items() if amount]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "nothing"


def asked_for(config: RunConfig, *, use_gpu: bool) -> str:
    """What a run asks a cluster for, whose workers have GPUs or not."""
    scale, ranks_on = scale_to_train(config), scale_to_rank(config).device
    least, most = scale.min_workers, scale.max_workers
    workers = f"{most}" if least == most else f"{least} to {most}"
    reading = total(data_bundles(scale))
    together = "on few machines" if scale.placement == "pack" else "on many machines"
    preparing = amounts_in_words(task_bundle(scale))
    ranking = amounts_in_words(model_bundle(scale, use_gpu=use_gpu if ranks_on == "auto" else ranks_on == "cuda"))
    tasks = f"{preparing} a task to prepare and rank"
    if ranking != preparing:
        tasks = f"{preparing} a task to prepare, {ranking} to rank"
    return (
        f"{workers} x {amounts_in_words(worker_bundle(scale, use_gpu=use_gpu))} to train, {together}; "
        f"{amounts_in_words(reading)} to read; {tasks}"
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
class ToCome:
    """The machines that an autoscaler may start besides those there are."""

    kinds: Mapping[str, tuple[int, Mapping[str, float]]]
    """How many more of each kind, and what such a machine has."""
    at_most: int
    """How many in all, whatever their kinds."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], workers: Sequence[str]) -> "ToCome":
        """What an autoscaler with these settings, by the names of `ray up`, may add to workers of these kinds."""
        there, in_all = Counter(workers), settings["max_workers"]
        kinds = {}
        for name, kind in settings["available_node_types"].items():
            has = {resource: float(amount) for resource, amount in kind["resources"].items()}
            kinds[name] = (max(0, kind.get("max_workers", in_all) - there[name]), has)
        return cls(kinds, max(0, min(in_all - len(workers), sum(count for count, _ in kinds.values()))))

    def __str__(self) -> str:
        counts = {kind: min(count, self.at_most) for kind, (count, _) in self.kinds.items()}
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        return f"{said} ({self.at_most} in all)" if self.at_most < sum(counts.values()) else said


def room(scale: ScaleConfig, there: Sequence[Machine], to_come: ToCome | None, *, use_gpu: bool) -> str:
    """Whether a cluster has room for the fewest workers that train, now or ever, in words.

    Args:
        scale: The workers.
        there: What each machine has in all, free or not.
        to_come: What may come besides; None if that is not known.
        use_gpu: Does each worker get a GPU?
    """
    bundles = _fewest(scale, use_gpu=use_gpu)
    said, workers = _said_of(there, bundles), counted(scale.min_workers, "worker")
    left = unplaced(bundles, there)
    if not left:
        return f"{said}: enough for {workers}, once it is free"
    if to_come is None:
        return (
            f"{said}: not enough for {workers} now, and what an autoscaler may start is not known here; on the head, "
            "as in a submitted job, it is"
        )
    if to_come.at_most:
        said += f", and up to {to_come} to come"
    left = _unplaced_at_last(left, to_come)
    if not left:
        return f"{said}: enough for {workers} when those have started"
    return f"{said}: NEVER enough for {workers}; no machine has room for {amounts_in_words(left[0])}"


def never_fits(scale: ScaleConfig, there: Sequence[Machine], to_come: ToCome | None, *, use_gpu: bool) -> bool:
    """Is there no room for the fewest workers that train, and will there be none when all that may come has started?"""
    left = unplaced(_fewest(scale, use_gpu=use_gpu), there)
    return bool(left if to_come is None else _unplaced_at_last(left, to_come))


def lacking(scale: ScaleConfig, there: Sequence[Machine], *, use_gpu: bool) -> str:
    """What is said where these machines have no room for the fewest workers that train; empty where they have."""
    bundles = _fewest(scale, use_gpu=use_gpu)
    if not unplaced(bundles, there):
        return ""
    return f"no room for {counted(scale.min_workers, 'worker')} and reading on {_said_of(there, bundles)}"


def most_workers(worker: Bundle, reading: Sequence[Bundle], machines: Sequence[Machine], *, at_most: int) -> int:
    """How many workers there may be, so that what reads has room, too.

    Args:
        worker: What each asks for.
        reading: What must have room besides; where it has none on empty machines either, workers do not matter to it.
        machines: What each machine has.
        at_most: More workers are not wanted.
    """
    if unplaced(reading, machines):
        return at_most
    counts = range(at_most, 0, -1)
    return next((count for count in counts if not unplaced([worker] * count + [*reading], machines)), 0)


def _fewest(scale: ScaleConfig, *, use_gpu: bool) -> list[Bundle]:
    return [worker_bundle(scale, use_gpu=use_gpu)] * scale.min_workers + data_bundles(scale)


def _said_of(machines: Sequence[Machine], bundles: Sequence[Bundle]) -> str:
    has = amounts_in_words(total([{kind: of.get(kind, 0.0) for kind in total(bundles)} for of in machines]))
    return f"{counted(len(machines), 'machine')} with {has}"


def _unplaced_at_last(bundles: Sequence[Bundle], to_come: ToCome) -> list[Bundle]:
    """What has no room on machines that may come, either; each is started for what is hardest to place."""
    left, counts = list(bundles), {kind: count for kind, (count, _) in to_come.kinds.items()}
    for _ in range(to_come.at_most):
        startable = {kind: of for kind, (_, of) in to_come.kinds.items() if counts[kind]}
        left = _hardest_first(left, list(startable.values()))
        fitting = {kind: of for kind, of in startable.items() if left and not unplaced(left[:1], [of])}
        if not fitting:
            break
        # The one that has room for the most, and of two such the one without a GPU.
        kind = min(fitting, key=lambda kind: (len(unplaced(left, [fitting[kind]])), fitting[kind].get("GPU", 0.0)))
        left = unplaced(left, [fitting[kind]])
        counts[kind] -= 1
    return left


def unplaced(bundles: Sequence[Bundle], machines: Iterable[Machine]) -> list[Bundle]:
    """The bundles for which there is no room when the others are placed, the hardest to place first."""
    free = [dict(machine) for machine in machines]
    left = []
    for bundle in _hardest_first(bundles, free):
        fitting = [
            machine
            for machine in free
            if all(machine.get(kind, 0.0) >= amount - 1e-9 for kind, amount in bundle.items())
        ]
        if not fitting:
            left.append(bundle)
            continue
        taken = min(
            fitting, key=lambda machine: (machine.get("GPU", 0.0) * ("GPU" not in bundle), machine.get("CPU", 0.0))
        )
        for kind, amount in bundle.items():
            taken[kind] -= amount
    return left


def _hardest_first(bundles: Sequence[Bundle], machines: Sequence[Machine]) -> list[Bundle]:
    """What only few machines have is placed first, and what few machines have is spared for it; then the largest."""
    rarity = {kind: sum(1 for machine in machines if machine.get(kind)) for kind in total(bundles)}
    return sorted(bundles, key=lambda one: (min(rarity[kind] for kind in one), -sum(one.values())))
