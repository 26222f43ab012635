import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysrec.data.batching.order import (
    deal_row_groups,
    even_cuts,
    pools,
    reading_order,
    share_of_worker,
    streams_of_worker,
)

sizes_lists = st.lists(st.integers(1, 50), max_size=40)


@given(sizes=sizes_lists, num_streams=st.integers(1, 7), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_every_row_group_is_dealt_exactly_once(sizes, num_streams, seed, epoch):
    streams = deal_row_groups(sizes, num_streams=num_streams, seed=seed, epoch=epoch)
    assert len(streams) == num_streams
    assert sorted(group for stream in streams for group in stream) == list(range(len(sizes)))


@given(sizes=sizes_lists.filter(bool), num_streams=st.integers(1, 7), epoch=st.integers(0, 3))
def test_streams_differ_by_one_row_group_at_most(sizes, num_streams, epoch):
    streams = deal_row_groups(sizes, num_streams=num_streams, seed=0, epoch=epoch)
    loads = [sum(sizes[group] for group in stream) for stream in streams]
    assert max(loads) - min(loads) <= max(sizes)


def test_epochs_differ_and_repeat_with_the_seed():
    first, second, again = (deal_row_groups([1] * 32, num_streams=4, seed=5, epoch=epoch) for epoch in (0, 1, 0))
    assert first != second
    assert first == again


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5, 6])
def test_every_stream_has_exactly_one_worker(num_workers):
    served = [streams_of_worker(worker, num_workers=num_workers, num_streams=6) for worker in range(num_workers)]
    assert sorted(stream for streams in served for stream in streams) == list(range(6))


def test_more_workers_than_streams_are_refused():
    with pytest.raises(ValueError, match=r"5 workers need at least as many streams, but data\.num_streams=4"):
        streams_of_worker(0, num_workers=5, num_streams=4)


def test_streams_take_turns_in_reading():
    assert list(reading_order([[7, 8, 9], [], [4]])) == [(0, 7), (2, 4), (0, 8), (0, 9)]


@given(sizes=sizes_lists, limit=st.integers(1, 120))
def test_pools_hold_all_row_groups_in_order_and_stay_within_the_limit(sizes, limit):
    found = pools(sizes, limit)
    assert [index for pool in found for index in pool] == list(range(len(sizes)))
    assert all(len(pool) == 1 or sum(sizes[index] for index in pool) <= limit for pool in found)


@given(weights=st.lists(st.integers(1, 30), min_size=1, max_size=60), count=st.integers(1, 100))
def test_even_cuts_lose_nothing_and_stay_near_their_share(weights, count):
    array = np.array(weights)
    cuts = even_cuts(array, count)
    assert len(cuts) <= count
    assert np.concatenate([np.arange(len(array))[cut] for cut in cuts]).tolist() == list(range(len(array)))
    assert all(array[cut].sum() < array.sum() / count + array.max() for cut in cuts)


@given(count=st.integers(1, 60), more=st.integers(0, 60))
def test_there_are_as_many_even_cuts_as_asked_for_where_things_weigh_the_same(count, more):
    assert len(even_cuts(np.ones(count + more, dtype=np.int64), count)) == count


def test_even_cuts_of_nothing_are_none():
    assert even_cuts(np.zeros(0, dtype=np.int64), 10) == []
    assert even_cuts(np.zeros(3, dtype=np.int64), 10) == []


@given(count=st.integers(0, 30), num_workers=st.integers(1, 5))
def test_shares_of_workers_cover_everything_once(count, num_workers):
    shares = [share_of_worker(count, worker=worker, num_workers=num_workers) for worker in range(num_workers)]
    assert sorted(index for share in shares for index in share) == list(range(count))
