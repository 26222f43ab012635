"""What can be known of an epoch, and of all the data, before it is read as batches."""

import numpy as np
import torch

from raysrec.config.run import RunConfig
from raysrec.data.batching.cloze import expected_targets
from raysrec.data.batching.reading import read_directly
from raysrec.data.batching.windows import training_samples
from raysrec.data.histories import Histories
from raysrec.data.manifest import Manifest
from raysrec.data.prepared import PreparedData
from raysrec.data.splits import Positions
from raysrec.models import MODELS
from raysrec.objective import DataFacts

MANY_ENOUGH = 4
"""Interactions with which every user has a target, if one is left to validate and one to test."""


def targets_per_epoch(data: PreparedData, config: RunConfig) -> int:
    """How many targets an epoch learns from; with `cloze`, which draws them, on average."""
    train = config.train
    every_one = {"every_position": train.windows != "last", "last_position": train.prefixes_per_user == "all"}
    if every_one.get(train.supervision):
        return data.manifest.num_targets
    total, rng = 0.0, np.random.default_rng(0)
    for table in read_directly(data.row_groups()):
        histories = Histories.of([table])
        positions = data.manifest.split.positions(histories.offsets, histories.times)
        samples = training_samples(positions, train, max_length=config.model.max_length, rng=rng)
        rows = samples.take(np.arange(len(samples)))
        cloze = train.supervision == "cloze"
        total += float(expected_targets(rows.lengths, train.cloze).sum() if cloze else rows.num_targets.sum())
    return round(total)


def facts_of(data: PreparedData, config: RunConfig) -> DataFacts:
    """What a run's objective must know of its data."""
    return DataFacts(
        item_counts=torch.from_numpy(data.train_counts()),
        num_users=data.manifest.num_users,
        learned_users=_learned_users(data) if MODELS[config.model.name].has_user_vectors else None,
        positions_per_target=positions_per_target(data.manifest, config),
    )


def _learned_users(data: PreparedData) -> torch.Tensor | None:
    """At each user's number, whether there is a target of theirs; None where that is everybody. Reads all histories."""
    rule, manifest = data.manifest.split, data.manifest
    if rule.name == "leave_one_out" and manifest.user_interactions.low >= MANY_ENOUGH:
        return None
    learned = torch.zeros(manifest.num_users + 1, dtype=torch.bool)
    for table in read_directly([group for group in data.row_groups() if group.weight]):
        histories = Histories.of([table])
        positions = rule.positions(histories.offsets, histories.times)
        learned[torch.from_numpy(histories.users[positions.num_targets > 0])] = True
    return learned


def positions_per_target(manifest: Manifest, config: RunConfig) -> float:
    """How many positions are encoded for each target, in a history of the mean length; in truth it is rather more."""
    cold = max(manifest.cold_validation_users, manifest.cold_test_users)
    mean = max(1, round(manifest.num_targets / max(1, manifest.num_users - cold)))
    samples = training_samples(
        Positions(train=np.array([mean + 1]), held_out={}),
        config.train,
        max_length=config.model.max_length,
        rng=np.random.default_rng(0),
    )
    rows = samples.take(np.arange(len(samples)))
    cloze = config.train.supervision == "cloze"
    targets = expected_targets(rows.lengths, config.train.cloze) if cloze else rows.num_targets
    return float(rows.lengths.sum() / targets.sum())
