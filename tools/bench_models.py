#!/usr/bin/env python3
"""What does each model cost: time of an epoch and of a recommendation, memory, FLOPs, parameters?

    python tools/bench_models.py --device cpu                              # every model, histories of 200 items
    python tools/bench_models.py --models recgrela recgrela:num_blocks=1   # settings of a model after a colon
    python tools/bench_models.py --lengths 200 2000 5000 --items 43884
    python tools/bench_models.py --lifelong                                # cost of one item in ever longer histories

These are the columns of the efficiency tables of Mamba4Rec (its Table 3) and RecGRELA (its Table 3), as Markdown.
Histories are random and full. One row is one process, so that no row leaves memory behind for the next.

- *epoch*: seconds for `--targets` targets (default: as many as an epoch of ML-1M has), from the time of one step of
  encoding, exact softmax over the catalogue, gradients and Adam. A causal model learns at every position of a
  history, one that fills gaps from the items that `cloze` hides from it as it stands (a fifth of half of the
  histories, of the others the last); any other learns one target per history, as both papers train all of theirs.
  Which of these it was stands in the row, and
  `--supervision last_position` asks one target per history of every model.
- *training MiB*: the most that a step takes, the model, its gradients and Adam's memory included: growth of a process
  that has already made a step of a tiny model (CPU), or what torch allocated (GPU).
- *inference ms/user*: reading a history and ranking one target among all items, in batches of the same size.
- *MFLOPs*: of the matrix products (a multiplication and an addition are two) of reading one history, as
  torch.utils.flop_counter counts them. It sees no element-wise arithmetic, and scans, Fourier transforms, norms and
  activations are just that; nor what happens inside a library's kernel (a GRU, on a GPU a selective scan).
  *other M* says how much it did not see: millions of values that all other operators wrote.

With `--lifelong` a step has as many positions at every length, and what is measured is `encode` and its gradient
alone: the loss costs the same per item at every length and would hide the difference.

On a CPU with one thread times are CPU seconds, which other work on the machine lengthens little.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from model_steps import (
    autocast,
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
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from raysrec.history import History
from raysrec.models import MODELS, ModelConfig, SequenceModel
from raysrec.ranking import rank_of_target

Measured = dict[str, Any]


def main() -> int:
    """Measure each model at each length in a process of its own, print the table, and return the exit status."""
    given = _arguments()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("bench_models: torch sees no GPU on this machine; try --device cpu", file=sys.stderr)
        return 1
    if given.measure:
        print(json.dumps(measure(given.models[0], given.lengths[0], given)))
        return 0
    hardware = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {given.threads} thread(s)"
    step = f"{given.batch} histories" if given.batch else f"{given.positions:,} positions"
    print(f"{hardware}; torch {torch.__version__}, {given.precision}; {step} a step; {given.items:,} items\n")
    rows = [_lifelong_row(model, given) for model in given.models] if given.lifelong else _cost_rows(given)
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True, stralign="right"))
    return 0


def measure(model: str, length: int, given: argparse.Namespace) -> Measured:
    """What this process finds for one model (`name` or `name:key=value,...`) and one length."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = config_of(model, length)
    if given.lifelong:
        made, history = _made(config, length, given)
        return {"us_per_item": 1e6 * _seconds(_encoding(made, history, given), given) / history.items.numel()}
    # The libraries load what they load once, for a model that takes next to nothing itself.
    tiny = argparse.Namespace(**{**vars(given), "items": 50, "batch": 2})
    tiny_model, tiny_history = _made(config_of(model, 8), 8, tiny)
    if learns(tiny_model):
        supervision = _supervision(tiny_model, tiny)
        training_step(tiny_model, with_targets(tiny_history, supervision), supervision, precision=given.precision)()
    _ranking(tiny_model, tiny_history, tiny)()
    return _costs(config, length, given)


def _costs(config: ModelConfig, length: int, given: argparse.Namespace) -> Measured:
    before = peak_bytes(given.device)
    model, history = _made(config, length, given)
    rows = len(history.items)
    found: Measured = {"parameters": sum(p.numel() for p in model.parameters())}
    found["supervision"] = supervision = _supervision(model, given)
    if learns(model):
        batch = with_targets(history, supervision)
        seconds = _seconds(training_step(model, batch, supervision, precision=given.precision), given)
        found["epoch_s"] = seconds * given.targets / targets_of_a_step(batch, supervision)
        found["peak_bytes"] = peak_bytes(given.device) - before
    found["inference_s"] = _seconds(_ranking(model, history, given), given) / rows
    one = full_histories(1, length, items=given.items, device=given.device)
    with FlopCounterMode(display=False) as flops, _OtherValues() as other, torch.no_grad():
        model.read(one)
    return found | {"flops": flops.get_total_flops(), "other_values": other.total}


def config_of(model: str, length: int) -> ModelConfig:
    """The settings that `name` or `name:key=value,...` means, for histories of this length."""
    name, _, settings = model.partition(":")
    changed = dict(setting.split("=", 1) for setting in settings.split(",") if setting)
    return MODELS[name].Config.model_validate({"name": name, "max_length": length, **changed})


