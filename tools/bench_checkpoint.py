"""How long does training stand still for a checkpoint, and how long does saving it take?

    python tools/bench_checkpoint.py --items 400000 --folder /tmp/checkpoints
    python tools/bench_checkpoint.py --items 400000 --folder s3://bucket/checkpoints

One worker with the reference engine; a step learns against sampled items, and most of the model is its item table, as
in a large catalogue. Steps without and with a checkpoint take turns. What training stands still is the time of copying
the weights and the optimizer's state, as far as the next update had to wait for it; writing, hashing and sending go on
in the background, where they take their share of the cores.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from tabulate import tabulate

from raysrec.checkpoint_record import TrainingState
from raysrec.checkpoints import Checkpoints
from raysrec.config.loading import validate
from raysrec.engine import Engine, build_engine
from raysrec.history import Batch, History
from raysrec.objective import DataFacts, build_objective
from raysrec.training.saving import Saved, Saver

OWNER = "benchmark"


def settings(dim: int) -> dict[str, Any]:
    """The run that is saved."""
    return {
        "model": {"name": "recgrela", "dim": dim, "max_length": 200},
        "loss": {"name": "sampled_softmax", "negatives": 512},
        "engine": {"name": "torch"},
    }


def build(items: int, dim: int) -> Engine:
    """An engine with a large item table."""
    config = validate(settings(dim))
    facts, cpu = DataFacts(torch.ones(items + 1, dtype=torch.long), num_users=1), torch.device("cpu")
    objective, _ = build_objective(config, facts, cpu)
    return build_engine(objective, config, cpu)


def batch(items: int, targets: int, seed: int) -> Batch:
    """Random histories of 200 items."""
    draw = torch.Generator().manual_seed(seed)
    rows = max(1, targets // 200)
    drawn = torch.randint(1, items + 1, (rows, 201), generator=draw)
    users = torch.ones(rows, dtype=torch.long)
    history = History(drawn[:, :-1], torch.zeros_like(drawn[:, :-1]), torch.full((rows,), 200), users)
    return Batch(history, drawn[:, 1:], seed)


def main(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    engine = build(arguments.items, arguments.dim)
    done: list[Saved] = []
    checkpoints = Checkpoints(arguments.folder)
    checkpoints.claim(OWNER)
    saver = Saver(checkpoints, owner=OWNER, fingerprint="", keep=1, worker=0, num_workers=1, done=done.append)
    step = 0

    def steps(count: int) -> list[float]:
        nonlocal step
        seconds = []
        for _ in range(count):
            one = batch(arguments.items, arguments.targets, step)
            started = time.perf_counter()
            engine.step([one], learning_rate=1e-3)
            seconds.append(time.perf_counter() - started)
            step += 1
        return seconds

    steps(3)
    bare, after, called = [], [], []
    for _ in range(arguments.rounds):
        bare += steps(3)
        started = time.perf_counter()
        saver.begin(TrainingState(step=step), engine.snapshot)
        called.append(time.perf_counter() - started)
        after += steps(1)  # its update waits for the copy
        saver.wait()
    problems = [saved.problem for saved in done if saved.problem]
    if problems:
        raise SystemExit(f"error: {problems[0]}")
    usual = statistics.median(bare)
    stands = statistics.median(called) + max(0.0, statistics.median(after) - usual)
    saving = statistics.median(saved.seconds for saved in done)
    rows = [
        ("a checkpoint", f"{done[-1].bytes / 1e6:,.0f} MB"),
        ("a step without one", f"{usual:.3f} s"),
        ("the call that begins a save", f"{statistics.median(called):.4f} s"),
        ("the step after it", f"{statistics.median(after):.3f} s"),
        ("saving, in the background", f"{saving:.2f} s"),
        ("training stands still", f"{stands:.3f} s, {stands / saving:.1%} of it"),
    ]
    print(tabulate(rows, tablefmt="github"))


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument("--items", type=int, default=400_000, help="of the catalogue")
    command_line.add_argument("--dim", type=int, default=64, help="of an item's vector")
    command_line.add_argument("--targets", type=int, default=4096, help="of a step")
    command_line.add_argument("--rounds", type=int, default=5, help="checkpoints")
    command_line.add_argument(
        "--folder", required=True, help="path or URI to save in; what is there of an earlier time goes"
    )
    return command_line


if __name__ == "__main__":
    main(parser().parse_args())
