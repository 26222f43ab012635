import threading
import time
from collections import Counter
from itertools import pairwise, zip_longest

import numpy as np
import pytest
import torch

from raysrec.config import LossConfig
from raysrec.config.run import RunConfig
from raysrec.data.batching.facts import positions_per_target, targets_per_epoch
from raysrec.data.batching.loader import Prefetched, epoch_steps, held_out
from raysrec.data.batching.reading import read_directly
from raysrec.history import empty_batch
from raysrec.prepare import prepare

NUM_STREAMS = 6


SPLITS = {
    "leave_one_out": {},
    "temporal": {"name": "temporal", "validation_share": 0.2, "test_share": 0.2},
    "temporal, first": {"name": "temporal", "validation_share": 0.3, "test_share": 0.3, "target": "first"},
}


@pytest.fixture(scope="module", params=SPLITS)
def config(request, tmp_path_factory):
    return RunConfig.model_validate(
        {
            "data": {
                "split": SPLITS[request.param],
                "prepared": str(tmp_path_factory.mktemp("prepared")),
                "synthetic": {"num_users": 311, "num_items": 60, "mean_length": 17},
                "num_streams": NUM_STREAMS,
                "shuffle_interactions": 1500,
            },
            "model": {"name": "recgrela", "max_length": 12},
            "train": {"batch_targets": 150, "micro_batch_tokens": 100},
        }
    )


@pytest.fixture(scope="module")
def data(config):
    # Users who come late have nothing to learn from; so that the others' row groups are enough for all streams:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysrec.data.preparing.writing.SMALLEST_ROW_GROUP", 100)
        return prepare(config.data)


def global_batches(data, config, *, epoch, num_workers):
    """Per step the sorted rows of all workers: items, times and targets without their padding."""
    workers = [
        epoch_steps(data, config, read_directly, epoch=epoch, worker=worker, num_workers=num_workers)
        for worker in range(num_workers)
    ]
    return [
        sorted(row for batches in step for batch in batches for row in rows_of(batch))
        for step in zip_longest(*workers, fillvalue=[])
    ]


def rows_of(batch):
    for items, times, targets, length in zip(
        batch.history.items, batch.history.times, batch.targets, batch.history.lengths, strict=True
    ):
        yield tuple(items[:length].tolist()), tuple(times[:length].tolist()), tuple(targets[:length].tolist())


def users_in_data(data):
    """Every user's number, [(item, time)], and how many of them are learned from; read straight from the files."""
    rule = data.manifest.split
    for table in read_directly(data.row_groups()):
        for row in table.to_pylist():
            history = list(zip(row["items"], row["times"], strict=True))
            train = len(history) - 2
            if rule.name == "temporal":
                train = sum(time < rule.validate_from for _, time in history)
            yield row["user"], history, train


def targets_in_data(data):
    """The multiset of (time, item) of all training targets."""
    found = Counter()
    for _, history, train in users_in_data(data):
        found.update((time, item) for (_, time), (item, _) in pairwise(history[:train]))
    return found


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize(
    ("supervision", "windows"), [("every_position", "tile"), ("every_position", "overlap"), ("last_position", "tile")]
)
def test_an_epoch_holds_every_target_of_the_data_exactly_once(data, config, num_workers, supervision, windows):
    train = config.train.model_copy(update={"supervision": supervision, "windows": windows})
    steps = global_batches(data, config.model_copy(update={"train": train}), epoch=1, num_workers=num_workers)
    seen = Counter(
        (time, target)
        for step in steps
        for _, times, targets in step
        for time, target in zip(times, targets, strict=True)
        if target
    )
    assert seen == targets_in_data(data)
    assert sum(seen.values()) == data.manifest.num_targets


