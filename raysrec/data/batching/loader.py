"""What a worker iterates: for each global step its share of micro-batches, made ready in the background."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, zip_longest

import numpy as np
import pyarrow as pa

from raysrec.config.run import RunConfig
from raysrec.data.batching.batches import HeldOut, held_out_batches, training_batches
from raysrec.data.batching.order import deal_row_groups, pools, reading_order, streams_of_worker
from raysrec.data.batching.reading import Reader
from raysrec.data.histories import Histories
from raysrec.data.prepared import PreparedData
from raysrec.data.splits import SplitRule
from raysrec.history import Batch

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
        _stream_steps(
            config,
            data.manifest.split,
            partial(feed.next_table, local),
            [groups[group].interactions for group in dealt[number]],
            [config.train.seed, epoch, number],
            first_step,
        )
        for local, number in enumerate(numbers)
    ]
    for parts in islice(zip_longest(*streams, fillvalue=[]), first_step, None):
        yield [batch for part in parts for batch in part]


def row_groups_of_streams(data: PreparedData, config: RunConfig, *, epoch: int) -> list[list[int]]:
    """For each stream the row groups that it reads in an epoch, in order, without those that teach nothing."""
    weights = [group.weight for group in data.row_groups()]
    dealt = deal_row_groups(weights, num_streams=config.data.num_streams, seed=config.train.seed, epoch=epoch)
    return [[group for group in stream if weights[group]] for stream in dealt]


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
            rule.positions(histories.offsets, histories.times).held_out[split],
            max_length=config.model.max_length,
            batch_tokens=config.evaluate.batch_tokens,
            with_seen=config.evaluate.exclude_seen,
        )


def _stream_steps(
    config: RunConfig,
    rule: SplitRule,
    next_table: Callable[[], pa.Table],
    sizes: Sequence[int],
    seed: list[int],
    first_step: int,
) -> Iterator[list[Batch]]:
    """One stream of an epoch, pool after pool; the steps before `first_step` come empty.

    Args:
        config: The run.
        rule: How its histories are split.
        next_table: Gives its next row group.
        sizes: Interactions of each of its row groups.
        seed: Fixes its order.
        first_step: Steps before this one are passed over.
    """
    made = 0
    for number, pool in enumerate(pools(sizes, config.data.shuffle_interactions)):
        histories = Histories.of([next_table() for _ in pool])
        steps = training_batches(
            histories,
            rule.positions(histories.offsets, histories.times),
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
