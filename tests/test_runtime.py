import os
import sys
from types import SimpleNamespace

import pytest

from raysrec.cluster import runtime
from raysrec.cluster.runtime import (
    LOCAL_SETTINGS,
    SETTINGS,
    SPARE_CPUS,
    apply_settings,
    in_cluster,
    ray_session,
    threads_per_worker,
    wants_gpu,
)
from raysrec.config import ScaleConfig


@pytest.fixture
def environment(monkeypatch):
    """An empty environment in place of this process's."""
    empty = {}
    monkeypatch.setattr(os, "environ", empty)
    return empty


def settings(environment):
    """All but what pytest writes into it."""
    return {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}


@pytest.fixture
def ray(monkeypatch):
    """A stand-in for Ray that writes down how it is started and stopped; no Ray runs in these tests."""
    calls = []
    stand_in = SimpleNamespace(
        calls=calls,
        is_initialized=lambda: False,
        init=lambda **arguments: calls.append(arguments),
        shutdown=lambda: calls.append("shutdown"),
        cluster_resources=lambda: {"CPU": 8.0, "GPU": 2.0},
    )
    for name in ("ray", "ray.data", "ray.train"):
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setattr(runtime, "_is_imported", lambda module: False)
    return stand_in


def test_settings_go_into_an_empty_environment(environment):
    apply_settings()
    assert settings(environment) == SETTINGS
    apply_settings()
    assert settings(environment) == SETTINGS


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_what_the_environment_sets_already_wins(environment, name):
    environment[name] = "mine"
    apply_settings()
    assert settings(environment) == {**SETTINGS, name: "mine"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, False), ({"RAY_ADDRESS": ""}, False), ({"RAY_ADDRESS": "auto"}, True), ({"RAY_JOB_ID": "01"}, True)],
)
def test_a_submitted_job_is_in_a_cluster(environment, variables, expected):
    environment.update(variables)
    assert in_cluster() == expected


def test_a_local_ray_has_room_for_the_workers_and_ends_with_the_block(environment, ray):
    with ray_session(ScaleConfig(workers=3)):
        (started,) = ray.calls
    assert started["num_cpus"] == 3 + SPARE_CPUS
    assert started["include_dashboard"] is False
    # Its processes have the settings from this one.
    assert started["runtime_env"] == {}
    assert SETTINGS.items() | LOCAL_SETTINGS.items() <= environment.items()
    assert ray.calls[1:] == ["shutdown"]


def test_a_ray_that_was_imported_before_keeps_its_authentication(environment, ray, monkeypatch):
    monkeypatch.setattr(runtime, "_is_imported", lambda module: module in sys.modules)
    with ray_session(ScaleConfig()):
        assert not LOCAL_SETTINGS.keys() & environment.keys()


def test_a_submitted_job_connects_and_sets_nothing_that_is_for_a_local_ray(environment, ray):
    environment["RAY_ADDRESS"] = "10.0.0.1:6379"
    with ray_session(ScaleConfig(workers=3)):
        (started,) = ray.calls
    assert started["address"] == "auto"
    assert not {"num_cpus", "object_store_memory", "_temp_dir"} & started.keys()
    assert not LOCAL_SETTINGS.keys() & environment.keys()


def test_workers_of_a_cluster_see_what_the_environment_says(environment, ray):
    environment["RAY_ADDRESS"] = "10.0.0.1:6379"
    environment["RAY_USAGE_STATS_ENABLED"] = "1"
    with ray_session(ScaleConfig()):
        assert ray.calls[0]["runtime_env"]["env_vars"]["RAY_USAGE_STATS_ENABLED"] == "1"


def test_ray_ends_also_when_the_block_fails(environment, ray):
    with pytest.raises(RuntimeError, match="inside"), ray_session(ScaleConfig()):
        raise RuntimeError("inside")
    assert ray.calls[-1] == "shutdown"


def test_a_ray_that_runs_already_is_used_and_left_alone(environment, ray):
    ray.is_initialized = lambda: True
    with ray_session(ScaleConfig()):
        pass
    assert ray.calls == []


@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [("auto", 1, True), ("auto", 2, True), ("auto", 3, False), ("cpu", 1, False), ("cuda", 2, True)],
)
def test_gpus_are_taken_if_there_is_one_for_each_worker(ray, device, workers, expected):
    assert wants_gpu(ScaleConfig(device=device, workers=workers)) == expected


def test_too_few_gpus_are_refused(ray):
    with pytest.raises(
        ValueError, match=r"scale\.device=cuda needs 3 GPUs, one for each worker, but Ray here has 2; lo"
    ):
        wants_gpu(ScaleConfig(device="cuda", workers=3))


def test_in_a_cluster_gpus_may_be_yet_to_come(ray, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert wants_gpu(ScaleConfig(device="cuda", workers=3))
    assert not wants_gpu(ScaleConfig(device="auto", workers=3))


@pytest.mark.parametrize(
    ("workers", "cores", "threads"), [(1, 8, 8), (2, 8, 4), (3, 8, 2), (8, 8, 1), (4, 2, 1), (1, 1, 1)]
)
def test_cores_are_divided_among_workers_and_each_gets_one_thread_at_least(workers, cores, threads):
    assert threads_per_worker(ScaleConfig(workers=workers), cores=cores) == threads


def test_threads_that_are_asked_for_are_given():
    assert threads_per_worker(ScaleConfig(workers=4, threads_per_worker=3), cores=2) == 3


def test_this_machines_cores_are_the_default(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    assert threads_per_worker(ScaleConfig(workers=2)) == 3


def test_workers_on_other_machines_take_no_cores():
    assert threads_per_worker(ScaleConfig(workers=8), workers_here=2, cores=8) == 4
