import itertools
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

from raysrec.config import TrainConfig
from raysrec.data.batching.batches import (
    A_PART,
    collate,
    held_out_batches,
    micro_batches,
    stratified,
    training_batches,
)
from raysrec.data.batching.windows import Windows, training_samples
from raysrec.data.histories import Histories
from raysrec.data.splits import SplitRule


def histories_of(lengths):
    """History i has the items 1000 i + 1, 1000 i + 2, … at times ten times as large."""
    items = [[1000 * row + position + 1 for position in range(length)] for row, length in enumerate(lengths)]
    table = pa.table(
        {
            "user": pa.array(range(1, len(lengths) + 1), pa.int64()),
            "items": pa.array(items, pa.list_(pa.int32())),
            "times": pa.array([[10 * item for item in row] for row in items], pa.list_(pa.int64())),
        }
    )
    return Histories.of([table.slice(0, 2), table.slice(2)])


def test_arrow_slices_are_gathered_as_they_are():
    histories = histories_of([4, 6, 5])
    assert histories.lengths.tolist() == [4, 6, 5]
    assert histories.items[histories.offsets[2]] == 2001
    assert histories.users.tolist() == [1, 2, 3]


def test_collate_pads_on_the_right_and_puts_the_following_item_as_target():
    batch = collate(
        histories_of([6, 6, 6]),
        Windows(rows=np.array([1, 2]), starts=np.array([0, 2]), stops=np.array([3, 4]), learn_from=np.array([0, 3])),
    )
    assert batch.history.items.tolist() == [[1001, 1002, 1003], [2003, 2004, 0]]
    assert batch.history.times.tolist() == [[10010, 10020, 10030], [20030, 20040, 0]]
    assert batch.history.lengths.tolist() == [3, 2]
    assert batch.targets.tolist() == [[1002, 1003, 1004], [0, 2005, 0]]


@pytest.mark.parametrize("supervision", ["every_position", "last_position"])
@pytest.mark.parametrize("windows", ["tile", "overlap"])
def test_a_pool_gives_every_target_once_and_none_that_is_held_out(supervision, windows):
    lengths = [3, 4, 9, 30, 17, 5, 64]
    config = TrainConfig(supervision=supervision, windows=windows, micro_batch_tokens=24)
    histories = histories_of(lengths)
    positions = SplitRule().positions(histories.offsets, histories.times)
    steps = training_batches(histories, positions, config, max_length=8, batch_targets=11, rng=np.random.default_rng(3))
    seen = Counter(int(item) for step in steps for batch in step for item in batch.targets[batch.targets != 0])
    expected = {1000 * row + position + 1 for row, n in enumerate(lengths) for position in range(1, n - 2)}
    assert seen == Counter(expected)


def test_no_micro_batch_exceeds_its_tokens_unless_one_row_does():
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    parts = list(micro_batches(lengths, 120))
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    assert all(len(part) == 1 or len(part) * lengths[part].max() <= 120 for part in parts)


@pytest.mark.parametrize("seed", range(8))
def test_of_all_cuts_of_the_sorted_rows_micro_batches_are_the_cheapest(seed):
    rng = np.random.default_rng(seed)
    lengths, tokens = rng.integers(1, 40, 9), 64 * (1 + seed)
    ordered = np.sort(lengths)

    def cost(parts):
        return sum(len(part) * max(part) + tokens / A_PART for part in parts)

    found = [lengths[part] for part in micro_batches(lengths, tokens)]
    cuts = (np.flatnonzero(where) + 1 for where in itertools.product([0, 1], repeat=8))
    possible = [np.split(ordered, cut) for cut in cuts]
    fits = [parts for parts in possible if all(len(part) == 1 or len(part) * max(part) <= tokens for part in parts)]
    assert sorted(np.concatenate(found).tolist()) == ordered.tolist()
    assert cost(found) == pytest.approx(min(cost(parts) for parts in fits), rel=0.02)


