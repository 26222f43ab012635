"""What a training step takes on many GPUs, on paper: bytes exchanged, seconds, memory. Pure functions of numbers.

What is assumed, and what it leaves out:

- *Bytes.* A ring: to all-reduce a tensor of S bytes each of N GPUs sends 2 (N - 1) / N S, to reduce-scatter or to
  gather it (N - 1) / N S. What is exchanged is counted as the engines do it (a test looks at real steps). DDP
  all-reduces the float32 gradients once a step. DeepSpeed all-reduces them, too, in ZeRO 1 and 2, where the book has it
  reduce-scatter them, and gathers the weights after the update; ZeRO 2 and 3 exchange gradients after every
  micro-batch; ZeRO 3 reduce-scatters them, and gathers large weights for every micro-batch and small ones after the
  update. The gradient of the item table is as large as the table, [N D], whichever items a batch has: the loss and
  `nn.Embedding` make it so. With bfloat16 DeepSpeed exchanges gradients of linear layers and convolutions in it, and
  of nothing else; DDP none.
- *Links.* Inside a machine a GPU has a link of its own; between machines all GPUs of one share its network, and the
  slower of the two is what a ring runs at. Each message also waits for the latency, as in a tree: 2 log2 N times to be
  reduced for all, half as often otherwise. Nobody else uses the network.
- *Overlap.* None; or, with `overlap`, what is exchanged hides behind the backward pass of the last micro-batch, two
  thirds of its time. Weights do not, and the item table's gradient cannot: items are read first and scored last, so it
  is complete at the very end.
- *Compute.* A part for each target, a part for each step, and the update of all weights, which ZeRO divides by N. Every
  GPU has as many targets as any other, however few, and waits for none; but rows are whole windows, so that of a batch
  with fewer rows than GPUs some have nothing. Reading keeps up (`data.num_streams` is at least N).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

WAYS = ("DDP", "ZeRO 1", "ZeRO 2", "ZeRO 3")
"""By the ZeRO stage; DDP is what stage 0 does, too."""

BACKWARD_SHARE = 2 / 3
"""Of forward and backward pass: gradients of a product are two products."""

BUCKET_BYTES = {"DDP": 25 * 2**20}
"""What is sent in one message; DeepSpeed's buckets hold 500 million values, which is everything here."""


@dataclass(frozen=True)
class Link:
    """A way between GPUs."""

    bytes_per_s: float
    """In each direction, and what is reached of it, not what is printed on it."""
    latency_s: float = 0.0
    """Of a message."""


LINKS = {
    "nvlink": Link(360e9, 3e-6),
    "pcie": Link(20e9, 6e-6),
    "infiniband": Link(320e9, 6e-6),
    "ethernet-100": Link(10e9, 20e-6),
    "ethernet-25": Link(2.5e9, 30e-6),
    "ethernet-10": Link(1e9, 40e-6),
}
"""Orders of magnitude, 80 % of the nominal rate: NVLink 4 (450 GB/s a GPU), PCIe 4.0 x16 (less: 20 of 32 GB/s), eight
400 Gb/s InfiniBand adapters in a machine, and Ethernet of 100, 25 and 10 Gb/s a machine."""


@dataclass(frozen=True)
class Hardware:
    """How GPUs are connected."""

    gpus_per_machine: int
    inside: Link
    """Of one GPU to others in its machine."""
    between: Link
    """Of one machine, all its GPUs together, to others."""

    def link(self, num_gpus: int) -> Link:
        """What a ring through so many GPUs runs at."""
        if num_gpus <= self.gpus_per_machine:
            return self.inside
        if self.gpus_per_machine == 1:
            return self.between
        slower = min(self.inside.bytes_per_s, self.between.bytes_per_s)
        return Link(slower, max(self.inside.latency_s, self.between.latency_s))


