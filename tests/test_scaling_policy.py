"""How many workers are started, and when: decisions over machines that are written down here, without a Ray."""

from types import SimpleNamespace

import pytest

from raysrec.config import ScaleConfig
from raysrec.training import scaling_policy
from raysrec.training.leaving import regroup

SCALE = ScaleConfig.model_validate({"workers": {"min": 1, "max": 3}})


class Told:
    """Stands for an actor: remembers what it is told."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *args, **kwargs: self.calls.append((name, *args, kwargs)))


class Group:
    """Stands for a group of workers: remembers what they are asked to do."""

    def __init__(self, count):
        self.start_time, self.num_workers, self.asked = 0.0, count, []
        self.workers = [SimpleNamespace(execute_async=self.asked.append) for _ in range(count)]


@pytest.fixture
def cluster(monkeypatch):
    """What machines there are, what is free on them, and who was told what."""
    found = SimpleNamespace(there=[], free=[], coordinator=Told(), mailbox=Told())
    monkeypatch.setattr(scaling_policy, "machines", lambda: found.there)
    monkeypatch.setattr(scaling_policy, "free_machines", lambda: found.free)
    monkeypatch.setattr(scaling_policy.ray, "get_actor", lambda name: found.mailbox)
    return found


@pytest.fixture
def policy(cluster, monkeypatch):
    """The policy of a training of one to three workers, asked for room by Ray's own count: all CPUs there are."""
    from ray.train import ScalingConfig

    config = ScalingConfig(num_workers=(1, 3), resources_per_worker={"CPU": 1.0}, elastic_resize_monitor_interval_s=0.0)
    made = scaling_policy._Elastic(config, scaling_policy._Lookout(SCALE, "mailbox", use_gpu=False))
    made._requester_id = "train-1"
    made._coordinator_client = SimpleNamespace(
        _autoscaling_coordinator=cluster.coordinator,
        maybe_send_resource_request=lambda *_: None,
        cancel_resource_request=lambda: None,
    )
    monkeypatch.setattr(made, "_get_reserved_resources", lambda: dict(enumerate(cluster.there)))
    return made


def test_the_last_cpu_is_left_to_reading_and_a_machine_is_asked_for(policy, cluster):
    cluster.there = cluster.free = [{"CPU": 2.0}, {"CPU": 1.0}]
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    ((name, request),) = cluster.coordinator.calls
    assert (name, request["requester_id"]) == ("request_resources", "train-1-reading")
    assert request["resources"] == [{"CPU": 0.5}]
    policy._cancel_resource_request()
    assert cluster.coordinator.calls[1:] == [("cancel_request", {"requester_id": "train-1-reading"})]


def test_with_room_for_both_nothing_more_is_asked_for(policy, cluster):
    cluster.there = cluster.free = [{"CPU": 2.0}, {"CPU": 2.0}]
    assert policy.make_decision_for_non_running_worker_group().num_workers == 3
    assert cluster.coordinator.calls == []


def test_workers_are_asked_to_regroup_when_a_machine_has_come(policy, cluster):
    group = Group(2)
    cluster.there, cluster.free = [{"CPU": 2.0}, {"CPU": 2.0}], [{"CPU": 0.0}, {"CPU": 2.0}]
    decision = policy.make_decision_for_running_worker_group(group, None)
    assert isinstance(decision, scaling_policy.NoopDecision)
    assert group.asked == [regroup, regroup]


def test_room_that_somebody_else_holds_interrupts_nobody(policy, cluster):
    group = Group(2)
    cluster.there, cluster.free = [{"CPU": 2.0}, {"CPU": 2.0}], [{"CPU": 0.0}, {"CPU": 0.5}]
    policy.make_decision_for_running_worker_group(group, None)
    assert group.asked == []


def test_nobody_who_trains_is_asked_to_be_fewer_because_others_want_the_room(policy, cluster, monkeypatch):
    group = Group(3)
    cluster.there, cluster.free = [{"CPU": 4.0}], [{"CPU": 0.0}]
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: {0: {"CPU": 2.0}})
    for _ in range(3):
        assert isinstance(policy.make_decision_for_running_worker_group(group, None), scaling_policy.NoopDecision)
    assert group.asked == []


def test_workers_that_hold_the_room_of_reading_are_made_to_be_fewer(policy, cluster):
    group = Group(3)
    cluster.there, cluster.free = [{"CPU": 3.0}], [{"CPU": 0.0}]
    # A machine may only just have come or gone; it is looked at twice.
    assert isinstance(policy.make_decision_for_running_worker_group(group, None), scaling_policy.NoopDecision)
    assert policy.make_decision_for_running_worker_group(group, None).num_workers == 2
    ((name, event, _),) = cluster.mailbox.calls
    assert (name, event["text"]) == ("put", "no room to read beside 3 workers; training goes on with 2")
    assert group.asked == []


def test_a_machine_that_comes_in_time_leaves_the_workers_as_they_are(policy, cluster):
    cluster.there, cluster.free = [{"CPU": 3.0}], [{"CPU": 0.0}]
    for machines in ([{"CPU": 3.0}], [{"CPU": 3.0}, {"CPU": 1.0}], [{"CPU": 3.0}]):
        cluster.there = machines
        decision = policy.make_decision_for_running_worker_group(Group(3), None)
        assert isinstance(decision, scaling_policy.NoopDecision)


def test_a_start_that_found_no_room_is_tried_with_what_is_free(policy, cluster):
    cluster.there, cluster.free = [{"CPU": 4.0}], [{"CPU": 2.0}]
    decide = policy.make_decision_for_non_running_worker_group
    assert [decide().num_workers for _ in range(2)] == [3, 2]
    cluster.free = [{"CPU": 0.0}]
    assert decide().num_workers == 1
    # They trained meanwhile.
    policy.make_decision_for_running_worker_group(Group(3), None)
    assert decide().num_workers == 3


def test_who_waits_for_machines_is_told(policy, cluster, monkeypatch):
    cluster.there = [{"CPU": 1.0}]
    policy.make_decision_for_non_running_worker_group()
    assert cluster.mailbox.calls == []
    monkeypatch.setattr(scaling_policy, "SAY_EVERY_S", 0)
    policy.make_decision_for_non_running_worker_group()
    ((name, event, _),) = cluster.mailbox.calls
    assert (name, event["kind"]) == ("put", "note")
    assert event["text"] == "no room for 1 worker and reading on 1 machine with 1 CPU; waiting"
