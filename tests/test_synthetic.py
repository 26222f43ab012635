import hashlib
import io
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysrec.config import FIRST_SESSION, RETURN, SyntheticConfig
from raysrec.config.loading import load
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


RETURNING = SyntheticConfig(num_users=400, num_items=300, mean_length=150, returns_after=60, seed=5)
SIGN, GROUPS = 159, 28


def group(item):
    """Group of a keepsake."""
    return (item - SIGN - 1) // 5


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


def test_a_user_begins_with_keepsakes_of_two_groups_and_returns_to_them():
    chosen = set()
    for items in histories(RETURNING):
        first, second = groups = sorted({group(item) for item in items[:FIRST_SESSION]})
        assert first < GROUPS // 2 <= second
        assert min(items[:FIRST_SESSION]) > SIGN
        starts = [place for place, item in enumerate(items) if item == SIGN]
        assert starts[-1] + RETURN == len(items)
        for start in starts:
            assert [group(item) for item in items[start + 1 : start + RETURN]] == groups
        # Nothing else is a keepsake, or the sign.
        assert sum(item >= SIGN for item in items) == FIRST_SESSION + RETURN * len(starts)
        chosen |= set(groups)
    assert len(chosen) == GROUPS


def test_returns_are_as_far_apart_as_asked_and_there_are_two_at_least():
    earlier, last = [], []
    longer = RETURNING.model_copy(update={"mean_length": 900})  # where there is room for many returns
    for items in histories(longer):
        starts = [FIRST_SESSION - RETURN] + [place for place, item in enumerate(items) if item == SIGN]
        breaks = [later - earlier - RETURN for earlier, later in itertools.pairwise(starts)]
        assert len(breaks) >= 2
        last.append(breaks.pop())
        earlier += breaks[1:]
        assert 1 <= breaks[0] <= 1 + 90 + RETURN
    assert (min(last), max(last)) == (60, 90)
    assert min(earlier) == 1
    assert 85 <= max(earlier) <= 90
    assert np.mean(np.array(earlier) >= 10) == pytest.approx((10**-0.5 - 91**-0.5) / (1 - 91**-0.5), abs=0.02)
    assert np.mean([len(items) for items in histories(RETURNING)]) == pytest.approx(150, rel=0.05)
    assert min(len(items) for items in histories(RETURNING)) >= FIRST_SESSION + 1 + RETURN + 60 + RETURN


def test_which_keepsake_a_return_brings_says_nothing_about_the_next():
    pairs = [
        [items[place + 1] for place, item in enumerate(items) if item == SIGN][-2:] for items in histories(RETURNING)
    ]
    # One of five, whichever it was before.
    assert np.mean([earlier == later for earlier, later in pairs]) == pytest.approx(1 / 5, abs=0.06)


def test_a_short_memory_scores_below_a_long_one():
    scores = {window: best_ndcg(RETURNING, window=window) for window in (8, 60, 64, 92, 200, None)}
    gains = 1 / np.log2(np.arange(2, 12))
    assert scores[8] == scores[60] == pytest.approx(gains.sum() / 70)  # fourteen groups of five
    assert scores[60] < scores[64] < scores[92]
    assert scores[92] > 0.95 * scores[200]
    assert scores[200] == scores[None] == pytest.approx(gains[:5].mean())
    with pytest.raises(ValueError, match="shorter than the 8 steps"):
        best_ndcg(RETURNING, window=7)


def test_the_lifelong_config_needs_a_memory_longer_than_a_thousand():
    config = load([Path(__file__).parent.parent / "configs" / "lifelong.yaml"], [])
    assert config.model.max_length == 2_000
    assert best_ndcg(config.data.synthetic) == pytest.approx(0.590, abs=5e-4)
    assert best_ndcg(config.data.synthetic, window=2_000) == best_ndcg(config.data.synthetic)
    assert best_ndcg(config.data.synthetic, window=1_000) == pytest.approx(0.065, abs=5e-4)
    assert best_ndcg(config.data.synthetic, window=200) == best_ndcg(config.data.synthetic, window=1_000)


@pytest.fixture
def one_large_block(monkeypatch):
    monkeypatch.setattr("raysrec.data.synthetic.walk.USERS_PER_BLOCK", 20_000)


def last_items_and_their_probabilities(config, window):
    """Where the last items stand [users, items], and the probabilities of all."""
    walk = make_walk(config, 0, make_world(config))
    (probabilities,) = last_step(walk, config, window, users_at_once=20_000)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    hit = np.zeros_like(probabilities)
    hit[np.arange(20_000), walk.items[np.arange(20_000), walk.lengths - 1]] = 1
    return hit, probabilities


@pytest.mark.parametrize("settings", [{"order": 3}, {"drift": 0.6}])
@pytest.mark.usefixtures("one_large_block")
def test_the_probabilities_of_the_last_item_are_those_that_are_drawn(settings):
    config = SyntheticConfig(num_users=20_000, num_items=45, mean_length=12, seed=5, **settings)
    hit, probabilities = last_items_and_their_probabilities(config, window=10_000)
    # Among items that were given about the same probability, as large a share was drawn.
    for low, high in [(1e-6, 0.01), (0.01, 0.03), (0.03, 0.1), (0.1, 0.25), (0.25, 1)]:
        alike = (probabilities > low) & (probabilities <= high)
        assert hit[alike].mean() == pytest.approx(probabilities[alike].mean(), rel=0.12)


@pytest.mark.parametrize(("window", "remember"), [(30, 0), (75, 0.5), (10_000, 1)])
@pytest.mark.usefixtures("one_large_block")
def test_the_keepsake_that_returns_is_one_of_the_group_for_who_remembers_it(window, remember):
    config = RETURNING.model_copy(update={"num_users": 20_000, "num_items": 90})  # eight groups
    hit, probabilities = last_items_and_their_probabilities(config, window)
    candidates = (probabilities > 0).sum(axis=1)
    assert np.mean(candidates < 10) == pytest.approx(remember, abs=0.05)
    for number in np.unique(candidates):
        users = candidates == number
        item = hit[users] * probabilities[users]
        assert (item.sum(axis=1) == 1 / number).all()  # what comes was never ruled out
        best = probabilities[users].argmax(axis=1)
        assert hit[users, best].mean() == pytest.approx(1 / number, rel=0.12)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mean_length": 116}, "leaves no room for two returns, .* make it at least 117"),
        ({"mean_length": None}, "mean_length=40 leaves no room"),
        ({"num_items": 41}, "make it at least 42"),
        ({"shape": "netflix"}, "needs histories longer than those of data.synthetic.shape=netflix"),
        ({"returns_after": -1}, "greater than or equal to 0"),
    ],
)
def test_returns_that_cannot_be_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        SyntheticConfig.model_validate(RETURNING.model_dump() | settings)
