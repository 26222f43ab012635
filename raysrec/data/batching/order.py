"""Which row group is read when, by which stream, and by which worker: index arithmetic, no files and no tensors.

An epoch is laid out over a fixed number of *streams*. The content of each stream is a pure function of
(sizes of the row groups, seed, epoch), and a global batch is made of one piece from each stream; a worker serves
one or more streams. So batches do not depend on how many workers there are, and a step can be found again
after a restart.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np


def deal_row_groups(sizes: Sequence[int], *, num_streams: int, seed: int, epoch: int) -> list[list[int]]:
    """Deal all row groups of one epoch to the streams: shuffled, and each to the stream that has least so far.

    Args:
        sizes: Interactions in each row group.
        num_streams: Streams to deal to.
        seed: Fixes the order together with `epoch`.
        epoch: Number of the epoch, from 0.

    Returns:
        For each stream the indices of its row groups in the order they are read; each index occurs once.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(sizes))
    streams: list[list[int]] = [[] for _ in range(num_streams)]
    loads = [0] * num_streams
    for group in order.tolist():
        lightest = loads.index(min(loads))
        streams[lightest].append(group)
        loads[lightest] += sizes[group]
    return streams


def streams_of_worker(worker: int, *, num_workers: int, num_streams: int) -> list[int]:
    """The streams that a worker serves; every stream has exactly one worker.

    Raises:
        ValueError: There are more workers than streams, so some would have nothing to learn from.
    """
    if num_workers > num_streams:
        raise ValueError(f"{num_workers} workers need at least as many streams, but data.num_streams={num_streams}")
    return list(range(worker, num_streams, num_workers))


def reading_order(streams: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """(stream, row group) in the order in which one worker needs them: the streams take turns."""
    for turn in zip_longest(*streams):
        yield from ((stream, group) for stream, group in enumerate(turn) if group is not None)


def pools(sizes: Sequence[int], limit: int) -> list[range]:
    """Cut one stream's row groups, in order, into pools that are shuffled together.

    Args:
        sizes: Interactions in each of the stream's row groups.
        limit: Interactions a pool may hold; one row group is taken even where it is larger.
    """
    cuts, held = [0], 0
    for index, size in enumerate(sizes):
        if index > cuts[-1] and held + size > limit:
            cuts.append(index)
            held = 0
        held += size
    return [range(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(sizes)], strict=True) if start < stop]


def even_cuts(weights: np.ndarray, count: int) -> list[slice]:
    """Cut a row of weighted things into `count` consecutive parts of nearly equal weight, or fewer if some are heavy.

    A part goes over its share by at most part of one thing, and no part is a small remainder.
    """
    total = int(weights.sum())
    if total == 0:
        return []
    before = np.cumsum(weights) - weights
    part = before * count // total
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    return [slice(int(a), int(b)) for a, b in zip(starts, [*starts[1:], len(weights)], strict=True)]


def share_of_worker(count: int, *, worker: int, num_workers: int) -> range:
    """Which of `count` things (row groups to rank) are a worker's; together the workers have each exactly once."""
    return range(worker, count, num_workers)
