"""Ranks of held-out items, and the actors that find them: row groups in, one rank for each user out.

What training validates by and what the test reports are made here, by the same code.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raysrec.config.run import RunConfig
from raysrec.data.batching.batches import HeldOut
from raysrec.data.batching.loader import held_out
from raysrec.data.batching.reading import read_ahead
from raysrec.data.prepared import PreparedData
from raysrec.data.splits import HELD_OUT
from raysrec.metrics import RankSums
from raysrec.models import SequenceModel, build_model
from raysrec.ranking import rank_of_target, top_items
from raysrec.run_directory import RunDirectory

COVERAGE_K = 10
"""Length of the lists whose distinct items are counted as coverage."""

UNITS_PER_WORKER = 8
"""Blocks of row groups that each worker ranks: enough that the workers end at about the same time."""


@dataclass(frozen=True)
class Ranked:
    """Ranks of some users' held-out items, 1 is best."""

    users: np.ndarray
    ranks: np.ndarray
    popularity_ranks: np.ndarray
    lengths: np.ndarray
    """Interactions before the held-out one."""
    top: np.ndarray
    """The COVERAGE_K best items of each user."""


def validation_sums(
    model: SequenceModel, data: PreparedData, config: RunConfig, tables: Iterable[pa.Table]
) -> RankSums:
    """The validation ranks of every user in these row groups, as sums to be added to those of others."""
    device = model.item_vectors().device
    batches = held_out(tables, data.manifest.split, config, split="validation")
    ranks = [_ranks(model, batch.to(device), config)[0] for batch in batches]
    return RankSums.of(torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.long), config.evaluate.ks)


def rank_tables(
    model: SequenceModel, data: PreparedData, config: RunConfig, tables: Iterable[pa.Table], split: str
) -> Iterator[Ranked]:
    """Rank the held-out item of every user in these row groups, by the model and by popularity."""
    device = model.item_vectors().device
    popularity = torch.from_numpy(data.train_counts()).to(torch.float32)[:, None].to(device)
    for batch in held_out(tables, data.manifest.split, config, split=split):
        batch = batch.to(device)
        ranks, states = _ranks(model, batch, config)
        flat = torch.ones(len(batch.users), 1, device=device)
        by_popularity = rank_of_target(
            flat, popularity, batch.targets, seen=batch.seen, items_per_chunk=config.evaluate.items_per_chunk
        )
        top, _ = top_items(
            states,
            model.item_vectors(),
            min(COVERAGE_K, data.manifest.num_items),
            bias=model.item_bias(),
            seen=batch.seen,
            items_per_chunk=config.evaluate.items_per_chunk,
        )
        yield Ranked(batch.users, ranks.cpu().numpy(), by_popularity.cpu().numpy(), batch.lengths, top.cpu().numpy())


@torch.inference_mode()
def _ranks(model: SequenceModel, batch: HeldOut, config: RunConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks of the targets, and the states they were ranked by."""
    states = model.read(batch.history)
    ranks = rank_of_target(
        states,
        model.item_vectors(),
        batch.targets,
        bias=model.item_bias(),
        seen=batch.seen,
        items_per_chunk=config.evaluate.items_per_chunk,
    )
    return ranks, states


def units_of(data: PreparedData, config: RunConfig) -> list[list[int]]:
    """The numbers of all row groups, in the pieces in which they are ranked."""
    num_groups = len(data.row_groups())
    pieces = np.array_split(np.arange(num_groups), min(num_groups, UNITS_PER_WORKER * config.scale.max_workers))
    return [piece.tolist() for piece in pieces]


class Ranker:
    """What ranks row groups in an actor: `ranker([0, 1])` ranks both splits of the first two, read once.

    Args:
        run: Directory of the run whose model ranks.
        prepared: Folder of its data.
        config_json: How to rank.
        device: Where the model computes.
    """

    def __init__(self, run: str, prepared: str, config_json: str, device: torch.device) -> None:
        self._config = RunConfig.model_validate_json(config_json)
        self._model = RunDirectory.open(run).load_model().to(device)
        self._data = PreparedData.open(prepared)
        self._groups = self._data.row_groups()

    def __call__(self, numbers: Sequence[int]) -> dict[str, Ranked]:
        """Ranks of the users of these row groups, in order, for each split."""
        parts: dict[str, list[Ranked]] = {split: [self._nobody()] for split in HELD_OUT}
        for table in read_ahead([self._groups[number] for number in numbers]):
            for split, found in parts.items():
                found.extend(rank_tables(self._model, self._data, self._config, [table], split))
        return {split: _joined(found) for split, found in parts.items()}

    def _nobody(self) -> Ranked:
        """What row groups give in which nobody has an item to rank."""
        none = np.empty(0, np.int64)
        return Ranked(none, none, none, none, np.empty((0, min(COVERAGE_K, self._data.manifest.num_items)), np.int64))


def _joined(parts: Sequence[Ranked]) -> Ranked:
    return Ranked(*(np.concatenate([getattr(part, name) for part in parts]) for name in Ranked.__annotations__))


class ValidationRanker:
    """The same for the weights of an epoch, for validation: `ranker([0, 1])` gives a RankSums as a vector.

    Args:
        weights: A reference to them, in Ray's object store.
        prepared: Folder of the data.
        config_json: How to rank.
        device: Where the model computes.
    """

    def __init__(self, weights: Any, prepared: str, config_json: str, device: torch.device) -> None:
        import ray

        self._config = RunConfig.model_validate_json(config_json)
        self._data = PreparedData.open(prepared)
        manifest = self._data.manifest
        self._model = build_model(self._config.model, manifest.num_items, manifest.num_users).to(device).eval()
        self._model.load_state_dict(ray.get(weights))

    def __call__(self, numbers: Sequence[int]) -> torch.Tensor:
        """The sums over their validation users, as a vector."""
        groups = self._data.row_groups()
        tables = read_ahead([groups[number] for number in numbers])
        return validation_sums(self._model, self._data, self._config, tables).to_vector()