def test_rows_that_learn_at_every_position_meet_rows_of_similar_length():
    lengths = np.random.default_rng(0).integers(4, 60, 400)
    histories = histories_of(lengths)
    positions = SplitRule().positions(histories.offsets, histories.times)
    steps = training_batches(
        histories, positions, TrainConfig(), max_length=64, batch_targets=500, rng=np.random.default_rng(3)
    )
    of_updates = sorted(sorted(torch.cat([batch.history.lengths for batch in step]).tolist()) for step in steps)
    assert len(of_updates) > 10
    assert all(shorter[-1] <= longer[0] for shorter, longer in itertools.pairwise(of_updates))


@pytest.mark.parametrize("supervision", ["last_position", "cloze"])
def test_where_a_row_is_a_single_past_an_update_has_short_ones_and_long_ones(supervision):
    lengths = np.random.default_rng(0).integers(4, 60, 400)
    config = TrainConfig(supervision=supervision)
    histories = histories_of(lengths)
    positions = SplitRule().positions(histories.offsets, histories.times)
    steps = training_batches(
        histories, positions, config, max_length=64, batch_targets=150, rng=np.random.default_rng(3)
    )
    of_updates = [torch.cat([batch.history.lengths for batch in step]) for step in steps]
    middle = torch.cat(of_updates).median()
    shares = torch.stack([(of_update <= middle).double().mean() for of_update in of_updates])
    assert len(shares) > 8
    assert shares.min() > 0.2
    assert shares.max() < 0.8


@pytest.mark.parametrize(
    ("supervision", "lengths", "batch_targets", "off_by"),
    [
        ("last_position", (4, 60), 2, 1),  # a batch has fewer rows than there are strata
        ("last_position", (4, 60), 7, 3),  # of each stratum one row or two
        ("every_position", (150, 250), 200, 250),  # a row has nearly as many targets as a batch, or more
        ("every_position", (4, 60), 150, 120),
    ],
)
def test_batches_are_as_many_and_as_large_as_asked(supervision, lengths, batch_targets, off_by):
    histories = histories_of(np.random.default_rng(0).integers(*lengths, 200))
    config = TrainConfig(supervision=supervision, prefixes_per_user=5)
    positions = SplitRule().positions(histories.offsets, histories.times)
    samples = training_samples(positions, config, max_length=256, rng=np.random.default_rng(3))
    batches = list(stratified(samples, batch_targets=batch_targets, strata=4, rng=np.random.default_rng(3)))
    sizes = np.array([batch.num_targets.sum() for batch in batches])
    assert len(sizes) == pytest.approx(sizes.sum() / batch_targets, rel=0.1)
    assert np.abs(sizes - batch_targets).max() <= off_by
    assert len(np.unique(np.concatenate([batch.rows for batch in batches]))) == 200


@pytest.mark.parametrize("targets", [[2, 11, 6], [1, 10, 5], [-1, 1, 6], [2, -1, -1]])
def test_held_out_items_are_ranked_given_everything_before_them(targets):
    histories = histories_of([3, 12, 7])
    batches = list(held_out_batches(histories, np.array(targets), max_length=5, batch_tokens=12, with_seen=True))
    users = np.concatenate([batch.users for batch in batches])
    assert sorted(users.tolist()) == [user for user, target in enumerate(targets, 1) if target >= 0]
    for batch in batches:
        for row, user in enumerate(batch.users):
            target = targets[user - 1]
            past = [1000 * (user - 1) + position + 1 for position in range(target)]
            real = int(batch.history.lengths[row])
            assert batch.history.items[row, :real].tolist() == past[-5:]
            assert batch.targets[row] == 1000 * (user - 1) + target + 1
            assert batch.seen[batch.seen[:, 0] == row, 1].tolist() == past
            assert batch.lengths[row] == target


def test_where_nobody_has_a_target_nobody_is_ranked():
    histories = histories_of([3, 12, 7])
    assert not list(held_out_batches(histories, np.full(3, -1), max_length=5, batch_tokens=12, with_seen=True))
