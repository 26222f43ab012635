"""What a worker iterates: for each global step its share of micro-batches, made ready in the background."""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest

import numpy as np
import pyarrow as pa
import torch

from raysrec.config.run import RunConfig
from raysrec.data.batches import HeldOut, Histories, held_out_batches, training_batches
from raysrec.data.cloze import expected_targets
from raysrec.data.manifest import Manifest
from raysrec.data.order import deal_row_groups, pools, reading_order, streams_of_worker
from raysrec.data.prepared import PreparedData
from raysrec.data.reading import Reader, read_directly
from raysrec.data.splits import Positions, SplitRule
from raysrec.data.windows import training_samples
from raysrec.history import Batch
from raysrec.models import MODELS
from raysrec.objective import DataFacts

MANY_ENOUGH = 4
"""Interactions with which every user has a target, if one is left to validate and one to test."""

STEPS_AHEAD = 16
"""Steps that are ready before they are asked for; a few megabytes."""


def epoch_steps(
    data: PreparedData,
    config: RunConfig,
    read: Reader,
    *,
    epoch: int,
    worker: int,
    num_workers: int,
    first_step: int = 0,
) -> Iterator[list[Batch]]:
    """One epoch of a worker: for each global step the micro-batches of the streams it serves.

    Workers may have different numbers of steps; one that is done contributes nothing until all are.

    Args:
        data: What is learned from.
        config: The run.
        read: Reads row groups.
        epoch: Number of the epoch, from 0.
        worker: Number of the worker.
        num_workers: How many there are; it changes no global step.
        first_step: Steps before this one are passed over: read, and made no batches of.
    """
    groups, dealt = data.row_groups(), row_groups_of_streams(data, config, epoch=epoch)
    numbers = streams_of_worker(worker, num_workers=num_workers, num_streams=config.data.num_streams)
    mine = [dealt[number] for number in numbers]
    order = list(reading_order(mine))
    feed = _Feed([stream for stream, _ in order], read([groups[group] for _, group in order]))
    streams = [
        _stream_steps(data, config, feed, local, dealt[number], [config.train.seed, epoch, number], first_step)
        for local, number in enumerate(numbers)
    ]
    for parts in islice(zip_longest(*streams, fillvalue=[]), first_step, None):
        yield [batch for part in parts for batch in part]


def row_groups_of_streams(data: PreparedData, config: RunConfig, *, epoch: int) -> list[list[int]]:
    """For each stream the row groups that it reads in an epoch, in order, without those that teach nothing."""
    weights = [group.weight for group in data.row_groups()]
    dealt = deal_row_groups(weights, num_streams=config.data.num_streams, seed=config.train.seed, epoch=epoch)
    return [[group for group in stream if weights[group]] for stream in dealt]


def targets_per_epoch(data: PreparedData, config: RunConfig) -> int:
    """How many targets an epoch learns from; with `cloze`, which draws them, on average."""
    train = config.train
    every_one = {"every_position": train.windows != "last", "last_position": train.prefixes_per_user == "all"}
    if every_one.get(train.supervision):
        return data.manifest.num_targets
    total, rng = 0.0, np.random.default_rng(0)
    for table in read_directly(data.row_groups()):
        positions = _positions(data.manifest.split, Histories.of([table]))
        samples = training_samples(positions, train, max_length=config.model.max_length, rng=rng)
        rows = samples.take(np.arange(len(samples)))
        cloze = train.supervision == "cloze"
        total += float(expected_targets(rows.lengths, train.cloze).sum() if cloze else rows.num_targets.sum())
    return round(total)


def facts_of(data: PreparedData, config: RunConfig) -> DataFacts:
    """What a run's objective must know of its data."""
    return DataFacts(
        item_counts=torch.from_numpy(data.train_counts()),
        num_users=data.manifest.num_users,
        learned_users=_learned_users(data) if MODELS[config.model.name].has_user_vectors else None,
        positions_per_target=positions_per_target(data.manifest, config),
    )


def _learned_users(data: PreparedData) -> torch.Tensor | None:
    """At each user's number, whether there is a target of theirs; None where that is everybody. Reads all histories."""
    rule, manifest = data.manifest.split, data.manifest
    if rule.name == "leave_one_out" and manifest.user_interactions.low >= MANY_ENOUGH:
        return None
    learned = torch.zeros(manifest.num_users + 1, dtype=torch.bool)
    for table in read_directly([group for group in data.row_groups() if group.weight]):
        histories = Histories.of([table])
        learned[torch.from_numpy(histories.users[_positions(rule, histories).num_targets > 0])] = True
    return learned


