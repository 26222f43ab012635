import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysrec.data.preparing.filters import keep_intervals
from raysrec.schema import Interval


def keep(pairs, users, items):
    codes = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    kept, rounds = keep_intervals(codes[:, 0], codes[:, 1], users=Interval(users), items=Interval(items))
    return [pair for pair, stays in zip(pairs, kept, strict=True) if stays], rounds


def keep_slowly(pairs, users, items):
    """The definition, in lists."""
    rounds = 0
    while True:
        bad_users = {u for u, _ in pairs if not users.low <= sum(u == v for v, _ in pairs) <= users.high}
        bad_items = {i for _, i in pairs if not items.low <= sum(i == j for _, j in pairs) <= items.high}
        if not bad_users and not bad_items:
            return pairs, rounds
        pairs = [(u, i) for u, i in pairs if u not in bad_users and i not in bad_items]
        rounds += 1


def test_nothing_to_drop_takes_no_round():
    pairs = [(user, item) for user in range(3) for item in range(3)]
    assert keep(pairs, "[3,inf)", "[3,inf)") == (pairs, 0)


def test_dropping_goes_on_until_nothing_is_outside():
    core = [(user, item) for user in range(3) for item in range(3)]
    # Round 1 drops user 3, which leaves item 3 too rare; round 2 drops it, which leaves user 4 with too few.
    chain = [(3, 3), (3, 0), (4, 3), (4, 0), (4, 1), (5, 3), (5, 0), (5, 1), (5, 2)]
    kept, rounds = keep(core + chain, "[3,inf)", "[3,inf)")
    assert rounds == 3
    assert kept == [*core, (5, 0), (5, 1), (5, 2)]


def test_users_and_items_are_dropped_at_the_same_time():
    # Item 0 is over its bound only because of user 2, who is dropped in the same round; it is gone all the same.
    pairs = [(0, 0), (0, 1), (0, 3), (1, 0), (1, 1), (1, 3), (2, 0)]
    kept, rounds = keep(pairs, "[2,inf)", "[1,2]")
    assert kept == [(0, 1), (0, 3), (1, 1), (1, 3)]
    assert rounds == 1


def test_upper_bounds_take_part_in_every_round():
    pairs = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert keep(pairs, "[1,2]", "[1,inf)") == ([(1, 0), (1, 1), (2, 0), (2, 1)], 1)


@pytest.mark.parametrize(
    ("interval", "users_left"), [("[2,3]", [2, 3]), ("(2,3]", [3]), ("[2,3)", [2]), ("(1,inf)", [2, 3, 4])]
)
def test_brackets_decide_whether_an_end_is_inside(interval, users_left):
    pairs = [(user, item) for user in range(1, 5) for item in range(user)]
    kept, _ = keep(pairs, interval, "[1,inf)")
    assert sorted({user for user, _ in kept}) == users_left


def test_the_same_pair_twice_counts_twice():
    assert keep([(0, 0), (0, 0), (0, 0)], "[3,inf)", "[3,inf)") == ([(0, 0)] * 3, 0)


def test_everything_may_be_dropped():
    assert keep([(0, 0), (1, 1)], "[2,inf)", "[1,inf)") == ([], 1)
    assert keep([], "[2,inf)", "[1,inf)") == ([], 0)


bounds = st.tuples(st.integers(0, 4), st.integers(0, 6)).map(lambda b: Interval(f"[{b[0]},{b[0] + b[1]}]"))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40), bounds, bounds)
def test_agrees_with_the_definition(pairs, users, items):
    assert keep(pairs, users, items) == keep_slowly(pairs, users, items)
