"""What training processes on this machine do when they share each batch, and what it costs them to talk.

Each has one thread and is measured twice: with the others, and at the same time as they but each for itself (`apart`).
The processes and the machine are the same, so the difference is what the exchange takes and what waiting for the
slowest takes, also where they are more than the cores.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scaling_on_paper import WAYS, Compute, Sizes, exchanges
from tabulate import tabulate
from torch import nn
from torch.profiler import ProfilerActivity, profile

from raysrec.allocator import tune_allocator
from raysrec.config.run import RunConfig
from raysrec.data.batching.facts import facts_of
from raysrec.data.batching.loader import epoch_steps
from raysrec.data.batching.reading import read_directly
from raysrec.data.prepared import PreparedData
from raysrec.engine import Engine, build_engine
from raysrec.engine.optimizers import build_optimizers
from raysrec.history import Batch
from raysrec.models import SequenceModel
from raysrec.objective import build_objective

WARM_UP_STEPS = 5
STEPS_AT_HAND = 16
"""Read before the clock starts and learned from again and again: what reading takes is not asked here."""

PROBES = 10
"""Timed repetitions of one all-reduce, or of one update."""

PERSISTS = 100_000
"""Values of a parameter up to which ZeRO 3 leaves it whole, by DeepSpeed's default."""

PRELOADED = ["raysrec.engine", "raysrec.plan", "raysrec.prepare", "tabulate"]
"""What is imported once, by the process that all others are forked from."""

KINDS = ("all_reduce", "reduce_scatter", "all_gather")

Measured = dict[str, Any]
"""What one process saw, as JSON."""


def sizes_of(model: SequenceModel, *, persists: int = PERSISTS) -> Sizes:
    """What is exchanged of this model."""
    learned = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    low = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = {id(p): p for m in model.modules() if isinstance(m, low) for p in m.parameters(recurse=False)}
    in_layers = {key: p.numel() for key, p in layers.items() if key in learned}
    vectors = model.item_vectors()
    table = next((p for p in model.parameters() if p.data_ptr() == vectors.data_ptr() and p.requires_grad), None)
    return Sizes(
        values=sum(learned.values()),
        table=0 if table is None else table.numel(),
        in_layers=sum(in_layers.values()),
        large=sum(size for size in learned.values() if size > persists),
        large_in_layers=sum(size for size in in_layers.values() if size > persists),
        num_small=sum(size <= persists for size in learned.values()),
    )


def exchanged_values(engine: Engine, batches: list[Batch]) -> dict[str, int]:
    """How many values a step really exchanges, by kind; what workers merely tell each other is left out."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        engine.step(batches, learning_rate=1e-6)
    found = dict.fromkeys(KINDS, 0)
    for event in profiled.events() or []:
        shapes = event.input_shapes
        if event.name == "gloo:all_reduce" and shapes[0]:
            found["all_reduce"] += shapes[0][0]
        elif event.name == "c10d::_allgather_base_":
            found["all_gather"] += shapes[0][0]
        elif event.name == "c10d::_reduce_scatter_base_":
            found["reduce_scatter"] += shapes[1][0]
            found["all_reduce"] -= shapes[1][0]  # as which gloo does it
    return found


def engine_for(config: RunConfig, data: PreparedData) -> tuple[Engine, SequenceModel]:
    """A fresh engine on this CPU."""
    torch.manual_seed(config.train.seed)
    cpu = torch.device("cpu")
    objective, _ = build_objective(config, facts_of(data, config), cpu)
    return build_engine(objective, config, cpu), objective.model


def steps_of(data: PreparedData, config: RunConfig, worker: int, num_workers: int) -> Iterator[list[Batch]]:
    """A worker's micro-batches, step by step, for ever."""
    for epoch in count():
        steps = epoch_steps(data, config, read_directly, epoch=epoch, worker=worker, num_workers=num_workers)
        yield next(steps, [])  # nothing where data are too few for all workers
        yield from steps


def measure(config: RunConfig, prepared: str, steps: int, worker: int, num_workers: int, barrier: Any) -> Measured:
    """Train for some steps with the process group that there is; what this worker saw."""
    tune_allocator()
    torch.set_flush_denormal(True)
    torch.set_num_threads(config.scale.threads_per_worker or 1)
    data = PreparedData.open(prepared)
    engine, model = engine_for(config, data)
    given = list(islice(steps_of(data, config, worker, num_workers), STEPS_AT_HAND))
    for batches in given[:WARM_UP_STEPS]:
        engine.step(batches, learning_rate=1e-6)
    barrier.wait()
    targets, started = 0, time.perf_counter()
    for batches in islice(cycle(given), steps):
        targets += sum(batch.num_targets() for batch in batches)
        engine.step(batches, learning_rate=1e-6)
    found: Measured = {"step_targets": targets / steps, "step_s": (time.perf_counter() - started) / steps}
    if dist.get_world_size() > 1:
        found |= {"micro_batches": len(given[0]), "exchanged": exchanged_values(engine, given[0])}
        gradient = torch.zeros(found["exchanged"]["all_reduce"] or found["exchanged"]["reduce_scatter"])
        found["all_reduce_s"] = median_seconds(lambda: dist.all_reduce(gradient))
    elif num_workers == 1:
        found["update_s"] = update_seconds(config, model)
    return found


