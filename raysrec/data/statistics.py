"""What a prepared data set is, in numbers: how long histories are, how skewed popularity is, what happened when.

Everything is summed over one row group after the other, so memory does not grow with the number of users.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from raysrec.data.arrays import IntArray
from raysrec.data.batching.reading import read_directly
from raysrec.data.histories import Histories
from raysrec.data.prepared import PreparedData
from raysrec.data.splits import HELD_OUT, in_first
from raysrec.schema import date_of

BINS = 120
"""Equal stretches of time between the first and the last interaction."""

QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.99)
"""Of the lengths of histories, beside the shortest and the longest."""

SHARDS_SHOWN = 16
"""Files that are listed one by one."""


@dataclass(frozen=True)
class Statistics:
    """Of one prepared data set."""

    users_of_length: IntArray
    """How many users have 0, 1, 2, … interactions."""
    item_counts: IntArray
    """Interactions of each item, most frequent first."""
    edges: NDArray[np.float64]
    """Unix seconds between which things are counted in time: BINS + 1 numbers."""
    interactions: IntArray
    """Interactions in each stretch of time."""
    learned: IntArray
    """Those that are learned from."""
    targets: dict[str, IntArray]
    """Items held out to validate and to test in each stretch of time."""
    cold_targets: dict[str, int]
    """How many of those are of items that are never learned from."""

    @classmethod
    def of(cls, data: PreparedData) -> "Statistics":
        """Read every row group once."""
        manifest, train_counts = data.manifest, data.train_counts()
        edges = np.linspace(manifest.first_time, manifest.last_time + 1.0, BINS + 1)
        users_of_length = np.zeros(manifest.longest_history + 1, np.int64)
        interactions, learned = np.zeros((2, BINS), np.int64)
        targets = {name: np.zeros(BINS, np.int64) for name in HELD_OUT}
        cold_targets = dict.fromkeys(HELD_OUT, 0)
        for table in read_directly(data.row_groups()):
            histories = Histories.of([table])
            positions = manifest.split.positions(histories.offsets, histories.times)
            users_of_length += np.bincount(histories.lengths, minlength=len(users_of_length))
            interactions += _in_time(histories.times, edges)
            learned += _in_time(histories.times[in_first(histories.offsets, positions.train)], edges)
            for name, places in positions.held_out.items():
                at = (histories.offsets[:-1] + places)[places >= 0]
                targets[name] += _in_time(histories.times[at], edges)
                cold_targets[name] += int(np.count_nonzero(train_counts[histories.items[at]] == 0))
        counts = np.sort(data.counts()[1:])[::-1]
        return cls(users_of_length, counts, edges, interactions, learned, targets, cold_targets)

    def length_quantile(self, share: float) -> int:
        """The shortest length that at least this share of the users does not exceed."""
        upto = np.cumsum(self.users_of_length)
        return int(np.searchsorted(upto, max(1, int(np.ceil(share * upto[-1])))))

    def share_of_top(self, share: float) -> float:
        """The share of all interactions that the most frequent items have; at least one item is taken."""
        taken = max(1, round(share * len(self.item_counts)))
        return float(self.item_counts[:taken].sum() / self.item_counts.sum())

    @property
    def gini(self) -> float:
        """Inequality of popularity: 0 where all items are alike, near 1 where one has nearly everything."""
        counts = self.item_counts[::-1].astype(np.float64)
        number = len(counts)
        return float(2 * (np.arange(1, number + 1) @ counts) / (number * counts.sum()) - (number + 1) / number)


def describe(data: PreparedData, found: Statistics) -> str:
    """A prepared data set as a table of two columns."""
    rows = [*_sizes(data), *_distributions(data, found), *_uses(data, found), *_files(data)]
    return tabulate(rows, tablefmt="plain")


def _sizes(data: PreparedData) -> Iterator[tuple[str, str]]:
    manifest = data.manifest
    yield "data", f"{manifest.name}, fingerprint {manifest.fingerprint}, in {data.directory}"
    source = manifest.source
    yield "source", f"{source.path}, {source.bytes:,} bytes, SHA-256 {source.sha256[:16]}…"
    for what in ("users", "items", "interactions"):
        kept, before = getattr(manifest, f"num_{what}"), getattr(manifest, f"source_{what}")
        yield what, f"{kept:,} ({before - kept:,} of {before:,} were filtered out)"
    yield "left out", f"{manifest.left_out_rows:,} rows of the source by data.where"
    intervals = f"users {manifest.user_interactions}, items {manifest.item_interactions}"
    yield "filter", f"{intervals}; {manifest.filter_rounds} rounds"
    yield "rules", f"{manifest.id_rule}\n{manifest.time_rule} ({manifest.floored_times:,} were)\n{manifest.tie_rule}"


def _distributions(data: PreparedData, found: Statistics) -> Iterator[tuple[str, str]]:
    manifest = data.manifest
    users, items, interactions = manifest.num_users, manifest.num_items, manifest.num_interactions
    yield "density", f"{interactions / users / items:.4%} of all pairs of user and item, if none repeats"
    lengths = ", ".join(f"{share:.0%}: {found.length_quantile(share):,}" for share in QUANTILES)
    ends = f"{found.length_quantile(0.0):,} to {manifest.longest_history:,}"
    yield "per user", f"{interactions / users:.1f} on average, {ends}; {lengths}"
    shares = ", ".join(f"{share:.0%} of items have {found.share_of_top(share):.1%}" for share in (0.01, 0.1))
    ends = f"{int(found.item_counts[-1]):,} to {int(found.item_counts[0]):,}"
    yield "per item", f"{interactions / items:.1f} on average, {ends}; {shares} of all; Gini {found.gini:.3f}"
    span = f"{date_of(manifest.first_time)} to {date_of(manifest.last_time)} UTC"
    yield "times", f"{span}, {in_largest_unit(float(manifest.last_time - manifest.first_time))}"
    tied = manifest.tied_interactions
    yield "ties in time", f"{tied:,} interactions ({tied / interactions:.1%})"
    yield "repeated", f"{manifest.repeated_interactions:,} interactions, the same item at the same time; they are kept"


def _uses(data: PreparedData, found: Statistics) -> Iterator[tuple[str, str]]:
    manifest = data.manifest
    yield "split", str(manifest.split)
    yield "to learn", f"{int(found.learned.sum()):,} interactions, {manifest.num_targets:,} targets"
    for verb, name in (("validate", "validation"), ("test", "test")):
        counts = manifest.held_out(name)
        without, leaked = manifest.num_users - counts.users, counts.leaked_targets
        yield (
            f"to {verb}",
            f"{counts.users:,} users; {without:,} have nothing there and are not ranked; {counts.cold_users:,} were "
            f"never learned from, nor were {found.cold_targets[name]:,} of the items\n{leaked:,} items "
            f"({leaked / counts.users:.1%}) lie before something that is learned from; ties decide "
            f"{counts.tied_targets:,}",
        )


def _files(data: PreparedData) -> Iterator[tuple[str, str]]:
    shards, interactions = data.manifest.shards, data.manifest.num_interactions
    sizes = [group.interactions for group in data.row_groups()]
    bytes_of_all = sum(shard.bytes for shard in shards)
    yield (
        "files",
        f"{len(shards):,} of {bytes_of_all:,} bytes in all, {bytes_of_all / interactions:.1f} an interaction; "
        f"{len(sizes):,} row groups of {min(sizes):,} to {max(sizes):,} interactions",
    )
    for shard in shards[:SHARDS_SHOWN]:
        yield "", f"{shard.file}: {shard.bytes:,} bytes, {len(shard.row_groups)} row groups"
    if len(shards) > SHARDS_SHOWN:
        yield "", f"and {len(shards) - SHARDS_SHOWN:,} more"


def in_largest_unit(seconds: float) -> str:
    """So many seconds in the largest unit that is not longer."""
    for name, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:,.4g} {name}"
    return f"{seconds:.4g} seconds"


def _in_time(times: IntArray, edges: NDArray[np.float64]) -> IntArray:
    return np.histogram(times, edges)[0]
