"""How many workers are worth it: targets a second and the share of communication here, and on paper for 8 to 256 GPUs.

    python tools/bench_scaling.py --config configs/ml-1m.yaml train.optimizer=adam data.num_streams=4
    python tools/bench_scaling.py --config configs/netflix.yaml --workers none --compute-seconds 16384=0.040,2048=0.012

*Here* 1, 2 and 4 processes of one thread share `train.batch_targets` with the engine of the config, without Ray.
`communication` is what they lose by talking, against the same processes each for itself: the exchange, and waiting for
the slowest. `gradients alone` is what sending as many values takes when nothing else is done. Where workers are more
than cores they take turns: their targets a second say nothing about a machine with more cores, the shares still do.

*On paper* the bytes are counted from the model's parameters, and `scaling_on_paper.py` says what is assumed of links,
overlap and compute. The seconds that a GPU computes are best those of one GPU, on which steps with one or two numbers
of targets were timed: `--compute-seconds`. Two tell what a step takes however small its batch is, and that is what ends
the scaling of small models. Without them it is one worker here, on a CPU, or a GPU supposed to be `--times-as-fast`.
Cells are targets a second, of each GPU the share of what one alone does, and in brackets the share of communication.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from scaling_here import Here, exchange_table, measure_here, positions_per_target, sizes_of
from scaling_on_paper import LINKS, WAYS, Compute, Hardware, Link, Sizes, Training, sent_bytes, state_bytes, worth
from tabulate import tabulate

from raysrec.command_line import config_parser, run_verb
from raysrec.config.loading import load
from raysrec.config.run import RunConfig
from raysrec.models import build_model
from raysrec.plan import plan
from raysrec.prepare import prepare

SMALLER = 4
"""One worker is also measured with a batch so many times smaller."""

HARDWARE = ("8:nvlink:infiniband", "1:pcie:ethernet-10")
"""Machines of eight GPUs, and single ones in an ordinary network."""

T = TypeVar("T")


def main(arguments: Any) -> None:
    """Measure, and print what was measured and what follows."""
    config = load(arguments.config, arguments.overrides)
    refuse(config, arguments)
    data = prepare(config.data)
    print(plan(config, data), flush=True)
    sizes = sizes_of(build_model(config.model, data.manifest.num_items, data.manifest.num_users))
    if not sizes.values:
        raise ValueError(f"model.name={config.model.name} has nothing to learn, and so nothing to exchange")
    computes = {"as given, of one GPU": Compute.fitted(arguments.compute_seconds)} if arguments.compute_seconds else {}
    if arguments.workers:
        busy = f"{os.getloadavg()[0]:.1f} processes wanted {os.cpu_count()} cores before"
        here = measured(config, str(data.directory.absolute()), arguments)
        print(f"\nhere: {config.engine.name}, {config.train.batch_targets:,} targets a step over all workers; {busy}\n")
        print(tabulate(here.lines(), headers="keys", tablefmt="github", disable_numparse=True))
        if exchanged := exchange_table(config, here, sizes):
            print(f"\nvalues exchanged in one step of 2 workers\n\n{exchanged}")
        if not computes:
            computes = dict(extrapolated(here.compute(), arguments.times_as_fast, arguments.start_seconds))
    print_paper(config, sizes, positions_per_target(config, data), computes, arguments)


def print_paper(
    config: RunConfig, sizes: Sizes, positions_per_target: float, computes: dict[str, Compute], arguments: Any
) -> None:
    """What each GPU sends and holds, and how fast they are."""
    batch, per_micro_batch = config.train.batch_targets, config.train.micro_batch_tokens / positions_per_target
    bfloat16 = config.engine.precision != "float32"
    print(f"\non paper: {sizes.values:,} values, {sizes.table:,} of them in the item table; {batch:,} targets a step\n")
    print(bytes_table(sizes, arguments.gpus, batch=batch, per_micro_batch=per_micro_batch, bfloat16=bfloat16))
    for name, compute in computes.items():
        print(f"\ncompute {name}: {in_words(compute)}")
        training = Training(sizes, compute, per_micro_batch, bfloat16=bfloat16, overlap=arguments.overlap)
        for hardware in arguments.hardware or map(hardware_of, HARDWARE):
            for kept in (False, True):
                print(f"\n{title(hardware, batch, kept=kept)}\n")
                print(paper(training, hardware, arguments, batch=batch, kept=kept))


def refuse(config: RunConfig, arguments: Any) -> None:
    """What cannot be measured, before anything starts."""
    most, streams = max(arguments.workers, default=1), config.data.num_streams
    if most > streams:
        raise ValueError(f"--workers {most} exceeds data.num_streams={streams}; set data.num_streams={most}")
    if not arguments.workers and not arguments.compute_seconds:
        raise ValueError("--workers none measures nothing; say with --compute-seconds what a GPU computes")
    if config.train.batch_targets < SMALLER * most:
        raise ValueError(f"train.batch_targets={config.train.batch_targets} is too few for {most} workers; raise it")


def measured(config: RunConfig, prepared: str, arguments: Any) -> Here:
    """What workers do here."""
    train = config.train.model_copy(update={"batch_targets": config.train.batch_targets // SMALLER})
    smaller = config.model_copy(update={"train": train})
    return measure_here(config, smaller, prepared, arguments.workers, steps=arguments.steps, rounds=arguments.rounds)


def extrapolated(here: Compute, times: Sequence[float], start_s: float) -> Iterator[tuple[str, Compute]]:
    """What a worker here computes, and a GPU that is so many times as fast."""
    for each in times:
        if each == 1:
            yield "of one CPU worker here", here
        else:
            name = (
                f"supposed, of a GPU {each:g} times as fast as one CPU worker here that starts a step in {start_s:g} s"
            )
            yield name, here.on_gpu(each, start_s)


def in_words(compute: Compute) -> str:
    """Its parts."""
    return (
        f"{1e6 * compute.per_target_s:.3g} µs a target, {1e3 * compute.per_step_s:.3g} ms a step whatever its batch, "
        f"{1e3 * compute.update_s:.3g} ms to update all weights"
    )


def title(hardware: Hardware, batch: int, *, kept: bool) -> str:
    """What a table is about."""
    inside = f"{hardware.inside.bytes_per_s / 1e9:g} GB/s a GPU inside, " if hardware.gpus_per_machine > 1 else ""
    batches = f"{batch:,} targets a step of each GPU" if kept else f"{batch:,} targets a step over all GPUs"
    between = f"{hardware.between.bytes_per_s / 1e9:g} GB/s between machines"
    return f"{batches}; machines of {hardware.gpus_per_machine}, {inside}{between}"


def paper(training: Training, hardware: Hardware, arguments: Any, *, batch: int, kept: bool) -> str:
    """By number of GPUs: thousand targets a second, efficiency, and the share of communication; and how many pay."""
    lines: list[dict[str, str]] = []
    kept_up: dict[str, list[tuple[int, float]]] = {way: [] for way in WAYS}
    for number in arguments.gpus:
        whole = batch * number if kept else batch
        line = {"GPUs": f"{number}", "targets a GPU": f"{whole / number:,.0f}"}
        for way in WAYS:
            step = training.step(way, number, whole, hardware)
            efficiency = training.efficiency(way, number, whole, hardware, alone=batch)
            kept_up[way].append((number, efficiency))
            line[way] = f"{step.targets_per_s / 1e3:,.0f}k, {efficiency:.0%} ({step.exchange_share:.0%})"
        lines.append(line)
    pays = ", ".join(f"{way} {worth(found, arguments.at_least)}" for way, found in kept_up.items())
    table = tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
    return f"{table}\n\nGPUs of which each does {arguments.at_least:.0%} or more of what one alone does: up to {pays}"


def bytes_table(sizes: Sizes, gpus: Sequence[int], *, batch: int, per_micro_batch: float, bfloat16: bool) -> str:
    """By what each GPU sends in a step, and holds of weights, gradients and Adam's means."""
    numbers = [number for number in gpus if number > 1]
    ends = sorted({numbers[0], numbers[-1]}) if numbers else []
    lines = []
    for way in WAYS:
        line = {"way": way}
        for number in ends:
            micro_batches = math.ceil(batch / number / per_micro_batch)
            sent = sent_bytes(way, sizes, number, micro_batches=micro_batches, bfloat16=bfloat16)
            line[f"MB sent a step, {number} GPUs"] = f"{sent / 1e6:,.1f}"
        for number in ends:
            line[f"MB held, {number} GPUs"] = f"{state_bytes(way, sizes, number) / 1e6:,.1f}"
        lines.append(line)
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