def median_seconds(call: Callable[[], object]) -> float:
    """The median of some repetitions."""
    taken = []
    for _ in range(PROBES):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def update_seconds(config: RunConfig, model: SequenceModel) -> float:
    """How long the optimizer takes for all weights."""
    optimizers = build_optimizers(model, config.train)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return median_seconds(lambda: [optimizer.step() for optimizer in optimizers])


def _process(
    worker: int, config: RunConfig, prepared: str, steps: int, num_workers: int, apart: bool, folder: str, barrier: Any
) -> None:
    os.environ["LOCAL_RANK"] = "0" if apart else str(worker)
    meeting, rank, size = ("apart", worker, num_workers) if not apart else (f"apart-{worker}", 0, 1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{meeting}", rank=rank, world_size=size)
    found = measure(config, prepared, steps, worker, num_workers, barrier)
    Path(folder, f"{worker}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def once(config: RunConfig, prepared: str, steps: int, num_workers: int, *, apart: bool) -> list[Measured]:
    """What so many processes saw that share each batch and train together, or, `apart`, each for itself."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    barrier = multiprocessing.get_context("forkserver").Barrier(num_workers)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (config, prepared, steps, num_workers, apart, folder, barrier)
        mp.start_processes(_process, arguments, nprocs=num_workers, start_method="forkserver")
        return [json.loads(Path(folder, f"{worker}.json").read_text()) for worker in range(num_workers)]


def positions_per_target(config: RunConfig, data: PreparedData) -> float:
    """Positions that are encoded for each target, padding included, in some steps."""
    batches = [batch for step in islice(steps_of(data, config, 0, 1), STEPS_AT_HAND) for batch in step]
    return sum(batch.history.items.numel() for batch in batches) / sum(batch.num_targets() for batch in batches)


def rate(workers: list[Measured]) -> float:
    """Targets a second of all workers."""
    return float(sum(worker["step_targets"] / worker["step_s"] for worker in workers))


@dataclass(frozen=True)
class Here:
    """What was measured, several times, by the number of workers."""

    together: dict[int, list[list[Measured]]]
    apart: dict[int, list[list[Measured]]]
    smaller: list[list[Measured]]
    """Of one worker with a smaller batch."""

    def compute(self) -> Compute:
        """What one worker computes."""
        points = [
            (rounds[0][0]["step_targets"], statistics.median(one["step_s"] for (one,) in rounds))
            for rounds in (self.apart[1], self.smaller)
        ]
        return Compute.fitted(points, statistics.median(one["update_s"] for (one,) in self.apart[1]))

    def lines(self) -> Iterator[dict[str, str]]:
        """A table: targets a second, and what it costs workers to talk."""
        cores, alone = len(os.sched_getaffinity(0)), statistics.median(map(rate, self.apart[1]))
        for number, rounds in sorted(self.together.items()):
            found = statistics.median(map(rate, rounds))
            shares = [1 - rate(one) / rate(other) for one, other in zip(rounds, self.apart[number], strict=True)]
            takes = statistics.median(_mean(one, "all_reduce_s") / _mean(one, "step_s") for one in rounds)
            yield {
                "workers": str(number),
                "on": "a core each" if number <= cores else f"{cores} cores: oversubscribed, they take turns",
                "targets/s": f"{found:,.0f}",
                "to one": f"{found / alone:.2f}x",
                "communication": f"{statistics.median(shares):.1%}" if number > 1 else "none",
                "gradients alone": f"{takes:.1%}" if number > 1 else "none",
            }


def _mean(workers: list[Measured], key: str) -> float:
    return float(statistics.mean(worker.get(key, 0.0) for worker in workers))


def measure_here(
    config: RunConfig, smaller: RunConfig, prepared: str, numbers: list[int], *, steps: int, rounds: int
) -> Here:
    """Measure these numbers of workers, and one, in turns, since machines are noisy."""
    here = Here({number: [] for number in numbers}, {number: [] for number in {1, *numbers}}, [])
    for _ in range(rounds):
        here.smaller.append(once(smaller, prepared, steps, 1, apart=True))
        for number in sorted(here.apart):
            here.apart[number].append(once(config, prepared, steps, number, apart=True))
        for number in numbers:
            one = here.apart[1][-1] if number == 1 else once(config, prepared, steps, number, apart=False)
            here.together[number].append(one)
    return here


def exchange_table(config: RunConfig, here: Here, sizes: Sizes) -> str:
    """What a step of two workers was seen to exchange, and what it does on paper; empty if it was not measured."""
    if not here.together.get(2):
        return ""
    workers = here.together[2][0]
    way = WAYS[config.engine.zero_stage if config.engine.name == "deepspeed" else 0]
    micro_batches = max(worker["micro_batches"] for worker in workers)
    expected = dict.fromkeys(KINDS, 0.0)
    for each in exchanges(way, sizes, micro_batches=micro_batches):
        expected[each.kind] += each.times * each.bytes / 4
    seen = workers[0]["exchanged"]
    lines = [{"what": kind, "seen": f"{seen[kind]:,}", "on paper": f"{expected[kind]:,.0f}"} for kind in KINDS]
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
