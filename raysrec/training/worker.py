"""What every training worker is to Ray Train: it opens the data, trains, and says when a restart would not help."""

from functools import partial
from typing import Any

import torch

from raysrec.allocator import tune_allocator
from raysrec.checkpoints import Checkpoints
from raysrec.cluster.nodes import refuse_other_versions
from raysrec.cluster.runtime import threads_per_worker
from raysrec.config.run import RunConfig
from raysrec.data.batching.facts import targets_per_epoch
from raysrec.data.batching.ray_reading import read_with_ray
from raysrec.data.prepared import PreparedData
from raysrec.errors import LastingError, readable
from raysrec.training.leaving import watch_for_preemption
from raysrec.training.loop import Training
from raysrec.training.validation import ranked_beside
from raysrec.training.worker_log import WorkerLog


def train_worker(arguments: dict[str, Any]) -> None:
    """What every worker does, from the first epoch or the last checkpoint to the end.

    Args:
        arguments: `config` (a RunConfig as JSON), `prepared` and `checkpoints` (places, of the data and to save in),
            `mailbox` (name of an actor), `owner` (by which this start of the training is known) and `versions` (that
            the driver has).
    """
    import ray.train.torch

    config = RunConfig.model_validate_json(arguments["config"])
    context = ray.train.get_context()
    worker, num_workers = context.get_world_rank(), context.get_world_size()
    tune_allocator()
    torch.set_num_threads(threads_per_worker(config.scale, workers_here=context.get_local_world_size()))
    torch.set_flush_denormal(True)  # states that have decayed to almost nothing would cost a hundred times as much
    log = WorkerLog(arguments["mailbox"], worker, config)
    if log.gave_up():
        return
    watch_for_preemption()
    try:
        refuse_other_versions(arguments["versions"])
        data = PreparedData.open(arguments["prepared"])
        Training(
            config,
            data,
            Checkpoints(arguments["checkpoints"]),
            log,
            partial(read_with_ray, scale=config.scale),
            num_targets=targets_per_epoch(data, config),
            device=ray.train.torch.get_device(),
            worker=worker,
            num_workers=num_workers,
            owner=arguments["owner"],
            beside=ranked_beside(data, config, log.note) if config.evaluate.concurrent else None,
        ).run()
    except Exception as error:
        said = readable(error)
        if isinstance(said, LastingError):
            log.give_up(str(said))
        raise
