"""Which interactions are learned from and held out, against a slow reading of the rules, for every small history."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysrec.config import SplitConfig
from raysrec.data.splits import HELD_OUT, SplitRule, find_rule, in_first, latest_with


def temporal(validate_from, test_from, target="last"):
    return SplitRule(name="temporal", target=target, validate_from=validate_from, test_from=test_from)


def flat(histories):
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    return offsets, np.array([time for history in histories for time in history], dtype=np.int64)


def spelled_out(rule, times):
    """Of one history: how many interactions are learned from, and the positions to validate and to test on."""
    if rule.name == "leave_one_out":
        train = max(len(times) - 2, 0)
        return train, *(place if place > 0 else -1 for place in (len(times) - 2, len(times) - 1))
    train = sum(time < rule.validate_from for time in times)
    found = []
    for begin, end in ((rule.validate_from, rule.test_from), (rule.test_from, 99)):
        inside = [place for place, time in enumerate(times) if begin <= time < end and place > 0]
        found.append((inside[-1] if rule.target == "last" else inside[0]) if inside else -1)
    return train, *found


RULES = [SplitRule(), temporal(2, 3), temporal(1, 3, "first"), temporal(0, 2), temporal(2, 4, "first")]


@pytest.mark.parametrize("rule", RULES)
def test_every_short_history_is_cut_as_the_rule_says(rule):
    histories = [times for n in range(7) for times in itertools.combinations_with_replacement(range(4), n)]
    positions = rule.positions(*flat(histories))
    found = zip(positions.train, *(positions.held_out[name] for name in HELD_OUT), strict=True)
    for times, cut in zip(histories, found, strict=True):
        assert tuple(map(int, cut)) == spelled_out(rule, times), times


@pytest.mark.parametrize("rule", RULES[1:])
def test_nothing_is_learned_from_at_or_after_the_time_to_validate(rule):
    histories = [times for n in range(7) for times in itertools.combinations_with_replacement(range(4), n)]
    offsets, times = flat(histories)
    learned = in_first(offsets, rule.positions(offsets, times).train)
    assert (learned == (times < rule.validate_from)).all()


def test_the_first_item_and_held_out_items_are_no_training_targets():
    offsets, times = flat([range(3), range(4), range(10)])
    assert SplitRule().positions(offsets, times).num_targets.tolist() == [0, 1, 7]


times_lists = st.lists(
    st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9) | st.integers(10**9, 10**9 + 10**6), min_size=1, max_size=60
)


@given(times=times_lists, share=st.floats(0.01, 1), parts=st.integers(1, 5))
def test_the_latest_moment_with_a_share_is_that_of_the_sorted_times(times, share, parts):
    count = max(1, round(share * len(times)))
    arrays = np.array_split(np.array(times, dtype=np.int64), parts)
    assert latest_with(lambda: arrays, count) == sorted(times)[-count]


def test_shares_lead_to_moments():
    times = np.random.default_rng(0).permutation(100)
    rule = find_rule(
        SplitConfig(name="temporal", validation_share=0.2, test_share=0.1), lambda: [times[:30], times[30:]]
    )
    assert rule == temporal(70, 90)


def test_moments_are_taken_as_they_are():
    config = SplitConfig(name="temporal", validate_from="2005-09-06", test_from=1125964801, target="first")
    assert find_rule(config, list) == temporal(1125964800, 1125964801, "first")
    assert find_rule(SplitConfig(), list) == SplitRule()


def test_times_too_coarse_for_shares_are_refused():
    with pytest.raises(
        ValueError, match=r"at 1970-01-01 00:00:07 there are so many .* name data\.split\.validate_from"
    ):
        find_rule(SplitConfig(name="temporal"), lambda: [np.array([1, 2, 7, 7, 7, 7, 7, 7])])


def test_a_rule_says_what_it_does():
    assert str(SplitRule()).startswith("leave one out")
    text = str(temporal(1125964800, 2**60))
    assert "learns before 2005-09-06 00:00:00, validates before 1152921504606846976, tests from there on" in text
