"""How many targets a second the training step learns, where the time goes, and what engines and Ray add to a bare loop.

    python tools/bench_train.py --config configs/ml-1m.yaml model.num_blocks=2

Every row trains on the same batches with the same number of worker processes; only what drives the step differs.
The bare loop is plain torch: no exchange between workers, batches read directly. Rows are measured in turns, several
times, and the median is shown, because machines are noisy.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tabulate import tabulate

from raysrec.allocator import tune_allocator
from raysrec.cluster.runtime import ray_session, threads_per_worker
from raysrec.command_line import config_parser, run_verb
from raysrec.config.loading import load
from raysrec.config.run import RunConfig
from raysrec.data.batching.facts import facts_of
from raysrec.data.batching.loader import Prefetched, epoch_steps
from raysrec.data.batching.ray_reading import read_with_ray
from raysrec.data.batching.reading import Reader, read_directly
from raysrec.data.prepared import PreparedData
from raysrec.engine import build_engine
from raysrec.engine.optimizers import build_optimizers, set_learning_rate
from raysrec.history import Batch
from raysrec.losses import softmax_loss
from raysrec.objective import Objective, build_objective
from raysrec.plan import plan
from raysrec.prepare import prepare

WARM_UP_STEPS = 10
Measured = dict[str, float]


def measure(config: RunConfig, prepared: str, how: str, steps: int, worker: int, num_workers: int) -> Measured:
    """Train for some steps; seconds by part, and targets of this worker."""
    tune_allocator()
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads_per_worker(config.scale))
    torch.manual_seed(config.train.seed)
    data = PreparedData.open(prepared)
    objective, _ = build_objective(config, facts_of(data, config), torch.device("cpu"))
    reader = read_with_ray if how.startswith("ray") else read_directly
    source = Prefetched(_endless(data, config, reader, worker, num_workers))
    ready = iter(source)
    step = _bare_step(objective, config) if how == "bare" else _engine_step(objective, config, how)
    seconds: Measured = {}
    for _ in range(WARM_UP_STEPS):
        step(next(ready), seconds)
    seconds.clear()
    waited_s, targets, started = source.waited_s, 0, time.perf_counter()
    for _ in range(steps):
        batches = next(ready)
        targets += sum(batch.num_targets() for batch in batches)
        step(batches, seconds)
    whole = time.perf_counter() - started
    source.close()
    return {**seconds, "data": source.waited_s - waited_s, "whole": whole, "targets": targets}


def _endless(
    data: PreparedData, config: RunConfig, read: Reader, worker: int, num_workers: int
) -> Iterator[list[Batch]]:
    epoch = 0
    while True:
        yield from epoch_steps(data, config, read, epoch=epoch, worker=worker, num_workers=num_workers)
        epoch += 1


def _bare_step(objective: Objective, config: RunConfig) -> Any:
    model = objective.model
    optimizers = build_optimizers(model, config.train)
    set_learning_rate(optimizers, config.train.learning_rate)

    def step(batches: list[Batch], seconds: Measured) -> None:
        clock = _Clock(seconds)
        for batch in batches:
            states = model.encode(batch.history)
            learns = batch.targets != 0
            clock.tick("encoder, forward")
            loss = softmax_loss(states[learns], model.item_vectors(), batch.targets[learns], model.item_bias())
            clock.tick("loss and its gradient")
            loss.backward()
            clock.tick("encoder, backward")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        clock.tick("optimizer")

    return step


def _engine_step(objective: Objective, config: RunConfig, how: str) -> Any:
    name = how.split()[-1]
    chosen = config.engine.model_copy(update={"name": name})
    engine = build_engine(objective, config.model_copy(update={"engine": chosen}), torch.device("cpu"))

    def step(batches: list[Batch], seconds: Measured) -> None:
        engine.step(batches, learning_rate=config.train.learning_rate)

    return step


class _Clock:
    def __init__(self, seconds: Measured) -> None:
        self._seconds, self._last = seconds, time.perf_counter()

    def tick(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now


def _spawned(worker: int, config: RunConfig, prepared: str, how: str, steps: int, folder: str) -> None:
    import os

    os.environ["LOCAL_RANK"] = str(worker)
    workers = config.scale.max_workers
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=worker, world_size=workers)
    _write(folder, worker, measure(config, prepared, how, steps, worker, workers))
    dist.destroy_process_group()


def _in_ray(arguments: dict[str, Any]) -> None:
    import ray.train

    config = RunConfig.model_validate_json(arguments["config"])
    worker = ray.train.get_context().get_world_rank()
    how, steps = arguments["how"], arguments["steps"]
    _write(
        arguments["folder"],
        worker,
        measure(config, arguments["prepared"], how, steps, worker, config.scale.max_workers),
    )


def _write(folder: str, worker: int, measured: Measured) -> None:
    Path(folder, f"{worker}.json").write_text(json.dumps(measured))


def once(config: RunConfig, prepared: str, how: str, steps: int) -> list[Measured]:
    """One measurement: what each worker saw."""
    with tempfile.TemporaryDirectory() as folder:
        if how.startswith("ray"):
            _run_in_ray(
                {"config": config.model_dump_json(), "prepared": prepared, "how": how, "steps": steps, "folder": folder}
            )
        else:
            mp.spawn(_spawned, (config, prepared, how, steps, folder), nprocs=config.scale.max_workers)
        return [json.loads(Path(folder, f"{worker}.json").read_text()) for worker in range(config.scale.max_workers)]


def _run_in_ray(arguments: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = RunConfig.model_validate_json(arguments["config"]).scale.max_workers
    TorchTrainer(
        _in_ray,
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(name="bench", storage_path=arguments["folder"]),
    ).fit()


def main(arguments: Any) -> None:
    """Measure and print two tables: targets a second by driver, and parts of the bare step."""
    config = load(arguments.config, arguments.overrides)
    rows = [how for how in arguments.rows.split(",") if not ("deepspeed" in how and config.train.optimizer == "muon")]
    data = prepare(config.data)
    prepared = str(data.directory.absolute())
    print(plan(config, data), end="\n\n", flush=True)
    found: dict[str, list[list[Measured]]] = {how: [] for how in rows}
    with ray_session(config.scale):
        for _ in range(arguments.rounds):
            for how, rounds in found.items():
                rounds.append(once(config, prepared, how, arguments.steps))
    rates = {how: statistics.median(_rate(workers) for workers in rounds) for how, rounds in found.items()}
    waits = {how: statistics.median(_share(workers, "data") for workers in rounds) for how, rounds in found.items()}
    lines = [[how, f"{rate:,.0f}", f"{rates['bare'] / rate:.2f}x", f"{waits[how]:.1%}"] for how, rate in rates.items()]
    print(
        tabulate(lines, headers=["driven by", "targets/s", "time of a bare step", "data wait"], disable_numparse=True)
    )
    print()
    parts = [part for part in found["bare"][0][0] if part not in ("whole", "targets")]
    shares = [[part, f"{statistics.median(_share(w, part) for w in found['bare']):.1%}"] for part in parts]
    if "torch" in rates:
        shares.append(
            [
                "exchange between workers (torch against bare)",
                f"{1 - rates['torch'] / rates['bare']:.1%} of the torch step",
            ]
        )
    print(tabulate(shares, headers=["part of the bare step", "share"], disable_numparse=True))


def _rate(workers: list[Measured]) -> float:
    return sum(worker["targets"] / worker["whole"] for worker in workers)


def _share(workers: list[Measured], part: str) -> float:
    return sum(worker[part] for worker in workers) / sum(worker["whole"] for worker in workers)


def parser() -> Any:
    """Reads the command line."""
    command_line = config_parser("bench_train", __doc__ or "")
    command_line.prog = "python tools/bench_train.py"
    command_line.add_argument("--steps", type=int, default=100, help="steps of each measurement (default: 100)")
    command_line.add_argument("--rounds", type=int, default=3, help="measurements of each row (default: 3)")
    command_line.add_argument(
        "--rows", default="bare,torch,deepspeed,ray torch,ray deepspeed", help="what to measure, comma-separated"
    )
    return command_line


if __name__ == "__main__":
    run_verb(main, parser())
