#!/usr/bin/env python3
"""What does the chunked softmax loss cost, in time and memory, beside cross-entropy over all scores at once?

Each row is one process per loss: P targets, V rows of the table, value and gradients. Times are the fastest of
some rounds, so that other work on the machine disturbs them least; memory is the peak above the table, its
gradient and what the libraries need.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from tabulate import tabulate

from raysrec.losses import softmax_loss, softmax_loss_reference

LOSSES = {"chunked": softmax_loss, "all at once": softmax_loss_reference}
SIZES = ["1150x3417", "1150x18346", "1150x43885", "4096x200001"]


def main() -> None:
    """Measure each size with each loss in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=SIZES, metavar="PxV", help="targets x rows of the item table")
    parser.add_argument("--dim", type=int, default=64, help="channels of a state")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=10, help="how often each is timed (at most 5 s each)")
    parser.add_argument("--most-gib", type=float, default=6.0, help="skip cross-entropy when it needs more than this")
    parser.add_argument("--measure", choices=LOSSES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = [(int(num_targets), int(num_rows)) for num_targets, num_rows in (size.split("x") for size in given.sizes)]
    if given.measure:
        [(num_targets, num_rows)] = sizes
        print(json.dumps(measure(LOSSES[given.measure], num_targets, num_rows, given.dim, given.threads, given.rounds)))
        return
    print(tabulate([_row(P, V, given) for P, V in sizes], headers="keys", disable_numparse=True, stralign="right"))


def measure(
    loss: Callable[..., torch.Tensor], num_targets: int, num_rows: int, dim: int, threads: int, rounds: int
) -> dict[str, float]:
    """Microseconds per target for value and gradients, and the peak memory that they add, in MiB."""
    torch.set_num_threads(threads)
    # The libraries load what they load once, on small tensors.
    _learn(loss, torch.randn(9, dim).requires_grad_(), torch.randn(99, dim).requires_grad_(), torch.arange(1, 10))
    states = torch.randn(num_targets, dim).requires_grad_()
    vectors = torch.randn(num_rows, dim).mul_(0.1).requires_grad_()
    targets = torch.randint(1, num_rows, (num_targets,))
    vectors.grad = torch.ones_like(vectors)
    before = _peak_mib()
    seconds: list[float] = []
    while len(seconds) < rounds and sum(seconds) < 5:
        states.grad = vectors.grad = None
        started_at = time.perf_counter()
        _learn(loss, states, vectors, targets)
        seconds.append(time.perf_counter() - started_at)
    return {"us_per_target": min(seconds) / num_targets * 1e6, "peak_mib": _peak_mib() - before}


def _row(num_targets: int, num_rows: int, given: argparse.Namespace) -> dict[str, str]:
    row = {"targets": str(num_targets), "rows": str(num_rows)}
    # Scores, their logarithms of probabilities, and the gradient of both.
    needs_gib = 3 * 4 * num_targets * num_rows / 2**30
    found = {}
    for name in LOSSES:
        if name == "chunked" or needs_gib < given.most_gib:
            found[name] = _in_own_process(name, num_targets, num_rows, given)
        row[f"{name}: us/target"] = f"{found[name]['us_per_target']:.1f}" if name in found else "-"
        row[f"{name}: MiB"] = f"{found[name]['peak_mib']:.0f}" if name in found else f"(about {needs_gib * 1024:.0f})"
    chunked, whole = (found.get(name, {}).get("us_per_target", float("nan")) for name in LOSSES)
    row["faster by"] = f"{whole / chunked:.1f}" if len(found) == 2 else "-"
    return row


def _in_own_process(name: str, num_targets: int, num_rows: int, given: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, f"{num_targets}x{num_rows}", "--measure", name]
    for option in ("dim", "threads", "rounds"):
        command += [f"--{option}", str(getattr(given, option))]
    answer: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def _learn(
    loss: Callable[..., torch.Tensor], states: torch.Tensor, vectors: torch.Tensor, targets: torch.Tensor
) -> None:
    torch.autograd.backward(loss(states, vectors, targets) / len(targets))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
