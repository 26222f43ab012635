"""The section `scale`: on how many workers, and what each is given."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from raysrec.schema import Count, CountOrZero, NonNegative, Positive, Section


class ElasticWorkers(Section):
    """As many workers as the cluster has room for, within bounds."""

    min: Count
    """With fewer, training waits."""
    max: Count
    """More are not asked for."""

    @model_validator(mode="after")
    def _ordered(self) -> "ElasticWorkers":
        if self.min > self.max:
            raise ValueError(f"scale.workers.min={self.min} exceeds scale.workers.max={self.max}; lower it")
        return self


Resources = dict[str, Annotated[float, Field(gt=0)]]
"""Amounts of what machines of a cluster have, by name."""


class ScaleConfig(Section):
    """How many workers, and what each is given."""

    workers: Annotated[
        Annotated[Count, Tag("number")] | Annotated[ElasticWorkers, Tag("bounds")],
        Discriminator(lambda given: "bounds" if isinstance(given, dict | ElasticWorkers) else "number"),
    ] = 1
    """Training processes, at most `data.num_streams` (or processes that rank, where a run is evaluated). A number, or
    `{min: …, max: …}`: nodes that come and go then change it while training runs, and no batch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes GPUs if the cluster has one for each worker."""
    cpus_per_worker: Count = 1
    """CPUs that Ray counts as a worker's. All that a GPU machine has, divided among its GPUs, keep other work away."""
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = 1.0
    """GPUs of a worker that has any: one, or a share of one that a single small worker leaves to other runs."""
    resources_per_worker: Resources = {}  # noqa: RUF012 - pydantic copies it
    """What else a worker's machine must have, by the names that the cluster gives it, such as
    `{"accelerator_type:A100": 0.001}`."""
    data_cpus: NonNegative = 0.0
    """CPUs for reading while all workers train: so many are waited for, and no more are used. 0 waits for those of one
    task and uses what is free."""
    data_resources: Resources = {}  # noqa: RUF012 - pydantic copies it
    """What the machines must have on which data is read, prepared and ranked, such as `{data: 0.001}` where only
    machines without GPUs have `data`."""
    placement: Literal["pack", "spread"] = "pack"
    """`pack` puts workers on as few machines as can be: gradients go through a machine's own links rather than the
    network, an autoscaler starts fewer machines, and since a lost machine interrupts all workers anyway, one machine
    less that can be lost is a gain. `spread` puts them on as many as can be, which is faster on CPU machines that are
    there in any case: each worker has a machine's memory and cores."""
    threads_per_worker: CountOrZero = 0
    """CPU threads of a worker's arithmetic; 0 divides this machine's cores among the workers."""
    wait_s: NonNegative = 600.0
    """Seconds in which a cluster must come to have room for the workers, by nodes that start or jobs that end; a Ray
    that starts here is never waited for."""
    max_failures: CountOrZero = 3
    """Failures in a row (of a worker, a node or a store), with no checkpoint between them, after which training is
    tried again; with one more it is given up."""
    stalled_after_s: Positive = 900.0
    """Seconds after which a worker that others wait for is taken for lost."""

    @model_validator(mode="after")
    def _gpus_are_not_shared(self) -> "ScaleConfig":
        if self.gpus_per_worker < 1 and self.max_workers > 1:
            raise ValueError(
                f"scale.gpus_per_worker={self.gpus_per_worker:g} lets workers of one run share a GPU, which NCCL "
                f"refuses; set scale.workers=1 (now {self.max_workers}) or scale.gpus_per_worker=1"
            )
        for key in ("resources_per_worker", "data_resources"):
            if own := sorted({"CPU", "GPU"} & set(getattr(self, key))):
                instead = {"CPU": "scale.cpus_per_worker or scale.data_cpus", "GPU": "scale.gpus_per_worker"}[own[0]]
                raise ValueError(f"scale.{key}.{own[0]}: is for what else a machine has; set {instead}")
        return self

    @property
    def max_workers(self) -> int:
        """The most workers there will be."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def min_workers(self) -> int:
        """The fewest workers that train."""
        return self.workers if isinstance(self.workers, int) else self.workers.min
