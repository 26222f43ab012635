#!/usr/bin/env python3
"""How fast do the models learn on this GPU, and how close is that to what the GPU can do?

    python tools/bench_gpu.py                          # every model, histories of 200 and 2,000 items
    python tools/bench_gpu.py --device cpu --small     # to see it run on a machine without a GPU

One row per model, length and path: the CUDA libraries where they are installed, and torch alone. A step is encoding,
the exact softmax over the catalogue, the gradients and Adam, for the targets of the cheapest supervision that the model
can learn by (as `bench_models.py` has it). It needs torch and this package's models and losses, neither Ray nor
DeepSpeed. What has nothing to learn has no row.

The ceilings are measured in the same run: a large matrix product in the same precision, and a large copy (bytes read
plus bytes written). Two shares are printed, and the larger one says what holds the step back; if both are small, it
is the launching of many small operators:

- of the product: the FLOPs of all matrix products of a step, counted on the torch path and used for both;
- of the copy: the bytes that operators read and write, as if nothing stayed in a cache. Above 100 % something did;
  what a library's kernel moves inside is not seen, only what goes in and out of the operators around it.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from model_steps import (
    cheapest_supervision,
    fresh_model,
    full_histories,
    learns,
    peak_bytes,
    seconds_per_call,
    targets_of_a_step,
    training_step,
    with_targets,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from raysrec.models import MODELS, ModelConfig
from raysrec.ops import kernels, selective_scan, short_conv

WITH_LIBRARY = (selective_scan, short_conv)
"""The operators that have a CUDA library; each finds it through its module's `_cuda_kernel`."""


@dataclass(frozen=True)
class Measured:
    """One row of the table, but for the names."""

    targets: float
    """Of a step."""
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
                cells = ["out of memory", "", "", "", ""] if row is None else _cells(row, flops_per_s, bytes_per_s)
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
            fast = replace(fast, flops=alone.flops)
        yield "libraries", fast


def measure(name: str, length: int, given: argparse.Namespace) -> Measured | None:
    """Time, memory and work of a training step on one batch of full histories, or None if it does not fit the GPU."""
    try:
        torch.manual_seed(0)
        model = fresh_model(_config(name, length), items=given.items, device=given.device)
        supervision = cheapest_supervision(model)
        rows = max(1, given.positions // length)
        batch = with_targets(full_histories(rows, length, items=given.items, device=given.device), supervision)
        step = training_step(model, batch, supervision, precision=given.precision)
        step()  # allocations, and the libraries' own choices
        with FlopCounterMode(display=False) as flops:
            step()
        with _MovedBytes() as moved:
            step()
        if given.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = _seconds(step, given)
        targets = targets_of_a_step(batch, supervision)
        return Measured(targets, seconds, flops.get_total_flops(), moved.total, peak_bytes(given.device))
    except torch.cuda.OutOfMemoryError:
        return None


def _config(name: str, length: int) -> ModelConfig:
    return MODELS[name].Config.model_validate({"name": name, "max_length": length})


def product_flops_per_s(given: argparse.Namespace) -> float:
    """FLOPs per second of a large matrix product."""
    size = 1024 if given.small else 8192
    a = torch.randn(size, size, device=given.device, dtype=getattr(torch, given.precision))
    product = torch.empty_like(a)
    return 2 * size**3 / _seconds(lambda: torch.mm(a, a, out=product), given)


def copy_bytes_per_s(given: argparse.Namespace) -> float:
    """Bytes read and written per second by a copy that no cache holds."""
    source = torch.zeros(2**26 if given.small else 2**29, device=given.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), given)


def _seconds(call: Callable[[], Any], given: argparse.Namespace) -> float:
    return seconds_per_call(call, device=given.device, seconds=given.seconds, least=3)


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


def _cells(row: Measured, flops_per_s: float, bytes_per_s: float) -> list[str]:
    return [
        f"{row.targets / row.seconds:,.0f}",
        f"{1e3 * row.seconds:,.1f}",
        f"{row.peak_bytes / 2**20:,.0f}",
        f"{row.flops / row.seconds / flops_per_s:.1%}",
        f"{row.moved_bytes / row.seconds / bytes_per_s:.1%}",
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    learning = [name for name in MODELS if learns(fresh_model(_config(name, 1), items=1, device="cpu"))]
    parser.add_argument("--models", nargs="+", choices=learning, default=learning, help="default: all")
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
