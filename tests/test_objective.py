import re
from dataclasses import replace

import pytest
import torch

from raysrec.config import LossConfig
from raysrec.history import Batch, History, empty_batch
from raysrec.losses import bce_loss, bpr_loss, gbce_loss, sampled_softmax_loss, softmax_loss_reference
from raysrec.models import MODELS, SequenceModel, build_model
from raysrec.negatives import in_batch, popularity, uniform
from raysrec.objective import Objective, choose_loss

NUM_ITEMS = 30
CONFIG = MODELS["mamba4rec"].Config(name="mamba4rec", dim=8, dropout=0.0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(CONFIG, NUM_ITEMS)


@pytest.fixture
def batch():
    items = torch.tensor([[3, 1, 4, 1], [5, 9, 0, 0], [2, 6, 5, 0]])
    targets = torch.tensor([[1, 4, 1, 7], [9, 8, 0, 0], [0, 5, 3, 0]])
    history = History(items, torch.zeros_like(items), torch.tensor([4, 2, 3]), users=torch.tensor([70, 8, 70]))
    had = {8: [5, 9, 8], 70: [3, 1, 4, 7, 2, 6, 5, 11, 11]}
    return Batch(history, targets, seen=torch.tensor([(user, item) for user in had for item in had[user]]))


def test_softmax_is_summed_over_every_position_that_has_a_target(model, batch):
    learns = batch.targets != 0
    states = model.encode(batch.history)[learns]
    expected = softmax_loss_reference(states, model.item_vectors(), batch.targets[learns])
    torch.testing.assert_close(Objective(model, LossConfig(name="softmax"))(batch), expected)


def test_last_position_reads_only_there(model, batch):
    targets = torch.tensor([7, 8, 3])
    expected = softmax_loss_reference(model.read(batch.history), model.item_vectors(), targets)
    torch.testing.assert_close(Objective(model, LossConfig(name="softmax"), reads_last=True)(batch), expected)


COUNTS = torch.tensor([0, *(number**2 for number in range(1, NUM_ITEMS + 1))])


def sampled_softmax(states, vectors, targets, bias, negatives):
    counts = negatives.log_expected_counts()
    return sampled_softmax_loss(states, vectors, targets, negatives.items, bias, log_expected_counts=counts)


def drawn(distribution, *shape):
    """What a batch draws: it goes with the batch's seed, 5 here."""
    return distribution.draw(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "softmax"}, lambda s, v, t, b: softmax_loss_reference(s, v, t, b)),
        ({"name": "sampled_softmax"}, lambda s, v, t, b: sampled_softmax(s, v, t, b, drawn(uniform(NUM_ITEMS), 8))),
        (
            {"name": "sampled_softmax", "sampling": "popularity", "popularity_power": 0.5},
            lambda s, v, t, b: sampled_softmax(s, v, t, b, drawn(popularity(COUNTS, 0.5), 8)),
        ),
        (
            {"name": "sampled_softmax", "sampling": "in_batch"},  # nothing is drawn, so as often as items occur
            lambda s, v, t, b: sampled_softmax(s, v, t, b, in_batch(t, popularity(COUNTS, 1.0))),
        ),
        ({"name": "bce"}, lambda s, v, t, b: bce_loss(s, v, t, drawn(uniform(NUM_ITEMS), len(t), 8).items, b)),
        (
            {"name": "bpr", "sampling": "popularity", "popularity_power": 0.25},
            lambda s, v, t, b: bpr_loss(s, v, t, drawn(popularity(COUNTS, 0.25), len(t), 8).items, b),
        ),
        (
            {"name": "gbce", "calibration": 0.3},
            lambda s, v, t, b: gbce_loss(s, v, t, drawn(uniform(NUM_ITEMS), len(t), 8).items, b, calibration=0.3),
        ),
    ],
)
def test_a_loss_is_given_the_models_bias_and_what_its_settings_say(batch, settings, expected):
    model = build_model(MODELS["lrurec"].Config(name="lrurec", dim=8, dropout=0.0), NUM_ITEMS)
    torch.nn.init.normal_(model.item_bias())
    learns = batch.targets != 0
    pieces = model.encode(batch.history)[learns], model.item_vectors(), batch.targets[learns], model.item_bias()
    draws = settings["name"] != "softmax" and settings.get("sampling") != "in_batch"
    asked = LossConfig(**settings, **({"negatives": 8} if draws else {}))
    objective = Objective(model, asked, item_counts=COUNTS)
    torch.testing.assert_close(objective(replace(batch, seed=5)), expected(*pieces))


