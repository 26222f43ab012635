import numpy as np
import pytest

from raysrec.config import ClozeConfig, TrainConfig
from raysrec.data.batching.batches import training_batches
from raysrec.data.batching.cloze import draw_hidden, expected_targets
from raysrec.data.histories import Histories
from raysrec.data.splits import SplitRule
from raysrec.history import HIDDEN

LENGTHS = np.array([1, 2, 5, 30, 30])


def test_every_row_hides_something_and_nothing_in_padding():
    for seed in range(200):
        hidden = draw_hidden(LENGTHS, ClozeConfig(hidden_share=0.05), np.random.default_rng(seed))
        assert hidden.shape == (5, 30)
        assert hidden.any(1).all()
        assert not hidden[np.arange(30) >= LENGTHS[:, None]].any()


def test_rows_that_ask_for_the_next_item_hide_the_last_alone():
    hidden = draw_hidden(LENGTHS, ClozeConfig(only_last_share=1.0), np.random.default_rng(0))
    assert (hidden.argmax(1) == LENGTHS - 1).all()
    assert (hidden.sum(1) == 1).all()


@pytest.mark.parametrize("config", [ClozeConfig(), ClozeConfig(hidden_share=0.6, only_last_share=0.1)])
def test_as_many_are_hidden_as_expected(config):
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_hidden(LENGTHS, config, rng).sum(1) for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(0), expected_targets(LENGTHS, config), atol=5 * drawn.std() / 4000**0.5)


@pytest.fixture
def histories():
    lengths = np.array([9, 3, 40, 12])
    offsets = np.concatenate([[0], lengths.cumsum()])
    items = 1 + np.arange(offsets[-1])
    return Histories(users=1 + np.arange(4), offsets=offsets, items=items, times=items * 10)


def epoch(histories, seed, **train):
    config = TrainConfig(supervision="cloze", **train)
    rng = np.random.default_rng(seed)
    positions = SplitRule().positions(histories.offsets, histories.times)
    steps = training_batches(histories, positions, config, max_length=10, batch_targets=4, rng=rng)
    return [batch for step in steps for batch in step]


def test_a_hidden_item_is_the_target_and_nowhere_to_be_seen(histories):
    for batch in epoch(histories, 0):
        hidden = batch.history.items == HIDDEN
        assert ((batch.targets != 0) == hidden).all()
        assert hidden.any(1).all()
        assert (hidden <= batch.history.mask()).all()


def test_rows_hold_every_item_to_learn_from_once_and_no_held_out_one(histories):
    batches = epoch(histories, 0)
    seen = np.concatenate([b.history.items.where(b.targets == 0, b.targets).flatten().numpy() for b in batches])
    held_out = [int(histories.items[stop - back]) for stop in histories.offsets[1:] for back in (1, 2)]
    assert sorted(seen[seen != 0].tolist()) == sorted(set(histories.items.tolist()) - set(held_out))


def test_each_item_to_learn_from_ends_one_row_where_rows_are_prefixes(histories):
    batches = epoch(histories, 0, windows="prefixes")
    last = [
        int(row[length - 1])
        for b in batches
        for row, length in zip(b.history.items.where(b.targets == 0, b.targets), b.history.lengths, strict=True)
    ]
    held_out = [int(histories.items[stop - back]) for stop in histories.offsets[1:] for back in (1, 2)]
    assert sorted(last) == sorted(set(histories.items.tolist()) - set(held_out))


def test_micro_batches_change_no_target(histories):
    def targets(tokens):
        batches = epoch(histories, 3, micro_batch_tokens=tokens)
        return sorted(np.concatenate([b.targets.flatten().numpy() for b in batches]).tolist())

    hidden = [target for target in targets(10) if target]
    assert hidden == [target for target in targets(10_000) if target]


def test_each_epoch_hides_others(histories):
    one, other = (sum(int((b.targets * b.history.lengths[:, None]).sum()) for b in epoch(histories, s)) for s in (0, 1))
    assert one != other
