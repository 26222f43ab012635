import io
import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysrec.config import SyntheticConfig
from raysrec.data.synthetic import REPEAT_LAG, best_ndcg, synthesize

SMALL = SyntheticConfig(num_users=300, num_items=120, mean_length=25, seed=3)


def as_bytes(table):
    pq.write_table(table, sink := io.BytesIO())
    return sink.getvalue()


def histories(config):
    """Items of each user in order, as numbers."""
    found = {}
    for user, item in zip(*(synthesize(config).column(name).to_pylist() for name in ("user", "item")), strict=True):
        found.setdefault(user, []).append(int(item[1:]))
    return list(found.values())


def test_a_seed_fixes_every_byte():
    assert as_bytes(synthesize(SMALL)) == as_bytes(synthesize(SMALL))
    assert as_bytes(synthesize(SMALL)) != as_bytes(synthesize(SMALL.model_copy(update={"seed": 4})))


def test_sizes_are_as_asked():
    table = synthesize(SyntheticConfig())
    assert len(set(table.column("user").to_pylist())) == 2_000
    assert len(set(table.column("item").to_pylist())) == 500
    assert len(table) / 2_000 == pytest.approx(40, rel=0.05)


def test_times_rise_and_never_tie_within_a_user():
    table = synthesize(SMALL)
    times = table.column("time").to_numpy()
    assert (np.diff(times) >= 0).all()
    pairs = list(zip(table.column("user").to_pylist(), times.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("settings", [{"num_users": 1}, {"num_items": 1}, {"num_items": 3}, {"mean_length": 0.1}])
def test_awkward_sizes_work(settings):
    config = SyntheticConfig(**{"num_users": 20, "num_items": 30, "mean_length": 9.0} | settings)
    assert len(synthesize(config)) >= config.num_users
    assert 0 < best_ndcg(config) <= 1


def test_the_successors_of_an_item_are_few():
    follows = {}
    for items in histories(SyntheticConfig()):
        for item, following in itertools.pairwise(items):
            follows.setdefault(item, []).append(following)
    shares = [
        np.sort(np.bincount(after))[::-1][:4].sum() / len(after) for after in follows.values() if len(after) > 100
    ]
    # 60 % by the chain, and some of the other draws fall on the same four.
    assert 0.55 < np.mean(shares) < 0.75


def test_items_come_back_after_the_lag():
    pairs = {
        lag: [a == b for items in histories(SyntheticConfig()) for a, b in zip(items, items[lag:], strict=False)]
        for lag in (REPEAT_LAG - 1, REPEAT_LAG)
    }
    assert np.mean(pairs[REPEAT_LAG]) > np.mean(pairs[REPEAT_LAG - 1]) + 0.07


def test_the_best_score_is_far_above_popularity_and_below_one():
    config = SyntheticConfig()
    found = histories(config)
    counts = np.bincount(np.concatenate(found))
    last = np.array([items[-1] for items in found])
    ranks = 1 + (counts[None, :] > counts[last][:, None]).sum(axis=1)
    popularity = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean()
    assert popularity < 0.15
    assert 0.45 < best_ndcg(config) < 0.65


def test_the_best_score_is_reached_by_who_knows_the_chain():
    # One item: nothing to guess. Cut-off 1: the likeliest item alone.
    assert best_ndcg(SyntheticConfig(num_items=1, num_users=5)) == pytest.approx(1)
    assert best_ndcg(SyntheticConfig(), k=1) < best_ndcg(SyntheticConfig(), k=10) < best_ndcg(SyntheticConfig(), k=500)