@dataclass(frozen=True)
class Sizes:
    """How many values the trainable parameters of a model hold."""

    values: int
    table: int = 0
    """Of them, in the table of item vectors."""
    in_layers: int = 0
    """In linear layers and convolutions, which bfloat16 is for."""
    large: int = 0
    """In parameters that ZeRO 3 divides (stage3_param_persistence_threshold: more than 100,000 values)."""
    large_in_layers: int = 0
    """In those of them that are in linear layers and convolutions."""
    num_small: int = 0
    """Parameters that ZeRO 3 leaves whole."""


class Exchange(NamedTuple):
    """What all workers do together with some tensor, `times` times a step."""

    kind: str
    """`all_reduce`, `reduce_scatter` or `all_gather`."""
    bytes: float
    """Of the whole tensor."""
    messages: int = 1
    """That it is sent in."""
    times: int = 1
    hides: bool = True
    """May it overlap with the backward pass?"""

    def sent(self, num_gpus: int) -> float:
        """Bytes that each GPU sends in a step."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return self.times * rounds * (num_gpus - 1) / num_gpus * self.bytes

    def seconds(self, num_gpus: int, link: Link) -> float:
        """How long it takes in a step."""
        rounds = 2 if self.kind == "all_reduce" else 1
        waits = self.times * self.messages * rounds * math.ceil(math.log2(num_gpus))
        return self.sent(num_gpus) / link.bytes_per_s + waits * link.latency_s


def exchanges(way: str, sizes: Sizes, *, micro_batches: int = 1, bfloat16: bool = False) -> list[Exchange]:
    """What a step exchanges.

    Args:
        way: One of `WAYS`.
        sizes: Of the model.
        micro_batches: Of each worker in a step.
        bfloat16: Are matrix products computed in it?
    """
    if way == "DDP":
        rest = 4 * (sizes.values - sizes.table)
        per_message = BUCKET_BYTES[way]
        table = Exchange("all_reduce", 4 * sizes.table, math.ceil(4 * sizes.table / per_message), hides=False)
        return [table, Exchange("all_reduce", rest, math.ceil(rest / per_message))]
    saved = 2 if bfloat16 else 0
    table_gradient = 4 * sizes.table
    rest_gradient = 4 * (sizes.values - sizes.table) - saved * sizes.in_layers
    after_each = micro_batches if way != "ZeRO 1" else 1
    kind = "reduce_scatter" if way == "ZeRO 3" else "all_reduce"
    gradients = [
        Exchange(kind, table_gradient, times=after_each, hides=False),
        Exchange(kind, rest_gradient, times=after_each),
    ]
    if way != "ZeRO 3":
        return [*gradients, Exchange("all_gather", 4 * sizes.values, hides=False)]
    large = 4 * sizes.large - saved * sizes.large_in_layers
    small = 4 * (sizes.values - sizes.large)
    return [
        *gradients,
        Exchange("all_gather", large, times=micro_batches, hides=False),
        Exchange("all_gather", small, messages=sizes.num_small, hides=False),
    ]


@dataclass(frozen=True)
class Compute:
    """Seconds that a GPU computes."""

    per_target_s: float
    """Forward and backward pass and loss, for each target."""
    per_step_s: float = 0.0
    """Whatever the batch is."""
    update_s: float = 0.0
    """Of the optimizer, for all weights."""

    @classmethod
    def fitted(cls, points: Sequence[tuple[float, float]], update_s: float = 0.0) -> "Compute":
        """From steps of one or two numbers of targets: (targets, seconds) of each, the update in them.

        Raises:
            ValueError: They are neither, or the larger batch is not the slower one.
        """
        if len(points) not in (1, 2) or any(targets <= 0 or seconds <= 0 for targets, seconds in points):
            raise ValueError(f"expected seconds of steps with one or two numbers of targets, not {list(points)}")
        (few, less_s), (many, more_s) = sorted(points)[0], sorted(points)[-1]
        if len(points) == 1:
            return cls(max(0.0, more_s - update_s) / many, 0.0, min(update_s, more_s))
        if many == few or more_s <= less_s:
            raise ValueError(
                f"a step of {many:g} targets took {more_s:g} s and one of {few:g} took {less_s:g} s: a larger batch "
                "must take longer; measure again, with more steps or batches that differ more"
            )
        per_target_s = (more_s - less_s) / (many - few)
        rest_s = more_s - per_target_s * many
        if rest_s < update_s:  # noise: what is left for the step would be negative
            return cls((more_s - update_s) / many if more_s > update_s else per_target_s, 0.0, update_s)
        return cls(per_target_s, rest_s - update_s, update_s)

    def on_gpu(self, times: float, per_step_s: float) -> "Compute":
        """The same on something that is so many times as fast, but takes so long to start the operators of a step."""
        return Compute(self.per_target_s / times, per_step_s, self.update_s / times)


class Step(NamedTuple):
    """A step of all GPUs, on paper."""

    targets: float
    compute_s: float
    exchange_s: float
    """That nothing hides."""

    @property
    def targets_per_s(self) -> float:
        """Of all GPUs together."""
        return self.targets / (self.compute_s + self.exchange_s)

    @property
    def exchange_share(self) -> float:
        """Of the step."""
        return self.exchange_s / (self.compute_s + self.exchange_s)


@dataclass(frozen=True)
class Training:
    """What is trained."""

    sizes: Sizes
    compute: Compute
    targets_per_micro_batch: float
    """The most that a micro-batch holds."""
    bfloat16: bool = False
    overlap: bool = False

    def step(self, way: str, num_gpus: int, batch: float, hardware: Hardware) -> Step:
        """One step of so many GPUs on a batch of so many targets over all of them."""
        own = batch / num_gpus
        micro_batches = max(1, math.ceil(own / self.targets_per_micro_batch))
        shares = num_gpus if way != "DDP" else 1
        learn_s = self.compute.per_target_s * own
        compute_s = learn_s + self.compute.per_step_s + self.compute.update_s / shares
        if num_gpus == 1:
            return Step(batch, compute_s, 0.0)
        link = hardware.link(num_gpus)
        open_s = hidden_s = 0.0
        for each in exchanges(way, self.sizes, micro_batches=micro_batches, bfloat16=self.bfloat16):
            seconds = each.seconds(num_gpus, link)
            if self.overlap and each.hides:
                hidden_s += seconds
            else:
                open_s += seconds
        behind_s = BACKWARD_SHARE * learn_s / micro_batches
        return Step(batch, compute_s, open_s + max(0.0, hidden_s - behind_s))

    def efficiency(self, way: str, num_gpus: int, batch: float, hardware: Hardware, *, alone: float) -> float:
        """Targets a second of each GPU, as a share of those that one GPU alone learns in steps of `alone`."""
        one = self.step("DDP", 1, alone, hardware).targets_per_s
        return self.step(way, num_gpus, batch, hardware).targets_per_s / num_gpus / one


def sent_bytes(way: str, sizes: Sizes, num_gpus: int, *, micro_batches: int = 1, bfloat16: bool = False) -> float:
    """Bytes that each GPU sends in a step."""
    found = exchanges(way, sizes, micro_batches=micro_batches, bfloat16=bfloat16)
    return sum(each.sent(num_gpus) for each in found)


def state_bytes(way: str, sizes: Sizes, num_gpus: int) -> float:
    """What a GPU holds of weights, gradients and Adam's two means, in float32."""
    weights, gradients, optimizer = 4 * sizes.values, 4 * sizes.values, 8 * sizes.values
    stage = WAYS.index(way)
    master = 4 * sizes.values / num_gpus if stage in (1, 2) else 0.0  # DeepSpeed's own copy of what it updates
    return (
        weights / (num_gpus if stage >= 3 else 1)
        + gradients / (num_gpus if stage >= 2 else 1)
        + optimizer / (num_gpus if stage >= 1 else 1)
        + master
    )


def worth(efficiencies: Sequence[tuple[int, float]], at_least: float) -> int:
    """The most GPUs at which each still does so much of what one alone does, up to the first number that does not."""
    found = 1
    for num_gpus, efficiency in efficiencies:
        if efficiency < at_least:
            break
        found = num_gpus
    return found