def positions_per_target(manifest: Manifest, config: RunConfig) -> float:
    """How many positions are encoded for each target, in a history of the mean length; in truth it is rather more."""
    cold = max(manifest.cold_validation_users, manifest.cold_test_users)
    mean = max(1, round(manifest.num_targets / max(1, manifest.num_users - cold)))
    samples = training_samples(
        Positions(train=np.array([mean + 1]), held_out={}),
        config.train,
        max_length=config.model.max_length,
        rng=np.random.default_rng(0),
    )
    rows = samples.take(np.arange(len(samples)))
    cloze = config.train.supervision == "cloze"
    targets = expected_targets(rows.lengths, config.train.cloze) if cloze else rows.num_targets
    return float(rows.lengths.sum() / targets.sum())


def held_out(tables: Iterable[pa.Table], rule: SplitRule, config: RunConfig, *, split: str) -> Iterator[HeldOut]:
    """The users of these row groups who have an item to be ranked, in batches that depend on the row group alone.

    Args:
        tables: Row groups.
        rule: How their histories are split.
        config: The run.
        split: `validation` or `test`.
    """
    for table in tables:
        histories = Histories.of([table])
        yield from held_out_batches(
            histories,
            _positions(rule, histories).held_out[split],
            max_length=config.model.max_length,
            batch_tokens=config.evaluate.batch_tokens,
            with_seen=config.evaluate.exclude_seen,
        )


def _stream_steps(
    data: PreparedData,
    config: RunConfig,
    feed: "_Feed",
    local: int,
    order: Sequence[int],
    seed: list[int],
    first_step: int,
) -> Iterator[list[Batch]]:
    """One stream of an epoch, pool after pool; `local` is its number among the streams of this worker.

    The steps before `first_step` come empty.
    """
    sizes = [data.row_groups()[group].interactions for group in order]
    made = 0
    for number, pool in enumerate(pools(sizes, config.data.shuffle_interactions)):
        histories = Histories.of([feed.next_table(local) for _ in pool])
        steps = training_batches(
            histories,
            _positions(data.manifest.split, histories),
            config.train,
            max_length=config.model.max_length,
            batch_targets=max(1, config.train.batch_targets // config.data.num_streams),
            rng=np.random.default_rng([*seed, number]),
            skip=first_step - made,
            with_seen=config.loss.exclude_history,
        )
        for step in steps:
            made += 1
            yield step


def _positions(rule: SplitRule, histories: Histories) -> Positions:
    return rule.positions(histories.offsets, histories.times)


class _Feed:
    """Hands the tables of one reader to the streams they belong to."""

    def __init__(self, owners: Sequence[int], tables: Iterator[pa.Table]) -> None:
        self._arriving = zip(owners, tables, strict=True)
        self._waiting: dict[int, deque[pa.Table]] = {}

    def next_table(self, stream: int) -> pa.Table:
        """The stream's next row group; those of other streams that arrive before it wait for their turn."""
        while not self._waiting.get(stream):
            owner, table = next(self._arriving)
            self._waiting.setdefault(owner, deque()).append(table)
        return self._waiting[stream].popleft()


@dataclass
class Prefetched:
    """Makes the steps of an epoch ready in a thread, and counts the seconds its consumer waited.

    Raises in the consumer whatever the source raised.
    """

    source: Iterator[list[Batch]]
    waited_s: float = 0.0
    _ready: "queue.Queue[list[Batch] | BaseException | None]" = field(default_factory=lambda: queue.Queue(STEPS_AHEAD))
    _closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        threading.Thread(target=self._fill, daemon=True, name="raysrec-prefetch").start()

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            started = time.perf_counter()
            step = self._ready.get()
            self.waited_s += time.perf_counter() - started
            if step is None:
                return
            if isinstance(step, BaseException):
                raise step
            yield step

    def close(self) -> None:
        """Let the thread end although not everything was taken."""
        self._closed.set()

    def _fill(self) -> None:
        end: BaseException | None = None
        try:
            for step in self.source:
                if not self._put(step):
                    return
        except BaseException as error:
            end = error
        self._put(end)

    def _put(self, step: "list[Batch] | BaseException | None") -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(step, timeout=0.5)
            except queue.Full:
                continue
            return True
        return False
