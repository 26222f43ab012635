"""Whether some machines have room for what is asked of them: now, or when an autoscaler has started more."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysrec.cluster.bundles import Bundle, amounts_in_words, counted, fewest, task_bundle, total
from raysrec.config import ScaleConfig

TASK_BYTES = 1 << 30
"""What a task that prepares data may need, its process included."""

Machine = Mapping[str, float]
"""What a machine has, by the names of a bundle."""


@dataclass(frozen=True)
class ToCome:
    """The machines that an autoscaler may start besides those there are."""

    kinds: Mapping[str, tuple[int, Mapping[str, float]]]
    """How many more of each kind, and what such a machine has."""
    at_most: int
    """How many in all, whatever their kinds."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], workers: Sequence[str]) -> "ToCome":
        """What an autoscaler with these settings, by the names of `ray up`, may add to workers of these kinds."""
        there, in_all = Counter(workers), settings["max_workers"]
        kinds = {}
        for name, kind in settings["available_node_types"].items():
            has = {resource: float(amount) for resource, amount in kind["resources"].items()}
            kinds[name] = (max(0, kind.get("max_workers", in_all) - there[name]), has)
        return cls(kinds, max(0, min(in_all - len(workers), sum(count for count, _ in kinds.values()))))

    def __str__(self) -> str:
        counts = {kind: min(count, self.at_most) for kind, (count, _) in self.kinds.items()}
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        return f"{said} ({self.at_most} in all)" if self.at_most < sum(counts.values()) else said


def task_options(scale: ScaleConfig, there: Sequence[Machine], to_come: ToCome | None) -> dict[str, Any]:
    """What Ray is told of such a task: of a machine it takes a CPU and memory, so that no more run there than fit.

    An autoscaler starts no machine for memory that its configuration does not declare (Google's `ray up`, for one);
    where one of that kind may come, CPUs alone are asked for.

    Args:
        scale: On which machines.
        there: What each machine has in all, free or not.
        to_come: What may come besides; None if that is not known.
    """
    options: dict[str, Any] = {"num_cpus": 1, "resources": dict(scale.data_resources)}
    kinds = [*there, *(of for _, of in to_come.kinds.values())] if to_come else there
    memory = [kind.get("memory", 0) for kind in kinds if not unplaced([task_bundle(scale)], [kind])]
    if not memory or not all(memory):
        return options
    # Where even the largest machine has less, a task takes all of it.
    return options | {"memory": int(min(TASK_BYTES, max(memory)))}


def room_in_words(scale: ScaleConfig, there: Sequence[Machine], to_come: ToCome | None, *, use_gpu: bool) -> str:
    """Whether a cluster has room for the fewest workers that train, now or ever, in words.

    Args:
        scale: The workers.
        there: What each machine has in all, free or not.
        to_come: What may come besides; None if that is not known.
        use_gpu: Does each worker get a GPU?
    """
    bundles = fewest(scale, use_gpu=use_gpu)
    said, workers = _said_of(there, bundles), counted(scale.min_workers, "worker")
    left = unplaced(bundles, there)
    if not left:
        return f"{said}: enough for {workers}, once it is free"
    if to_come is None:
        return (
            f"{said}: not enough for {workers} now, and what an autoscaler may start is not known here; on the head, "
            "as in a submitted job, it is"
        )
    if to_come.at_most:
        said += f", and up to {to_come} to come"
    left = _unplaced_at_last(left, to_come)
    if not left:
        return f"{said}: enough for {workers} when those have started"
    return f"{said}: NEVER enough for {workers}; no machine has room for {amounts_in_words(left[0])}"


def never_fits(scale: ScaleConfig, there: Sequence[Machine], to_come: ToCome | None, *, use_gpu: bool) -> bool:
    """Is there no room for the fewest workers that train, and will there be none when all that may come has started?"""
    left = unplaced(fewest(scale, use_gpu=use_gpu), there)
    return bool(left if to_come is None else _unplaced_at_last(left, to_come))


def lacking(scale: ScaleConfig, there: Sequence[Machine], *, use_gpu: bool) -> str:
    """What is said where these machines have no room for the fewest workers that train; empty where they have."""
    bundles = fewest(scale, use_gpu=use_gpu)
    if not unplaced(bundles, there):
        return ""
    return f"no room for {counted(scale.min_workers, 'worker')} and reading on {_said_of(there, bundles)}"


def most_workers(worker: Bundle, reading: Sequence[Bundle], machines: Sequence[Machine], *, at_most: int) -> int:
    """How many workers there may be, so that what reads has room, too.

    Args:
        worker: What each asks for.
        reading: What must have room besides; where it has none on empty machines either, workers do not matter to it.
        machines: What each machine has.
        at_most: More workers are not wanted.
    """
    if unplaced(reading, machines):
        return at_most
    counts = range(at_most, 0, -1)
    return next((count for count in counts if not unplaced([worker] * count + [*reading], machines)), 0)


def _said_of(machines: Sequence[Machine], bundles: Sequence[Bundle]) -> str:
    has = amounts_in_words(total([{kind: of.get(kind, 0.0) for kind in total(bundles)} for of in machines]))
    return f"{counted(len(machines), 'machine')} with {has}"


def _unplaced_at_last(bundles: Sequence[Bundle], to_come: ToCome) -> list[Bundle]:
    """What has no room on machines that may come, either; each is started for what is hardest to place."""
    left, counts = list(bundles), {kind: count for kind, (count, _) in to_come.kinds.items()}
    for _ in range(to_come.at_most):
        startable = {kind: of for kind, (_, of) in to_come.kinds.items() if counts[kind]}
        left = _hardest_first(left, list(startable.values()))
        fitting = {kind: of for kind, of in startable.items() if left and not unplaced(left[:1], [of])}
        if not fitting:
            break
        # The one that has room for the most, and of two such the one without a GPU.
        kind = min(fitting, key=lambda kind: (len(unplaced(left, [fitting[kind]])), fitting[kind].get("GPU", 0.0)))
        left = unplaced(left, [fitting[kind]])
        counts[kind] -= 1
    return left


def unplaced(bundles: Sequence[Bundle], machines: Iterable[Machine]) -> list[Bundle]:
    """The bundles for which there is no room when the others are placed, the hardest to place first."""
    free = [dict(machine) for machine in machines]
    left = []
    for bundle in _hardest_first(bundles, free):
        fitting = [
            machine
            for machine in free
            if all(machine.get(kind, 0.0) >= amount - 1e-9 for kind, amount in bundle.items())
        ]
        if not fitting:
            left.append(bundle)
            continue
        taken = min(
            fitting, key=lambda machine: (machine.get("GPU", 0.0) * ("GPU" not in bundle), machine.get("CPU", 0.0))
        )
        for kind, amount in bundle.items():
            taken[kind] -= amount
    return left


def _hardest_first(bundles: Sequence[Bundle], machines: Sequence[Machine]) -> list[Bundle]:
    """What only few machines have is placed first, and what few machines have is spared for it; then the largest."""
    rarity = {kind: sum(1 for machine in machines if machine.get(kind)) for kind in total(bundles)}
    return sorted(bundles, key=lambda one: (min(rarity[kind] for kind in one), -sum(one.values())))