@pytest.mark.parametrize("padding_class", [False, True])
def test_what_padding_is_learns_as_a_class_of_the_softmax_and_never_where_it_stands(batch, padding_class):
    unmasked = MODELS["recgrela"].Config(name="recgrela", dim=8, num_heads=2, form="unmasked", max_length=6)
    model = build_model(unmasked, NUM_ITEMS)
    assert model.padding_leaks
    Objective(model, LossConfig(name="softmax", padding_class=padding_class), reads_last=True)(batch).backward()
    assert bool(model.item_vectors().grad[0].any()) == padding_class


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "sampled_softmax", "negatives": 8},
        {"name": "sampled_softmax", "negatives": 8, "sampling": "popularity"},
        {"name": "sampled_softmax", "sampling": "in_batch"},
        {"name": "bce", "negatives": 1},
        {"name": "bce", "negatives": 3, "exclude_history": True},
        {"name": "gbce", "negatives": 3},
        {"name": "bpr", "negatives": 2, "sampling": "popularity", "exclude_history": True},
    ],
)
def test_every_loss_learns(model, batch, settings):
    objective = Objective(model, LossConfig(**settings), item_counts=torch.arange(NUM_ITEMS + 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    ranks = []
    for _ in range(60):
        learns = batch.targets != 0
        scores = model.encode(batch.history)[learns] @ model.item_vectors().T
        ranks.append((scores > scores.gather(1, batch.targets[learns][:, None])).sum(1).float().mean())
        optimizer.zero_grad()
        objective(batch).backward()
        optimizer.step()
    assert ranks[-1] < 0.5 * ranks[0]


def test_negatives_can_be_kept_from_all_that_their_user_has_in_training(model, batch):
    own = {user: set(batch.seen[batch.seen[:, 0] == user, 1].tolist()) for user in (8, 70)}
    objective = Objective(model, LossConfig(name="bce", negatives=2000, exclude_history=True))
    learned = objective._learned(batch)
    drawn = objective._own_negatives(learned, batch, torch.Generator().manual_seed(0))
    for user, items in zip(batch.history.users[learned.rows].tolist(), drawn.tolist(), strict=True):
        assert set(items) == set(range(1, NUM_ITEMS + 1)) - own[user]
    with pytest.raises(ValueError, match=r"loss\.exclude_history needs to know"):
        objective(replace(batch, seen=None))
    assert objective(empty_batch()) == 0


def test_a_penalty_is_added_to_the_mean_loss(model, batch, monkeypatch):
    objective = Objective(model, LossConfig(name="softmax"))
    without = objective(batch) / batch.num_targets()
    monkeypatch.setattr(SequenceModel, "penalty", lambda self: torch.tensor(0.25))
    torch.testing.assert_close(objective(batch) / batch.num_targets(), without + 0.25)


def test_a_penalty_of_each_history_counts_as_often_as_it_has_targets(model, batch, monkeypatch):
    objective = Objective(model, LossConfig(name="softmax"))
    without, targets = objective(batch), (batch.targets > 0).sum(dim=1)
    assert len(set(targets.tolist())) > 1
    penalties = torch.arange(1.0, 1 + len(targets))
    monkeypatch.setattr(SequenceModel, "penalty", lambda self: penalties)
    torch.testing.assert_close(objective(batch), without + (targets * penalties).sum())


def test_popular_negatives_need_to_know_what_is_popular(model):
    with pytest.raises(ValueError, match=r"loss\.sampling=popularity needs to know"):
        Objective(model, LossConfig(name="bce", sampling="popularity"))


@pytest.mark.parametrize(
    ("num_items", "positions", "device", "expected"),
    [
        (3_416, 1.0, "cpu", "softmax"),
        (180_000, 1.0, "cpu", "sampled_softmax"),
        (180_000, 1.0, "cuda", "softmax"),
        (180_000, 98.5, "cpu", "softmax"),  # one target per prefix
        (180_000, 2.5, "cpu", "sampled_softmax"),
    ],
)
def test_auto_is_exact_while_the_catalogue_costs_little(num_items, positions, device, expected):
    model = build_model(MODELS["recgrela"].Config(name="recgrela"), num_items)
    chosen = choose_loss(LossConfig(), model, positions_per_target=positions, device=device)
    assert chosen.config.name == expected
    encoder = sum(p.numel() for p in model.parameters()) - 64 * (num_items + 1)
    said = f"costs {num_items * 64 / encoder / positions:.1f} times encoding a target's {positions:.1f} positions"
    assert said in chosen.reason


def test_what_a_target_encodes_counts_only_where_items_are_read():
    popularity = build_model(MODELS["popularity"].Config(name="popularity"), 180_000)
    few, many = (choose_loss(LossConfig(), popularity, positions_per_target=n, device="cpu") for n in (1.0, 99.0))
    assert few == many


def test_what_was_asked_for_is_taken():
    model = build_model(CONFIG, 5_000)
    assert choose_loss(LossConfig(name="gbce"), model, positions_per_target=1.0, device="cpu").config.negatives == 256
    assert (
        choose_loss(LossConfig(name="sampled_softmax"), model, positions_per_target=1.0, device="cpu").config.negatives
        == 4_096
    )
    asked = LossConfig(name="bpr", negatives=7)
    assert choose_loss(asked, model, positions_per_target=1.0, device="cpu") == (asked, "as configured")


def test_draws_go_with_the_batch_and_not_with_the_worker(model, batch):
    objective = Objective(model, LossConfig(name="bce", negatives=5))
    first = objective(batch)
    torch.manual_seed(7)
    torch.testing.assert_close(objective(batch), first, rtol=0, atol=0)
    assert objective(replace(batch, seed=1)) != first


def test_more_negatives_than_items_are_refused(model):
    with pytest.raises(ValueError, match=r"loss\.negatives=31 exceeds the 30 items there are"):
        choose_loss(LossConfig(name="bce", negatives=31), model, positions_per_target=1.0, device="cpu")


@pytest.mark.parametrize("name", ["lrurec", "bert4rec"])
def test_numbers_added_to_scores_are_no_encoder(name):
    few, many = (
        choose_loss(
            LossConfig(), build_model(MODELS[name].Config(name=name), n), positions_per_target=1.0, device="cpu"
        )
        for n in (10_000, 100_000)
    )
    ratios = [float(re.search(r"costs ([\d.]+) times", chosen.reason)[1]) for chosen in (few, many)]
    assert ratios[1] == pytest.approx(10 * ratios[0], rel=0.03)


def test_vectors_of_users_are_no_encoder():
    caser = MODELS["caser"].Config(name="caser", max_length=10)
    model = build_model(caser, 30_000, num_users=20_000)
    assert choose_loss(LossConfig(), model, positions_per_target=1.0, device="cpu").config.name == "sampled_softmax"