def _made(config: ModelConfig, length: int, given: argparse.Namespace) -> tuple[SequenceModel, History]:
    """A fresh model and a batch of full histories."""
    rows = given.batch or max(1, given.positions // length)
    model = fresh_model(config, items=given.items, device=given.device)
    return model, full_histories(rows, length, items=given.items, device=given.device)


def _supervision(model: SequenceModel, given: argparse.Namespace) -> str:
    """How it learns: as is asked, or by default the cheapest way."""
    return cheapest_supervision(model) if given.supervision == "native" else str(given.supervision)


def _ranking(model: SequenceModel, history: History, given: argparse.Namespace) -> Callable[[], None]:
    """The rank of one target per history among all items."""
    targets = torch.randint(1, given.items + 1, history.lengths.shape, device=given.device)

    @torch.inference_mode()
    def rank() -> None:
        model.eval()
        with autocast(given.device, given.precision):
            states = model.read(history)
        rank_of_target(states.float(), model.item_vectors(), targets, bias=model.item_bias())

    return rank


def _encoding(model: SequenceModel, history: History, given: argparse.Namespace) -> Callable[[], None]:
    """`encode` and its gradient, without a loss."""

    def encode() -> None:
        model.train()
        with autocast(given.device, given.precision):
            states = model.encode(history)
        states.backward(torch.ones_like(states))
        model.zero_grad()

    return encode


def _seconds(call: Callable[[], None], given: argparse.Namespace) -> float:
    clock = time.process_time if given.device == "cpu" and given.threads == 1 else time.perf_counter
    return seconds_per_call(call, device=given.device, seconds=given.seconds, least=2, clock=clock)


class _OtherValues(TorchDispatchMode):
    """Counts the values that operators write whose FLOPs nobody counts."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # A view writes nothing, and an empty tensor is not written.
        if not (func.is_view or func.overloadpacket in flop_registry or func.__name__.startswith(("empty", "new_emp"))):
            self.total += sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result


def _cost_rows(given: argparse.Namespace) -> list[dict[str, str]]:
    return [
        {"model": model, "L": f"{length:,}", **_cost_cells(_in_own_process(model, length, given))}
        for length in given.lengths
        for model in given.models
    ]


def _cost_cells(found: Measured | None) -> dict[str, str]:
    if found is None:
        return {"learns": "out of memory"}
    trained = "epoch_s" in found
    return {
        "learns": found["supervision"] if trained else "nothing",
        "epoch s": f"{found['epoch_s']:,.1f}" if trained else "-",
        "training MiB": f"{found['peak_bytes'] / 2**20:,.0f}" if trained else "-",
        "inference ms/user": f"{1e3 * found['inference_s']:.3f}",
        "MFLOPs": f"{found['flops'] / 1e6:,.2f}",
        "other M": f"{found['other_values'] / 1e6:,.2f}",
        "parameters": f"{found['parameters']:,}",
    }


def _lifelong_row(model: str, given: argparse.Namespace) -> dict[str, str]:
    found = {length: _in_own_process(model, length, given) for length in given.lengths}
    cells = {"model": model}
    for length, measured in found.items():
        cells[f"us/item at {length:,}"] = f"{measured['us_per_item']:.2f}" if measured else "out of memory"
    shortest = found[given.lengths[0]]
    for length in given.lengths[1:]:
        both = shortest and found[length]
        ratio = f"{found[length]['us_per_item'] / shortest['us_per_item']:.2f}" if both else "-"  # type: ignore[index]
        cells[f"{length:,} to {given.lengths[0]:,}"] = ratio
    return cells


def _in_own_process(model: str, length: int, given: argparse.Namespace) -> Measured | None:
    """What `measure` finds, or None if the memory does not suffice."""
    command = [sys.executable, __file__, "--measure", "--models", model, "--lengths", str(length)]
    for option in ("device", "items", "positions", "targets", "threads", "seconds", "precision", "supervision"):
        command += [f"--{option}", str(getattr(given, option))]
    command += ["--batch", str(given.batch)] if given.batch else []
    command += ["--lifelong"] if given.lifelong else []
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode == 0:
        answer: Measured = json.loads(ended.stdout.splitlines()[-1])
        return answer
    if ended.returncode == -9 or "out of memory" in ended.stderr or "can't allocate memory" in ended.stderr:
        return None
    sys.exit(f"bench_models: {model} at length {length} failed:\n{ended.stderr}")


def _known(model: str) -> str:
    try:
        config_of(model, 8)
    except (KeyError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{model}: {error}; models: {', '.join(MODELS)}") from None
    return model


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", type=_known, metavar="NAME[:KEY=VALUE,...]", help="default: all")
    parser.add_argument("--lengths", nargs="+", type=int, help="default: 200, with --lifelong 200 2000 5000")
    parser.add_argument("--items", type=int, default=3_416, help="items in the catalogue (default: ML-1M's 3416)")
    parser.add_argument("--batch", type=int, help="histories in a step (default: as many as --positions hold)")
    parser.add_argument("--positions", type=int, default=10_000, help="positions in a step (default: 10000)")
    parser.add_argument("--targets", type=int, default=981_491, help="targets of an epoch (default: ML-1M's 981491)")
    parser.add_argument("--supervision", choices=["native", "last_position"], default="native")
    parser.add_argument("--lifelong", action="store_true", help="how the cost of an item grows with the history")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="float32", help="default: float32")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU (default: 1)")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each is timed (default: 2)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.lengths = given.lengths or ([200, 2_000, 5_000] if given.lifelong else [200])
    # What reads no items has no cost per item.
    given.models = given.models or [name for name in MODELS if MODELS[name].reads_items or not given.lifelong]
    if given.lifelong and given.batch:
        parser.error("--lifelong holds the positions of a step fixed; give --positions and not --batch")
    if given.lifelong and any(given.positions % length for length in given.lengths):
        parser.error(f"--positions {given.positions} is not a multiple of every length in {given.lengths}")
    return given


if __name__ == "__main__":
    sys.exit(main())
