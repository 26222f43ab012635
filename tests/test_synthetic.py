import hashlib
import io
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysrec.command_line import load
from raysrec.config import FIRST_SESSION, SyntheticConfig
from raysrec.data.synthetic import best_ndcg, blocks, settings_json, synthesize, synthesize_block
from raysrec.data.synthetic.best import last_step
from raysrec.data.synthetic.walk import REPEAT_LAG, USERS_PER_BLOCK, _lengths, make_walk, season_of
from raysrec.data.synthetic.world import SHAPES, make_world, sizes

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


RETURNING = SyntheticConfig(num_users=400, num_items=300, mean_length=100, returns=0.5, returns_after=60, seed=5)
FIRST_KEEPSAKE = 150


def returns_of(items):
    """Places from the first session's end on at which a keepsake stands."""
    return [place for place, item in enumerate(items) if place >= FIRST_SESSION and item >= FIRST_KEEPSAKE]


def test_the_same_bytes_as_ever():
    table = synthesize(SMALL)
    rows = zip(*(table.column(name).to_pylist() for name in ("user", "item", "time")), strict=True)
    text = "\n".join(f"{user} {item} {time}" for user, item, time in rows)
    # Other bytes need another VERSION: prepared data is found by it.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "b93ac18f15040794"
    assert settings_json(SMALL) == '{"num_users":300,"num_items":120,"mean_length":25.0,"seed":3}'


def test_blocks_are_made_alone_and_make_up_the_whole():
    config = SyntheticConfig(num_users=USERS_PER_BLOCK + 5, num_items=60, mean_length=6, seed=9)
    assert blocks(config) == 2
    last = synthesize_block(config, 1)
    assert sorted(set(last.column("user").to_pylist())) == [f"u{USERS_PER_BLOCK + user}" for user in range(5)]
    first = synthesize_block(config, 0)
    assert pa.concat_tables([first, last]).to_pylist() == synthesize(config).to_pylist()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_the_published_counts(shape):
    size = SHAPES[shape]
    config = SyntheticConfig(shape=shape)
    rng = np.random.default_rng(0)
    found = np.concatenate(
        [
            _lengths(rng, range(start, min(start + USERS_PER_BLOCK, size.num_users)), size)
            for start in range(0, size.num_users, USERS_PER_BLOCK)
        ]
    )
    assert (
        (len(found), found.sum())
        == (size.num_users, size.num_interactions)
        == (sizes(config).num_users, sizes(config).num_interactions)
    )
    assert found.min() >= size.least
    assert found.max() <= size.most
    assert size.dealt * size.num_users >= size.num_items * size.least_per_item


