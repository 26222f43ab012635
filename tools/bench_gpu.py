#!/usr/bin/env python3
"""How fast do the models learn on this GPU, and how close is that to what the GPU can do?

    python tools/bench_gpu.py                          # every model, histories of 200 and 2,000 items
    python tools/bench_gpu.py --device cpu --small     # to see it run on a machine without a GPU

One row per model, length and path: the CUDA libraries where they are installed, and torch alone. A step is encoding,
the exact softmax over the catalogue, the gradients and Adam; every position is a target. It needs torch and this
package's models and losses, neither Ray nor DeepSpeed.

The ceilings are measured in the same run: a large matrix product in the same precision, and a large copy (bytes read
plus bytes written). Two shares are printed, and the larger one says what holds the step back; if both are small, it
is the launching of many small operators:

- of the product: the FLOPs of all matrix products of a step, counted on the torch path and used for both;
- of the copy: the bytes that operators read and write, as if nothing stayed in a cache. Above 100 % something did;
  what a library's kernel moves inside is not seen, only what goes in and out of the operators around it.
"""

import argparse
import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from raysrec.history import History
from raysrec.losses import softmax_loss
from raysrec.models import MODELS, build_model
from raysrec.ops import kernels, selective_scan, short_conv

WITH_LIBRARY = (selective_scan, short_conv)
"""The operators that have a CUDA library; each finds it through its module's `_cuda_kernel`."""


@dataclass(frozen=True)
class Measured:
    """One row of the table, but for the names."""

    seconds: float
    flops: int
    moved_bytes: int
    peak_bytes: int


def main() -> int:
    """Measure, print the table, and return the exit status."""
    given = _arguments()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu: torch sees no GPU on this machine. To try it out: --device cpu --small", file=sys.stderr)
        return 1
    flops_per_s, bytes_per_s = product_flops_per_s(given), copy_bytes_per_s(given)
    hardware = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{hardware}; torch {torch.__version__}; {given.positions:,} positions a step, {given.items:,} items")
    print("; ".join(f"{name}: {choice}" for name, choice in kernels(given.device).items()))
    print(f"ceilings: {flops_per_s / 1e12:.2f} TFLOP/s in {given.precision}, {bytes_per_s / 1e9:,.0f} GB/s copied\n")
    line = "{:<12} {:>6} {:<9} {:>12} {:>10} {:>10} {:>15} {:>13}"
    header = ("model", "length", "path", "targets/s", "ms/step", "peak MiB", "of the product", "of the copy")
    print(line.format(*header), flush=True)
    for name in given.models:
        for length in given.lengths:
            for path, row in paths(name, length, given):
                cells = (
                    ["out of memory", "", "", "", ""] if row is None else _cells(row, given, flops_per_s, bytes_per_s)
                )
                print(line.format(name, length, path, *cells), flush=True)
    return 0


def paths(name: str, length: int, given: argparse.Namespace) -> Iterator[tuple[str, Measured | None]]:
    """The step on torch alone, and with the libraries if one of them takes part; None where memory ran out."""
    with contextlib.ExitStack() as stack:
        for module in WITH_LIBRARY:
            stack.enter_context(mock.patch.object(module, "_cuda_kernel", return_value=None))
        alone = measure(name, length, given)
    yield "torch", alone
    if given.device == "cuda" and any(module._cuda_kernel() for module in WITH_LIBRARY):
        fast = measure(name, length, given)
        if fast is not None and alone is not None:
            fast = Measured(fast.seconds, alone.flops, fast.moved_bytes, fast.peak_bytes)
        yield "libraries", fast


def measure(name: str, length: int, given: argparse.Namespace) -> Measured | None:
    """Time, memory and work of a training step, or None if it does not fit the GPU."""
    try:
        step = make_step(name, length, given)
        step()  # allocations, and the libraries' own choices
        with FlopCounterMode(display=False) as flops:
            step()
        with _MovedBytes() as moved:
            step()
        if given.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = seconds_per_call(step, given)
        return Measured(seconds, flops.get_total_flops(), moved.total, peak_bytes(given.device))
    except torch.cuda.OutOfMemoryError:
        return None


