from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysrec.data.batching.windows import WINDOWS, Prefixes, last, overlap, tile

counts_lists = st.lists(st.integers(0, 60), min_size=1, max_size=12).map(np.array)


def targets_of(windows):
    """How often each (history, position) is learned from."""
    return Counter(
        (int(row), position)
        for row, begin, stop in zip(windows.rows, windows.learn_from, windows.stops, strict=True)
        for position in range(begin, stop)
    )


def all_targets(counts):
    return Counter((row, position) for row, count in enumerate(counts) for position in range(count))


@pytest.mark.parametrize("cut", [tile, overlap])
@given(counts=counts_lists, max_length=st.integers(1, 20), seed=st.integers(0, 5))
def test_every_target_is_learned_from_exactly_once(cut, counts, max_length, seed):
    windows = cut(counts, max_length, np.random.default_rng(seed))
    assert targets_of(windows) == all_targets(counts)


@given(counts=counts_lists, max_length=st.integers(1, 20))
def test_prefixes_have_every_target_once_with_all_the_context_there_is(counts, max_length):
    prefixes = Prefixes(counts, max_length, rng=np.random.default_rng(0))
    windows = prefixes.take(np.arange(len(prefixes)))
    assert targets_of(windows) == all_targets(counts)
    assert (windows.num_targets == 1).all()
    assert (windows.lengths == np.minimum(windows.stops, max_length)).all()


@given(counts=counts_lists, max_length=st.integers(1, 20))
def test_prefixes_that_learn_throughout_are_the_same_rows(counts, max_length):
    rng = np.random.default_rng(0)
    ends, throughout = (
        Prefixes(counts, max_length, learn_throughout=yes, rng=rng).take(np.arange(counts.sum()))
        for yes in (False, True)
    )
    assert np.array_equal(throughout.starts, ends.starts)
    assert np.array_equal(throughout.stops, ends.stops)
    assert np.array_equal(throughout.num_targets, ends.lengths)


@given(counts=counts_lists, per_user=st.integers(1, 70), seed=st.integers(0, 50))
def test_a_few_prefixes_of_each_user_are_distinct(counts, per_user, seed):
    prefixes = Prefixes(counts, 10, per_user=per_user, rng=np.random.default_rng(seed))
    windows = prefixes.take(np.arange(len(prefixes)))
    assert set(targets_of(windows).values()) <= {1}
    assert Counter(windows.rows.tolist()) == {
        row: min(count, per_user) for row, count in enumerate(counts.tolist()) if count
    }
    assert (windows.stops <= counts[windows.rows]).all()


def test_no_rounding_makes_a_held_out_item_a_target():
    class Largest(np.random.Generator):
        def random(self, size):
            return np.full(size, 1 - 2.0**-53)

    counts = np.array([200, 100, 7, 3])
    for per_user in (None, 3, 1):
        prefixes = Prefixes(counts, 10, per_user=per_user, rng=Largest(np.random.PCG64()))
        windows = prefixes.take(np.arange(len(prefixes)))
        assert (windows.stops <= counts[windows.rows]).all()


def test_prefixes_are_drawn_afresh_and_each_as_often_as_another():
    counts, often = np.array([7, 3, 20]), Counter()
    draws = 3000
    rng = np.random.default_rng(0)
    for _ in range(draws):
        prefixes = Prefixes(counts, 10, per_user=3, rng=rng)
        often.update(targets_of(prefixes.take(np.arange(len(prefixes)))))
    for (row, _), times in often.items():
        share = 3 / counts[row]
        assert abs(times - draws * share) <= 5 * (draws * share * (1 - share)) ** 0.5
    assert len(often) == counts.sum()


@pytest.mark.parametrize("cut", list(WINDOWS.values()))
@given(counts=counts_lists, max_length=st.integers(1, 20))
def test_windows_fit_and_hold_their_targets(cut, counts, max_length):
    windows = cut(counts, max_length, np.random.default_rng(0))
    assert (windows.lengths >= 1).all()
    assert (windows.lengths <= max_length).all()
    assert (windows.learn_from >= windows.starts).all()
    assert (windows.stops <= counts[windows.rows]).all()


@given(counts=counts_lists, max_length=st.integers(2, 20))
def test_overlapping_windows_give_half_a_window_of_context(counts, max_length):
    windows = overlap(counts, max_length, np.random.default_rng(0))
    later = windows.learn_from > 0
    assert (windows.learn_from[later] - windows.starts[later] == max_length // 2).all()


def test_last_keeps_the_newest_window_only():
    windows = last(np.array([3, 0, 12]), 5, np.random.default_rng(0))
    assert windows.rows.tolist() == [0, 2]
    assert windows.starts.tolist() == [0, 7]
    assert windows.stops.tolist() == [3, 12]


def test_tiles_start_elsewhere_each_epoch_but_short_histories_stay_whole():
    counts = np.array([50, 7])
    cuts = {tuple(tile(counts, 10, np.random.default_rng(seed)).stops[:-1]) for seed in range(8)}
    assert len(cuts) > 1
    assert tile(counts, 10, np.random.default_rng(1)).starts[-1] == 0