def link_of(text: str) -> Link:
    """`nvlink`, or GB/s such as `12.5`, or with microseconds of latency `12.5@20`."""
    if text in LINKS:
        return LINKS[text]
    speed, _, latency = text.partition("@")
    return Link(1e9 * factor(speed), 1e-6 * factor(latency) if latency else 0.0)


def hardware_of(text: str) -> Hardware:
    """`8:nvlink:infiniband`."""
    number, inside, between = text.split(":")
    return Hardware(positive(number), link_of(inside), link_of(between))


def point_of(text: str) -> tuple[float, float]:
    """`2048=0.012`."""
    targets, seconds = map(factor, text.split("="))
    return targets, seconds


def positive(text: str) -> int:
    """A whole number of things, at least one."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def factor(text: str) -> float:
    """A number above 0."""
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError(text)
    return number


def listed(read: Callable[[str], T], expected: str, *, may_be_none: bool = False) -> Callable[[str], list[T]]:
    """Reads what commas divide."""

    def parse(text: str) -> list[T]:
        try:
            return [] if may_be_none and text == "none" else [read(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}") from None

    return parse


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = config_parser("bench_scaling", __doc__ or "")
    command_line.prog = "python tools/bench_scaling.py"
    add = command_line.add_argument
    numbers = "numbers of at least 1 such as 1,2,4"
    add(
        "--workers",
        type=listed(positive, f"{numbers}, or none", may_be_none=True),
        default=[1, 2, 4],
        help="processes to measure here, or none (default: 1,2,4)",
    )
    add("--steps", type=positive, default=50, help="steps of each measurement (default: 50)")
    add("--rounds", type=positive, default=3, help="measurements of each, of which the median counts (default: 3)")
    add(
        "--gpus",
        type=listed(positive, numbers),
        default=[1, 8, 16, 32, 64, 128, 256],
        help="GPUs on paper (default: 1,8,16,32,64,128,256)",
    )
    add(
        "--hardware",
        type=listed(hardware_of, f"GPUs a machine:inside:between, such as {HARDWARE[0]} or 4:pcie:12.5@20"),
        help=f"GPUs a machine:link inside:link of a machine to others (default: {','.join(HARDWARE)}); a link is "
        f"one of {', '.join(LINKS)}, or GB/s such as 12.5, or with µs of latency 12.5@20",
    )
    add(
        "--compute-seconds",
        type=listed(point_of, "targets=seconds of one or two steps, such as 16384=0.040,2048=0.012"),
        metavar="TARGETS=S[,TARGETS=S]",
        help="seconds of a step of one GPU, in place of what is measured here",
    )
    add(
        "--times-as-fast",
        type=listed(factor, "factors above 0 such as 1,1000"),
        default=[1.0],
        help="suppose GPUs that are so many times as fast as a worker here (default: 1, which is such workers)",
    )
    add(
        "--start-seconds",
        type=float,
        default=0.005,
        help="what such a GPU takes to start the operators of a step, whatever its batch (default: 0.005, some "
        "thousand operators)",
    )
    add("--overlap", action="store_true", help="what can be exchanged during the backward pass is")
    add("--at-least", type=float, default=0.7, help="share of what one GPU does alone, for which another pays (0.7)")
    return command_line


if __name__ == "__main__":
    run_verb(main, parser())