def make_step(name: str, length: int, given: argparse.Namespace) -> Callable[[], None]:
    """A training step of a fresh model on one batch of full histories."""
    torch.manual_seed(0)
    config = MODELS[name].Config.model_validate({"name": name, "max_length": length})
    model = build_model(config, given.items).to(given.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    rows = max(1, given.positions // length)
    items = torch.randint(1, given.items + 1, (rows, length + 1), device=given.device)
    lengths = torch.full((rows,), length, device=given.device)
    history = History(items[:, :-1].contiguous(), torch.zeros_like(items[:, 1:]), lengths)
    targets = items[:, 1:].flatten()
    dtype = getattr(torch, given.precision)

    def step() -> None:
        with torch.autocast(given.device, dtype=dtype, enabled=dtype != torch.float32):
            states = model.encode(history).flatten(0, 1)
            loss = softmax_loss(states, model.item_vectors(), targets, model.item_bias())
        (loss / len(targets)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def product_flops_per_s(given: argparse.Namespace) -> float:
    """FLOPs per second of a large matrix product."""
    size = 1024 if given.small else 8192
    a = torch.randn(size, size, device=given.device, dtype=getattr(torch, given.precision))
    product = torch.empty_like(a)
    return 2 * size**3 / seconds_per_call(lambda: torch.mm(a, a, out=product), given)


def copy_bytes_per_s(given: argparse.Namespace) -> float:
    """Bytes read and written per second by a copy that no cache holds."""
    source = torch.zeros(2**26 if given.small else 2**29, device=given.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_per_call(lambda: target.copy_(source), given)


def seconds_per_call(call: Callable[[], Any], given: argparse.Namespace) -> float:
    """The fastest of calls that go on for `--seconds`, at least three."""
    call()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < given.seconds:
        _wait_for_device(given.device)
        started_at = time.perf_counter()
        call()
        _wait_for_device(given.device)
        taken.append(time.perf_counter() - started_at)
    return min(taken)


def peak_bytes(device: str) -> int:
    """The most that tensors took on the GPU since it was reset; on a CPU, that this process ever took."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _MovedBytes(TorchDispatchMode):
    """Counts what operators read and write, each tensor at most with the memory that it stands on."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # A view moves nothing, and an empty tensor is not written.
        if not func.is_view and not func.__name__.startswith(("empty", "new_empty", "_unsafe_view")):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(min(one.numel() * one.itemsize, one.untyped_storage().nbytes()) for one in tensors)
        return result


def _cells(row: Measured, given: argparse.Namespace, flops_per_s: float, bytes_per_s: float) -> list[str]:
    return [
        f"{given.positions / row.seconds:,.0f}",
        f"{1e3 * row.seconds:,.1f}",
        f"{row.peak_bytes / 2**20:,.0f}",
        f"{row.flops / row.seconds / flops_per_s:.1%}",
        f"{row.moved_bytes / row.seconds / bytes_per_s:.1%}",
    ]


def _wait_for_device(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--lengths", nargs="+", type=int, default=[200, 2_000], help="default: 200 2000")
    parser.add_argument("--items", type=int, default=16_086, help="items in the catalogue (default: Netflix's)")
    parser.add_argument("--positions", type=int, help="positions in a step (default: 256,000, with --small 4,000)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], help="default: bfloat16, on a CPU float32")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each is timed (default: 3)")
    parser.add_argument("--small", action="store_true", help="sizes for a laptop, to try the benchmark out")
    given = parser.parse_args()
    given.positions = given.positions or (4_000 if given.small else 256_000)
    given.precision = given.precision or ("bfloat16" if given.device == "cuda" else "float32")
    # Whole histories only, so that every length has as many targets.
    if any(given.positions % length for length in given.lengths):
        parser.error(f"--positions {given.positions} is not a multiple of every length in {given.lengths}")
    return given


if __name__ == "__main__":
    sys.exit(main())
