"""Validation scores of an epoch's weights: ranked by the workers themselves, or beside them while they learn on.

Ranks that are made beside a training are looked at after the next epoch, however early they came: what a training does
depends on no machine's speed, and it chooses the weights that it would choose if it waited.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial

import torch
import torch.distributed as dist

from raysrec.config.run import RunConfig
from raysrec.data.batching.order import share_of_worker
from raysrec.data.batching.reading import Reader
from raysrec.data.prepared import PreparedData
from raysrec.engine import Weights, everyones
from raysrec.metrics import RankSums
from raysrec.model_actors import done_by_actors
from raysrec.models import SequenceModel
from raysrec.ranker import ValidationRanker, units_of, validation_sums

Beside = Callable[[Weights], "Future[RankSums]"]
"""Begins to rank all validation users by these weights somewhere else, and returns when it needs them no more."""

LOOK_EVERY_S = 5.0
"""Seconds after which workers that wait for ranks tell each other that they do, so that none seems stalled."""


class Validation:
    """One worker's part of it; every worker has one, and they are called together.

    Args:
        model: What is ranked with; not the model that learns.
        data: Whose validation users are ranked.
        config: The run.
        read: Reads row groups.
        worker: This worker's number.
        num_workers: How many there are.
        beside: Ranks in the workers' place, if somebody does; called on the first worker.
    """

    def __init__(
        self,
        model: SequenceModel,
        data: PreparedData,
        config: RunConfig,
        read: Reader,
        *,
        worker: int,
        num_workers: int,
        beside: Beside | None,
    ) -> None:
        self._model, self._data, self._config, self._read = model, data, config, read
        self._worker, self._num_workers = worker, num_workers
        self._beside = beside
        self._ranking: Future[RankSums] | None = None

    @property
    def is_beside(self) -> bool:
        """Is there something to learn while it goes on?"""
        return self._beside is not None

    def begin(self, weights: Weights) -> None:
        """From now on these are the weights that are asked about."""
        self._model.load_state_dict(weights)
        if self._beside and self._worker == 0:
            self._ranking = self._beside(weights)

    def scores(self) -> dict[str, float]:
        """The scores of these weights over all users; waits for them."""
        vector = (self._awaited() if self._beside else self._of_own_share()).to_vector()
        if self._num_workers > 1:
            dist.all_reduce(vector)
        sums = RankSums.from_vector(vector, self._config.evaluate.ks)
        if sums.count != (expected := self._data.manifest.num_ranked("validation")):
            raise RuntimeError(f"validation ranked {sums.count} users, but the data has {expected} to rank")
        return sums.means()

    def _of_own_share(self) -> RankSums:
        groups = self._data.row_groups()
        share = share_of_worker(len(groups), worker=self._worker, num_workers=self._num_workers)
        return validation_sums(self._model, self._data, self._config, self._read([groups[index] for index in share]))

    def _awaited(self) -> RankSums:
        """All users' ranks on the first worker; none on the others, which wait with it."""
        while not everyones(self._ranking is None or bool(wait([self._ranking], LOOK_EVERY_S).done))[0]:
            continue
        return self._ranking.result() if self._ranking else RankSums.of(_NO_RANKS, self._config.evaluate.ks)


_NO_RANKS = torch.empty(0, dtype=torch.long)


def ranked_beside(data: PreparedData, config: RunConfig, say: Callable[[str], None]) -> Beside:
    """Rank in actors on machines for data, which training does not use; for a worker of Ray Train.

    Args:
        data: Whose validation users are ranked.
        config: The run.
        say: Is told when an actor has died.
    """
    work = units_of(data, config)
    scale = config.scale.model_copy(update={"device": "cpu"})

    def begin(weights: Weights) -> "Future[RankSums]":
        import ray

        make = partial(ValidationRanker, ray.put(weights), str(data.directory.absolute()), config.model_dump_json())
        ranking: Future[RankSums] = Future()

        def fill() -> None:
            try:
                vectors = list(done_by_actors(make, work, scale, say=say))
                ranking.set_result(RankSums.from_vector(torch.stack(vectors).sum(0), config.evaluate.ks))
            except BaseException as error:
                ranking.set_exception(error)

        # A thread that keeps no process from ending: what it does is begun again by who goes on.
        threading.Thread(target=fill, daemon=True, name="raysrec-validation").start()
        return ranking

    return begin
