"""Counts of histories: against a slow count, and the same however the histories are parted."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysrec.data.preparing.counts import Counts
from raysrec.data.splits import HELD_OUT, SplitRule

TEMPORAL = SplitRule(name="temporal", validate_from=4, test_from=7)
RULES = [SplitRule(), TEMPORAL, TEMPORAL.model_copy(update={"target": "first"})]

histories_lists = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=3, max_size=8).map(
        lambda history: sorted(history, key=lambda pair: pair[0])
    ),
    min_size=1,
    max_size=7,
)


def arrays(histories):
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    times, items = np.array([pair for history in histories for pair in history], dtype=np.int64).T
    return offsets, items, times


def spelled_out(rule, histories):
    """The counts, one interaction at a time."""
    offsets, _, times = arrays(histories)
    positions = rule.positions(offsets, times)
    train = positions.train.tolist()
    moments = [[time for time, _ in history] for history in histories]
    found = {
        "num_users": len(histories),
        "num_interactions": len(times),
        "num_targets": sum(max(n - 1, 0) for n in train),
        "longest_history": max(map(len, histories)),
        "first_time": min(times),
        "last_time": max(times),
        "tied_interactions": sum(times.count(time) > 1 for times in moments for time in times),
        "repeated_interactions": sum(len(history) - len(set(history)) for history in histories),
    }
    for name in HELD_OUT:
        targets = [(user, place) for user, place in enumerate(positions.held_out[name].tolist()) if place >= 0]
        learned = [(user, time) for user, n in enumerate(train) for time in moments[user][:n]]
        found |= {
            f"num_{name}_users": len(targets),
            f"cold_{name}_users": sum(train[user] == 0 for user, _ in targets),
            f"tied_{name}_targets": sum(moments[user].count(moments[user][place]) > 1 for user, place in targets),
            f"leaked_{name}_targets": sum(
                any(other != user and time > moments[user][place] for other, time in learned) for user, place in targets
            ),
        }
    return found


@pytest.mark.parametrize("rule", RULES)
@given(histories=histories_lists, cut=st.integers(0, 7))
@settings(deadline=None)
def test_counts_of_parts_add_up_to_those_of_the_whole(rule, histories, cut):
    expected = spelled_out(rule, histories)
    assert Counts.of(rule, *arrays(histories)).for_manifest() == expected
    cuts = sorted({0, min(cut, len(histories)), (len(histories) + 1) // 2, len(histories)})
    parts = [Counts.of(rule, *arrays(histories[start:stop])) for start, stop in pairwise(cuts)]
    assert sum(parts, Counts()).for_manifest() == expected
    assert sum(reversed(parts), Counts()).for_manifest() == expected
    if rule.name == "temporal":
        assert expected["leaked_validation_targets"] == expected["leaked_test_targets"] == 0


def test_thousandths_of_a_second_tell_ties_and_order_apart():
    history = [(1000 * time + thousandth, 1) for time in range(9) for thousandth in (0, 1)]
    counts = Counts.of(TEMPORAL, *arrays([history]), per_second=1000)
    assert (counts.tied, counts.repeated, counts.learned, counts.test.users) == (0, 0, 8, 1)
    assert counts.for_manifest(1000)["last_time"] == 8


def test_few_times_are_held_back_to_be_counted_later():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 30, 2000)
    offsets = np.concatenate([[0], lengths.cumsum()])
    times = rng.integers(0, 10**6, offsets[-1])
    times = times[np.lexsort((times, np.repeat(np.arange(2000), lengths)))]
    counts = Counts.of(SplitRule(), offsets, times, times)
    assert len(counts.validation.unseen) + len(counts.test.unseen) < 400
    counts = Counts.of(SplitRule(name="temporal", validate_from=600_000, test_from=800_000), offsets, times, times)
    assert len(counts.validation.unseen) + len(counts.test.unseen) == 0
