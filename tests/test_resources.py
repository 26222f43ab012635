"""Too few resources, and a Ray that does not start: one line each, and no waiting for ever."""

import os
import signal
import socket
import threading

import pytest

from raysrec.cluster import nodes, resources
from raysrec.cluster.autoscaler import to_come
from raysrec.cluster.bundles import need_to_rank, need_to_train
from raysrec.cluster.nodes import check_nodes, wait_for_data_nodes
from raysrec.cluster.placement import TASK_BYTES, ToCome, room_in_words
from raysrec.cluster.resources import machines, wait_for_room
from raysrec.cluster.runtime import ClusterError, ray_session
from raysrec.cluster.versions import versions_here
from raysrec.config import DataConfig, EvaluateConfig, ScaleConfig
from raysrec.config.run import RunConfig
from raysrec.place import Place
from raysrec.stopping import STOPPED, ends_when_terminated


@pytest.mark.ray
@pytest.mark.slow
def test_room_is_waited_for_in_a_cluster_and_never_in_a_ray_that_starts_here(monkeypatch, tmp_path, capfd):
    said = []
    with ends_when_terminated(), ray_session(ScaleConfig(), cpus=2):
        import ray

        wait_for_room(need_to_train(ScaleConfig(workers=1)), say=said.append)
        with pytest.raises(
            ClusterError,
            match=r"Ray here has 2 CPUs \(2 free\) and .*, but 4 workers and reading need 4\.5 CPUs; lower",
        ):
            wait_for_room(need_to_train(ScaleConfig(workers=4)), say=said.append)
        assert said == []

        monkeypatch.setenv("RAY_ADDRESS", "auto")
        found = machines()
        assert [machine["CPU"] for machine in found] == [2]
        # Ray's own monitor runs here, and was given nothing that it may start.
        assert to_come() == ToCome({}, 0)
        assert (
            room_in_words(ScaleConfig(), found, to_come(), use_gpu=False)
            == "1 machine with 2 CPUs: enough for 1 worker, once it is free"
        )
        assert "NEVER enough for 4 workers" in room_in_words(ScaleConfig(workers=4), found, to_come(), use_gpu=False)
        with monkeypatch.context() as other:
            other.setattr(resources, "to_come", lambda: ToCome({"small": (9, {"CPU": 3.0})}, 9))
            with pytest.raises(ClusterError, match=r"and up to 9 small to come: NEVER enough .*; lower scale\.workers"):
                wait_for_room(need_to_train(ScaleConfig(cpus_per_worker=4)))
        check_nodes([Place.of(tmp_path)], say=said.append)
        with monkeypatch.context() as other:
            other.setattr(nodes, "versions_here", lambda: versions_here() | {"torch": "1.0"})
            with pytest.raises(ClusterError, match=r"^other versions on \S+: torch [\d.]+ \(here 1\.0\); "):
                check_nodes([], say=said.append)

        wait_for_room(need_to_train(ScaleConfig(workers=1)), say=said.append)
        assert said == []
        monkeypatch.setattr(resources, "SAY_EVERY_S", 1)
        with pytest.raises(ClusterError) as error:
            wait_for_room(need_to_train(ScaleConfig(workers=4, wait_s=2.5)), say=said.append)
        assert str(error.value) == (
            "the cluster has 2 CPUs (2 free) and 0 GPUs (0 free), but 4 workers and reading need 4.5 CPUs; that has "
            "not changed within scale.wait_s=2.5 seconds: add nodes, lower scale.workers, or wait longer"
        )
        assert 1 <= len(said) <= 3
        assert "but 4 workers and reading need 4.5 CPUs; waiting up to " in said[0]
        with pytest.raises(
            ClusterError,
            match=r"1 worker and reading need 1\.5 CPUs and 1 GPU; .* lower scale\.workers or set scale\.device=cpu",
        ):
            wait_for_room(need_to_train(ScaleConfig(workers=1, device="cuda", wait_s=0)), say=said.append)
        ranks = RunConfig(
            data=DataConfig(source="synthetic"),
            model={"name": "recgrela"},
            scale=ScaleConfig(workers=4, device="cpu", wait_s=0),
            evaluate=EvaluateConfig(device="cuda"),
        )
        with pytest.raises(
            ClusterError,
            match=r"but ranking and reading need 1\.5 CPUs and 1 GPU; .*: add nodes, set evaluate\.device=cpu, or wait",
        ):
            wait_for_room(need_to_rank(ranks), say=said.append)

        with pytest.raises(
            ClusterError, match=r"\(0 free\), but 1 worker and reading need 1\.5 CPUs and 2 own and 0\.001 big; that"
        ):
            wait_for_room(
                need_to_train(ScaleConfig(resources_per_worker={"own": 2}, data_resources={"big": 0.001}, wait_s=0)),
                say=said.append,
            )

        options = wait_for_data_nodes([Place.of(tmp_path)], ScaleConfig(workers=8, device="cuda", data_cpus=9))
        assert options == {"num_cpus": 1, "resources": {}, "memory": TASK_BYTES}
        with pytest.raises(
            ClusterError, match=r"but preparing and reading need 1\.5 CPUs and 0\.002 big; that has not"
        ):
            wait_for_data_nodes([], ScaleConfig(data_resources={"big": 0.001}, wait_s=0))

        # Ray has a handler of its own, with another status.
        threading.Timer(1, os.kill, [os.getpid(), signal.SIGTERM]).start()
        with pytest.raises(SystemExit) as ended:
            wait_for_room(need_to_train(ScaleConfig(workers=4, wait_s=60)), say=said.append)
        assert ended.value.code == STOPPED
        assert "stopped by SIGTERM; the same command goes on" in capfd.readouterr().err

        # Another job holds a CPU for a while.
        said.clear()
        holder = ray.remote(num_cpus=1)(type("Holder", (), {"ping": lambda self: 1})).remote()
        assert ray.get(holder.ping.remote()) == 1
        ends = threading.Timer(3, ray.kill, [holder])
        ends.start()
        wait_for_room(need_to_train(ScaleConfig(workers=1, wait_s=60)), say=said.append)
        assert "the cluster has 2 CPUs (1 free)" in said[0]
        ends.join()
        wait_for_room(need_to_train(ScaleConfig(workers=1, wait_s=60)), say=said.append)  # what was held is given back


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        (
            "/tmp/" + 60 * "a",
            r"Ray cannot start here: /tmp/a+ is too long a path for sockets; set RAY_TMPDIR to a folder",
        ),
        ("/dev/null/a", r"Ray cannot start here: it cannot write to /dev/null/a; set RAY_TMPDIR to a folder of yours"),
    ],
)
def test_a_folder_in_which_ray_cannot_work_is_named(monkeypatch, folder, expected):
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(ClusterError, match=expected) as error, ray_session(ScaleConfig()):
        pass
    assert "\n" not in str(error.value)


def test_a_port_that_is_taken_is_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        monkeypatch.setenv("RAY_GCS_SERVER_PORT", str(port))
        with (
            pytest.raises(ClusterError, match=f"^RAY_GCS_SERVER_PORT={port}: Ray cannot listen there .*; unset it"),
            ray_session(ScaleConfig()),
        ):
            pass


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with (
        pytest.raises(ClusterError, match=r"RAY_ADDRESS=127\.0\.0\.1:1: nobody answers there"),
        ray_session(ScaleConfig()),
    ):
        pass


def test_a_start_that_fails_in_another_way_says_so_in_one_line(monkeypatch):
    import ray

    def fail(**_):
        raise ValueError("The configured object store size (0.5 GB) exceeds\n/dev/shm size (0.06 GB).")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(
            ClusterError, match=r"^Ray cannot start here: its shared memory is too small; .* \(The configured"
        ),
        ray_session(ScaleConfig()),
    ):
        pass


def test_workers_must_not_fill_the_machines_that_read(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ClusterError, match=r"^scale\.data_resources=\{'data': 0\.001\}: workers without GPUs may fill"):
        wait_for_room(need_to_train(ScaleConfig(device="cpu", data_resources={"data": 0.001})))
