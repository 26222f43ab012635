"""How many workers Ray Train starts, and when, where nodes come and go: our hooks into its two policies.

Where the number may change, Ray Train by itself fills machines with workers to the last CPU, and they wait for ever for
data that nobody has room to read; it stops a training for CPUs that somebody else holds; and it throws away what was
learned since the last checkpoint whenever a node comes. Here reading has its room, only what is free is grown into, and
workers save before their number changes.
"""

import time
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
)

from raysrec.cluster.bundles import data_bundles, worker_bundle
from raysrec.cluster.placement import lacking, most_workers
from raysrec.cluster.resources import SAY_EVERY_S, free_machines, give_back, machines
from raysrec.cluster.runtime import in_cluster
from raysrec.config import ScaleConfig
from raysrec.mailbox import now
from raysrec.training.leaving import regroup

READING_ASKED_FOR_S = 180.0
"""Seconds for which an autoscaler is asked for room to read; asked for again while it is needed."""


class Trainer(TorchTrainer):
    """Ray's trainer with our policies.

    Args:
        scale: The workers.
        mailbox: Name of the actor that is told while there is no room for them.
        use_gpu: Do they get GPUs?
        room: What is kept for them until they are asked for.
        **arguments: Those of Ray's trainer.
    """

    def __init__(
        self, *args: Any, scale: ScaleConfig, mailbox: str, use_gpu: bool, room: Any = None, **arguments: Any
    ) -> None:
        super().__init__(*args, **arguments)
        self._lookout = _Lookout(scale, mailbox, use_gpu=use_gpu, room=room)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if in_cluster():
            return callbacks
        # It frees the workers' room should the controller die, which here ends with everything else, and it asks a
        # dashboard that is not there: every training would end by waiting for it, 12 s. (A sweep outlives a trial whose
        # controller was killed, and its trials count as in a cluster: without it the next one waits for ever.)
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = _Elastic if self.scaling_config.elasticity_enabled else _Fixed
        return super()._initialize_and_run_controller(
            **arguments | {"scaling_policy": policy(self.scaling_config, self._lookout)}
        )


class _Lookout:
    """Sees what the machines of the cluster have, and says now and then what they lack; lives in Ray's controller."""

    def __init__(self, scale: ScaleConfig, mailbox: str, *, use_gpu: bool, room: Any = None) -> None:
        self.room = room
        self.worker = worker_bundle(scale, use_gpu=use_gpu)
        self.reading = data_bundles(scale)
        self._scale, self._mailbox, self._use_gpu = scale, mailbox, use_gpu
        self._said = time.monotonic()

    def say_what_is_missing(self) -> None:
        if time.monotonic() < self._said + SAY_EVERY_S:
            return
        self._said = time.monotonic()
        if missing := lacking(self._scale, machines(), use_gpu=self._use_gpu):
            self.say(f"{missing}; waiting")

    def say(self, text: str) -> None:
        """A line for people."""
        mailbox: Any = ray.get_actor(self._mailbox)
        mailbox.put.remote({"kind": "note", "at": now(), "text": text})

    def room_in_all(self, at_most: int) -> int:
        """Workers for which there is room beside reading, on machines that do nothing else."""
        return most_workers(self.worker, self.reading, machines(), at_most=at_most)

    def room_that_is_free(self, at_most: int) -> int:
        """Workers for which there is room beside whatever is done now."""
        return most_workers(self.worker, [], free_machines(), at_most=at_most)


class _Fixed(FixedScalingPolicy):
    def __init__(self, scaling_config: Any, lookout: _Lookout) -> None:
        super().__init__(scaling_config)
        self._lookout = lookout

    def after_controller_start(self, train_run_context: Any) -> None:
        super().after_controller_start(train_run_context)
        # From here on Ray Train's request keeps the nodes.
        give_back(self._lookout.room)

    def make_decision_for_non_running_worker_group(self) -> Any:
        self._lookout.say_what_is_missing()
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        # The machine may have gone on which data was read.
        self._lookout.say_what_is_missing()
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)


class _Elastic(ElasticScalingPolicy):
    def __init__(self, scaling_config: Any, lookout: _Lookout) -> None:
        super().__init__(scaling_config)
        self._lookout = lookout
        self._starts = 0
        """How often workers were to be started since they last trained; more than once where the room was not free."""
        self._looked_at = 0
        """How often the machines were counted."""
        self._starving = False
        """Had reading no room beside the workers when that was last looked at?"""

    def after_controller_start(self, train_run_context: Any) -> None:
        super().after_controller_start(train_run_context)
        # From here on Ray Train's request keeps the nodes.
        give_back(self._lookout.room)

    def make_decision_for_non_running_worker_group(self) -> Any:
        self._lookout.say_what_is_missing()
        decision = super().make_decision_for_non_running_worker_group()
        if not isinstance(decision, ResizeDecision):
            return decision
        self._starts += 1
        if self._starts == 1:
            # The workers before still hold what Ray Train takes from them now.
            return decision
        free = self._lookout.room_that_is_free(decision.num_workers)
        return self._get_resize_decision(max(free, self.scaling_config.min_workers))

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """To be more, workers are asked to leave with all saved; only those that cannot go on are made to be fewer."""
        self._starts = 0
        self._lookout.say_what_is_missing()
        looked_at = self._looked_at
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if self._looked_at == looked_at:  # Ray Train looks now and then
            return decision
        workers = worker_group_state.num_workers
        # Seen: a node is lost and still counted when its workers are started again; on what is left they take the room
        # of reading, and wait for data for ever.
        starved, self._starving = self._starving, self._lookout.room_in_all(workers) < workers
        if starved and self._starving and isinstance(decision, ResizeDecision):
            self._lookout.say(f"no room to read beside {workers} workers; training goes on with {decision.num_workers}")
            return decision
        more = decision.num_workers - workers if isinstance(decision, ResizeDecision) else 0
        if more > 0 and self._lookout.room_that_is_free(more):
            for worker in worker_group_state.workers:
                worker.execute_async(regroup)
        return NoopDecision()

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        self._looked_at += 1
        possible = super()._count_possible_workers(reserved_resources)
        count = self._lookout.room_in_all(possible)
        if count < possible:
            # Ray Train asks for machines for workers alone, and thinks that there are enough.
            self._autoscaling_coordinator.request_resources.remote(
                requester_id=self._reading_id, resources=self._lookout.reading, expire_after_s=READING_ASKED_FOR_S
            )
        return count

    def _cancel_resource_request(self) -> None:
        super()._cancel_resource_request()
        if self._coordinator_client is not None:
            self._autoscaling_coordinator.cancel_request.remote(requester_id=self._reading_id)

    @property
    def _reading_id(self) -> str:
        return f"{self._requester_id}-reading"
