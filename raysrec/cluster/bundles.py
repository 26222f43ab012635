"""What the parts of a run ask Ray for; knows Ray's words and not Ray.

A cluster may have machines of two kinds: those with GPUs train; those without read, prepare and rank, and cost a tenth.
Two things keep the second kind of work off the first kind of machine: training workers may ask for a GPU machine's CPUs
(`scale.cpus_per_worker`), and data tasks for something that only the others have (`scale.data_resources`).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raysrec.config import ScaleConfig
from raysrec.config.run import RunConfig
from raysrec.config.scale import ElasticWorkers

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


def fewest(scale: ScaleConfig, *, use_gpu: bool) -> list[Bundle]:
    """What the fewest workers that train ask for, and reading beside them."""
    return [worker_bundle(scale, use_gpu=use_gpu)] * scale.min_workers + data_bundles(scale)


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
    workers = {"workers": ElasticWorkers(min=1, max=config.scale.max_workers)} if device == "cuda" else {}
    return config.scale.model_copy(update={"device": device, "data_cpus": 0.0} | workers)


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
    return Need(scale, tuple(fewest(scale, use_gpu=use_gpu)), who, less, trains=True)


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


def model_bundle(scale: ScaleConfig, *, use_gpu: bool) -> Bundle:
    """What each process asks for that ranks with a trained model: a GPU, or else a machine for data."""
    return {"CPU": 1.0} | ({"GPU": scale.gpus_per_worker} if use_gpu else scale.data_resources)


def model_options(scale: ScaleConfig, *, use_gpu: bool) -> dict[str, Any]:
    """What Ray is told of such a process."""
    if use_gpu:
        return {"num_cpus": 1, "num_gpus": scale.gpus_per_worker}
    return {"num_cpus": 1, "resources": dict(scale.data_resources)}


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


def counted(count: int, thing: str) -> str:
    """Such as "1 worker" and "2 workers"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def amounts_in_words(bundle: Mapping[str, float]) -> str:
    """Such as "6 CPUs, 1 GPU and 0.001 data"."""
    parts = [f"{amount:g} {name_of(kind, amount)}" for kind, amount in bundle.items() if amount]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "nothing"


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