def test_the_shape_of_netflix_passes_its_filter_whole():
    config = SyntheticConfig(shape="netflix")
    world, counts = make_world(config), np.zeros(SHAPES["netflix"].num_items, dtype=np.int64)
    for block in range(blocks(config)):
        walk = make_walk(config, block, world)
        counts += np.bincount(walk.items[walk.items >= 0], minlength=len(counts))
    assert counts.sum() == 21_767_054
    assert counts.min() >= 50
    assert counts.max() <= 15_000
    # Skewed: a tenth of the items has a third of the interactions at least.
    assert np.sort(counts)[-len(counts) // 10 :].sum() > counts.sum() / 3


def test_a_shape_can_be_made_smaller():
    config = SyntheticConfig(shape="netflix", num_users=200, num_items=500)
    lengths = [len(items) for items in histories(config)]
    assert len(lengths) == 200
    assert min(lengths) >= 50
    assert np.mean(lengths) == pytest.approx(21_767_054 / 120_377, abs=0.01)


def test_drift_moves_popularity_with_the_months():
    config = SyntheticConfig(num_users=1000, num_items=200, mean_length=60, drift=0.9)
    world = make_world(config)
    walk = make_walk(config, 0, world)
    step = 30
    users = np.flatnonzero(walk.lengths > step)
    in_season = world.season[walk.items[users, step]] == season_of(walk.times[users, step])
    still = config.model_copy(update={"drift": 0.0})
    still_walk = make_walk(still, 0, world)
    users = np.flatnonzero(still_walk.lengths > step)
    by_chance = world.season[still_walk.items[users, step]] == season_of(still_walk.times[users, step])
    assert in_season.mean() > by_chance.mean() + 0.15


def test_a_user_begins_with_keepsakes_and_each_returns_once_at_most():
    for items in histories(RETURNING):
        first = items[:FIRST_SESSION]
        assert min(first) >= FIRST_KEEPSAKE
        assert len(set(first)) == FIRST_SESSION
        returned = [items[place] for place in returns_of(items)]
        assert len(set(returned)) == len(returned)
        assert set(returned) <= set(first)
        assert min(returns_of(items), default=60) >= 60


def test_the_share_of_returns_is_as_asked_until_there_are_none_left():
    found = histories(RETURNING)
    # Within fifteen steps nobody has run out of twenty keepsakes.
    shares = [np.mean(np.array(items[60:75]) >= FIRST_KEEPSAKE) for items in found if len(items) >= 75]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.mean([len(items) for items in found]) == pytest.approx(100, rel=0.05)
    assert min(len(items) for items in found) > 60
    assert all(len(returns_of(items)) == FIRST_SESSION for items in found if len(items) > 160)


def test_the_order_of_returns_says_nothing_about_the_next():
    places = [np.array([items.index(items[p]) for p in returns_of(items)]) for items in histories(RETURNING)]
    assert (
        abs(np.corrcoef(np.concatenate([p[:-1] for p in places]), np.concatenate([p[1:] for p in places]))[0, 1]) < 0.1
    )


def test_a_short_memory_scores_below_a_long_one():
    scores = {window: best_ndcg(RETURNING, window=window) for window in (8, 20, 60, None)}
    assert scores[8] == pytest.approx(scores[20], abs=0.005)  # all that a little more shows is what has returned
    assert scores[20] < scores[60] < scores[None]
    assert scores[None] > scores[20] + 0.06
    assert best_ndcg(RETURNING, window=10_000) == scores[None]
    with pytest.raises(ValueError, match="shorter than the 8 steps"):
        best_ndcg(RETURNING, window=7)


def test_the_lifelong_config_needs_a_memory_longer_than_200():
    config = load([Path(__file__).parent.parent / "configs" / "lifelong.yaml"], [])
    assert config.model.max_length == 2_000
    assert best_ndcg(config.data.synthetic) == pytest.approx(0.443, abs=5e-4)
    assert best_ndcg(config.data.synthetic, window=200) == pytest.approx(0.339, abs=5e-4)


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({}, 30),
        ({}, 70),
        ({}, None),
        ({"returns": 0, "num_items": 45, "mean_length": 12, "order": 3}, None),
        ({"returns": 0, "num_items": 45, "mean_length": 12, "drift": 0.6}, None),
    ],
)
def test_the_probabilities_of_the_last_item_are_those_that_are_drawn(settings, window, monkeypatch):
    monkeypatch.setattr("raysrec.data.synthetic.walk.USERS_PER_BLOCK", 20_000)
    config = RETURNING.model_copy(update={"num_users": 20_000, "num_items": 90} | settings)
    walk = make_walk(config, 0, make_world(config))
    (probabilities,) = last_step(walk, config, window or 10_000, users_at_once=20_000)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    last = walk.items[np.arange(20_000), walk.lengths - 1]
    hit = np.zeros_like(probabilities)
    hit[np.arange(20_000), last] = 1
    # Among items that were given about the same probability, as large a share was drawn.
    for low, high in [(1e-6, 0.01), (0.01, 0.03), (0.03, 0.1), (0.1, 0.25), (0.25, 1)]:
        alike = (probabilities > low) & (probabilities <= high)
        assert hit[alike].mean() == pytest.approx(probabilities[alike].mean(), rel=0.12)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mean_length": 60}, "leaves no room for returns"),
        ({"num_items": 39}, "make it at least 40"),
        ({"returns_after": 19}, "greater than or equal to 20"),
    ],
)
def test_returns_that_cannot_be_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        SyntheticConfig.model_validate(RETURNING.model_dump() | settings)
