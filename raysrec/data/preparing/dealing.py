"""A source dealt into shares of its users: tasks read its pieces, and the driver numbers their items as they come."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.config import DataConfig
from raysrec.data.preparing.shares import deal_pieces, write_item_codes
from raysrec.data.sources.blocks import plan_blocks
from raysrec.data.sources.read import nothing_read
from raysrec.place import Place
from raysrec.tasks import Run


@dataclass(frozen=True)
class DealtSource:
    """What was read, and where it lies."""

    pieces: tuple[tuple[str, int], ...]
    """Name of each piece, and how many interactions there are before it."""
    interactions: int
    floored_times: int
    left_out: int
    per_second: int
    """How much of its times is a second."""


def about_interactions(config: DataConfig) -> int:
    """How many a source holds, by the sizes of its files; rather too many."""
    return sum(block.interactions for blocks in plan_blocks(config) for block in blocks)


def deal_source(
    config: DataConfig,
    folder: Place,
    num_shares: int,
    run: Run,
    *,
    stage: str,
    number_items: Callable[[pa.Array], NDArray[np.int32]],
) -> DealtSource:
    """Read a source in tasks, and leave it in a folder as `shares.joined_share` reads it again.

    Args:
        config: How it is read.
        folder: Where to write; all machines of the cluster must reach it.
        num_shares: How many shares there are; some may have no users.
        run: Who reads.
        stage: What that is called.
        number_items: The number of each of these items; called for one piece after the other, in order.

    Raises:
        SourceError: It cannot be read, or holds no interaction.
    """
    pieces, interactions, floored_times, left_out, per_second = [], 0, 0, 0, 1
    work = list(enumerate(plan_blocks(config)))
    for piece in run(stage, partial(deal_pieces, config, os.getcwd(), folder, num_shares), work):
        write_item_codes(folder, piece.name, number_items(piece.item_ids))
        pieces.append((piece.name, interactions))
        interactions += piece.interactions
        floored_times += piece.floored_times
        left_out += piece.left_out
        per_second = piece.per_second
    if not interactions:
        raise nothing_read(config)
    return DealtSource(tuple(pieces), interactions, floored_times, left_out, per_second)