WAYS = [
    {},
    {"windows": "last"},
    {"supervision": "cloze"},
    {"supervision": "cloze", "windows": "prefixes"},
    {"supervision": "last_position", "prefixes_per_user": 2},
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_workers", [2, 3, 5])
def test_global_batches_do_not_depend_on_the_number_of_workers(data, config, num_workers, way):
    config = config.model_copy(update={"train": config.train.model_copy(update=way)})
    alone = global_batches(data, config, epoch=0, num_workers=1)
    assert global_batches(data, config, epoch=0, num_workers=num_workers) == alone


def test_row_groups_are_listed_as_often_however_many_there_are(data, config, monkeypatch):
    """Listed for each of them, thousands would take longer than all else of an epoch."""
    listed, row_groups = [], type(data).row_groups
    monkeypatch.setattr(type(data), "row_groups", lambda self: listed.append(1) or row_groups(self))
    assert len(global_batches(data, config, epoch=0, num_workers=1)) > 1
    assert len(listed) == 2 < len(row_groups(data))


@pytest.mark.parametrize("way", WAYS)
def test_an_epoch_has_as_many_targets_as_it_is_said_to_have(data, config, way):
    config = config.model_copy(update={"train": config.train.model_copy(update=way)})
    rows = [row for step in global_batches(data, config, epoch=0, num_workers=1) for row in step]
    found = sum(target != 0 for _, _, targets in rows for target in targets)
    tolerance = 0.1 if way.get("supervision") == "cloze" else 0.0  # which draws them
    assert found == pytest.approx(targets_per_epoch(data, config), rel=tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_encoded_for_a_target_is_about_what_a_typical_history_says(data, config, way):
    config = config.model_copy(update={"train": config.train.model_copy(update=way)})
    steps = list(epoch_steps(data, config, read_directly, epoch=0, worker=0, num_workers=1))
    batches = [batch for step in steps for batch in step]
    encoded = sum(int(batch.history.lengths.sum()) for batch in batches)
    found = encoded / sum(batch.num_targets() for batch in batches)
    assert positions_per_target(data.manifest, config) == pytest.approx(found, rel=0.35)


@pytest.mark.parametrize("way", WAYS)
def test_what_users_have_in_training_goes_with_a_batch_and_changes_nothing_else(data, config, way):
    config = config.model_copy(update={"train": config.train.model_copy(update=way)})
    asking = config.model_copy(update={"loss": LossConfig(name="bce", exclude_history=True)})
    trained = {user: sorted(item for item, _ in history[:train]) for user, history, train in users_in_data(data)}
    without, steps = (
        list(epoch_steps(data, one, read_directly, epoch=0, worker=0, num_workers=1)) for one in (config, asking)
    )
    for step, plain in zip(steps, without, strict=True):
        for batch, other in zip(step, plain, strict=True):
            assert (batch.seed, other.seen) == (other.seed, None)
            assert torch.equal(batch.history.items, other.history.items)
            found = {user: [] for user in batch.history.users.tolist()}
            for user, item in batch.seen.tolist():
                found[user].append(item)
            assert {user: sorted(items) for user, items in found.items()} == {user: trained[user] for user in found}


@pytest.mark.parametrize("way", WAYS)
def test_every_batch_has_a_seed_of_its_own_that_no_worker_changes(data, config, way):
    config = config.model_copy(update={"train": config.train.model_copy(update=way)})

    def seeds(num_workers, epoch):
        steps = [
            epoch_steps(data, config, read_directly, epoch=epoch, worker=worker, num_workers=num_workers)
            for worker in range(num_workers)
        ]
        return sorted(batch.seed for step in steps for batches in step for batch in batches)

    assert seeds(1, 0) == seeds(3, 0)
    several = [seed for epoch in range(3) for seed in seeds(1, epoch)]
    # Generators take 32 bits of a seed, the lowest, and dropout's differs from the loss's in the last.
    assert len({seed % 2**32 >> 1 for seed in several}) == len(several)


def test_epochs_and_seeds_differ_but_repeat(data, config):
    other_seed = config.model_copy(update={"train": config.train.model_copy(update={"seed": 1})})
    first = global_batches(data, config, epoch=0, num_workers=1)
    assert first == global_batches(data, config, epoch=0, num_workers=1)
    assert first != global_batches(data, config, epoch=1, num_workers=1)
    assert first != global_batches(data, other_seed, epoch=0, num_workers=1)


def test_batches_stay_near_their_size_and_rows_within_the_longest_history(data, config):
    steps = global_batches(data, config, epoch=0, num_workers=1)
    sizes = [sum(target != 0 for _, _, targets in step for target in targets) for step in steps]
    assert np.mean(sizes) == pytest.approx(config.train.batch_targets, rel=0.35)
    assert max(sizes) <= config.train.batch_targets + NUM_STREAMS * 12
    assert all(len(items) <= 12 for step in steps for items, _, _ in step)


def test_row_groups_are_read_once_and_only_where_there_is_something_to_learn(data, config):
    read = []

    def reader(groups):
        read.extend(groups)
        return read_directly(groups)

    for worker in range(3):
        list(epoch_steps(data, config, reader, epoch=0, worker=worker, num_workers=3))
    wanted = [group for group in data.row_groups() if group.weight]
    assert sorted(read, key=lambda group: group.index) == wanted
    assert (len(wanted) == len(data.row_groups())) == (data.manifest.split.name == "leave_one_out")


def to_rank(data, split):
    """User -> (the history before the target, the target), of all who have one."""
    rule = data.manifest.split
    found = {}
    for user, history, _ in users_in_data(data):
        begin, end = (
            (rule.validate_from, rule.test_from) if split == "validation" else (rule.test_from, history[-1][1] + 1)
        )
        places = [place for place, (_, time) in enumerate(history) if place and begin <= time < end]
        if rule.name == "leave_one_out":
            places = [len(history) - {"validation": 2, "test": 1}[split]]
        if places:
            place = places[0] if rule.target == "first" else places[-1]
            found[user] = [item for item, _ in history[:place]], history[place][0]
    return found


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_user_with_a_target_is_to_be_ranked_exactly_once(data, config, split, exclude_seen):
    evaluate = config.evaluate.model_copy(update={"exclude_seen": exclude_seen})
    config = config.model_copy(update={"evaluate": evaluate})
    expected = to_rank(data, split)
    ranked = []
    for batch in held_out(read_directly(data.row_groups()), data.manifest.split, config, split=split):
        for row, user in enumerate(batch.users.tolist()):
            past, target = expected[user]
            length = int(batch.history.lengths[row])
            assert batch.history.items[row, :length].tolist() == past[-12:]
            assert (int(batch.targets[row]), int(batch.lengths[row])) == (target, len(past))
            if exclude_seen:
                assert batch.seen[batch.seen[:, 0] == row, 1].tolist() == past
            ranked.append(user)
    assert sorted(ranked) == sorted(expected)
    assert len(ranked) == data.manifest.num_ranked(split)
    assert (len(ranked) == data.manifest.num_users) == (data.manifest.split.name == "leave_one_out")


@pytest.mark.parametrize("supervision", ["every_position", "last_position", "cloze"])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_nothing_is_read_in_training_that_is_not_learned_from(data, config, supervision, num_workers):
    """Whatever stands in a row, also beside the targets, is among a user's first interactions."""
    learned = Counter()
    for _, history, train in users_in_data(data):
        learned.update(history[:train])
    train = config.train.model_copy(update={"supervision": supervision})
    read = Counter()
    for step in global_batches(data, config.model_copy(update={"train": train}), epoch=2, num_workers=num_workers):
        for items, times, targets in step:
            shown = [
                target if supervision == "cloze" and target else item
                for item, target in zip(items, targets, strict=True)
            ]
            read.update(zip(shown, times, strict=True))
    assert set(read) <= set(learned)
    if supervision == "cloze":
        assert read == learned
    if data.manifest.split.name == "temporal":
        assert max(time for _, time in read) < data.manifest.split.validate_from


def test_a_user_without_training_interactions_is_ranked_and_counted(data, config):
    for split in ("validation", "test"):
        expected = to_rank(data, split)
        cold = [user for user, _, train in users_in_data(data) if train == 0 and user in expected]
        assert len(cold) == getattr(data.manifest, f"cold_{split}_users")


def test_prefetching_keeps_order_and_passes_errors_on():
    made = [[empty_batch()] * number for number in range(3)]

    def source():
        yield from made
        raise ValueError("a shard is broken")

    received = iter(Prefetched(source()))
    assert all(next(received) is step for step in made)
    with pytest.raises(ValueError, match="a shard is broken"):
        next(received)


def test_prefetching_ends_when_it_is_left_in_the_middle():
    def forever():
        while True:
            yield []

    others = set(threading.enumerate())
    steps = Prefetched(forever())
    (thread,) = set(threading.enumerate()) - others
    next(iter(steps))
    assert thread.is_alive()
    steps.close()
    thread.join(60.0)
    assert not thread.is_alive()


def test_the_time_that_a_consumer_waits_is_counted():
    def slow():
        time.sleep(0.2)
        yield []

    steps = Prefetched(slow())
    list(steps)
    assert steps.waited_s >= 0.1
