"""The settings that Ray, its libraries and the S3 clients need on every machine, and the start of Ray.

A user sets none of them. Each stands here once with what happens without it; a variable that is already set in the
environment wins.
"""

import importlib
import json
import logging
import math
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysrec.config import ScaleConfig
from raysrec.errors import LastingError, readable
from raysrec.stopping import handler_kept

SETTINGS: dict[str, str] = {
    # ray.data.read_parquet would start 32 actors at every execution to read footers: 8-12 s on two cores.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    # pyarrow and botocore would send trailing checksums, which older S3 servers refuse or store as content.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    # Ray Train's controller looks at its workers every 2 s, and a report with a checkpoint waits for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # No usage report is sent from a user's cluster.
    "RAY_USAGE_STATS_ENABLED": "0",
    # A progress bar per Ray Data execution would be drawn over ours, once an epoch.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # A task or worker that asked for no GPU must not see one.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}

LOCAL_SETTINGS: dict[str, str] = {
    # Ray's processes would listen on every address of this machine, and who reaches them can run code. With this they
    # do as on macOS: this machine is 127.0.0.1, and nobody else reaches it.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A cluster that lives and dies with this process and listens on localhost needs no token file.
    "RAY_AUTH_MODE": "disabled",
    # A process of Ray Train's would ask every five seconds whether this machine is about to be taken away.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

if sys.platform == "linux":
    # Workers would exchange gradients over the address that this machine's name stands for.
    LOCAL_SETTINGS["GLOO_SOCKET_IFNAME"] = "lo"

REACH_S = 10.0
"""Seconds in which a cluster's address must answer; Ray itself would try for minutes, and then say a page."""

SPARE_CPUS = 2
"""Logical CPUs of a local Ray beyond the workers': with none, Ray Data's reading tasks would wait for ever."""

OBJECT_STORE_BYTES = 512 * 1024**2
"""Shared memory of a local Ray; blocks in flight are a few megabytes each."""


class ClusterError(LastingError):
    """A Ray that does not start or cannot be reached, or a cluster that lacks what a run needs."""


def apply_settings() -> None:
    """Put the settings into this process's environment; call before the first import of Ray."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def in_cluster() -> bool:
    """Is there a Ray to connect to (a submitted job, or RAY_ADDRESS)?"""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))


def job_folder() -> Path | None:
    """The folder that Ray unpacked for this process, if it is a job that was submitted with `--working-dir`."""
    return Path.cwd() if "working_dir" in _job_environment() else None


def local_cpus(scale: ScaleConfig) -> int:
    """CPUs of a Ray which starts here for one training; as Ray counts them, whatever this machine has."""
    return scale.max_workers * scale.cpus_per_worker + max(SPARE_CPUS, math.ceil(scale.data_cpus))


@contextmanager
def ray_session(scale: ScaleConfig, *, cpus: int = 0) -> Iterator[None]:
    """A Ray to work in: the cluster this process was submitted to, or one that starts here and ends with the block.

    Args:
        scale: The workers that a Ray which starts here must have room for.
        cpus: CPUs of a Ray which starts here; 0 has as many as the workers need, and some to spare.

    Raises:
        ClusterError: Ray does not start, or the cluster cannot be reached.
        ReadableError: A task or worker met something that its user can fix: a store that fails, a damaged file.
    """
    apply_settings()
    local = not in_cluster()
    if local and not _is_imported("ray"):
        # Ray takes its address when it is imported; if that has happened, its authentication stays on.
        for name, value in LOCAL_SETTINGS.items():
            os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        with _failures_in_words():
            yield
        return
    for library in ("data", "train"):
        # After the import, which sets the level itself.
        importlib.import_module(f"ray.{library}")
        logging.getLogger(f"ray.{library}").setLevel(logging.ERROR)
    with _start_in_words(local=local), handler_kept():
        ray.init(
            **_start_arguments(scale, local=local, cpus=cpus),
            runtime_env=_environment_of_workers(local=local),
            logging_level=logging.ERROR,
            # Workers speak through `mailbox.py`; what else Ray's processes say is in its session folder.
            log_to_driver=False,
        )
    try:
        with _failures_in_words():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _failures_in_words() -> Iterator[None]:
    """Ray wraps what a task or worker raised, and cuts its text; a ReadableError says by itself all there is to say."""
    try:
        yield
    except Exception as error:
        said = readable(error)
        if said is None or said is error:
            raise
        raise said from error


@contextmanager
def _start_in_words(*, local: bool) -> Iterator[None]:
    """Turn what Ray says when it does not start, or is not reached, into one line with what to do."""
    if local:
        _refuse_taken(os.environ.get("RAY_GCS_SERVER_PORT", ""))
    else:
        _refuse_silent(os.environ.get("RAY_ADDRESS", ""))
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        if not local:
            raise ClusterError(
                f"cannot join the Ray cluster at RAY_ADDRESS={os.environ.get('RAY_ADDRESS', 'auto')}: {reason}; see "
                "that it runs and has the same versions of Ray and Python, or unset RAY_ADDRESS to start one here"
            ) from error
        for part, words in _START_FAILURES.items():
            if part in reason:
                raise ClusterError(
                    f"Ray cannot start here: {words.format(folder=_temp_folder())} ({reason})"
                ) from error
        if isinstance(error, OSError):
            words = f"it cannot write to {_temp_folder()}; set RAY_TMPDIR to a folder of yours with a short path"
            raise ClusterError(f"Ray cannot start here: {words} ({reason})") from error
        raise ClusterError(f"Ray cannot start here: {reason}; its logs are in {_temp_folder()}") from error


_START_FAILURES = {
    "AF_UNIX path length": "{folder} is too long a path for sockets; set RAY_TMPDIR to a folder such as /tmp/ray",
    "/dev/shm": "its shared memory is too small; enlarge /dev/shm (docker run --shm-size=1g)",  # noqa: S108 - no file
    "No space left": "the disk of {folder} is full; make room, or set RAY_TMPDIR to another one",
    "timed out during startup": "its processes took too long, as on a machine with too much to do; run this again",
    "Failed to start the grpc server": "a port is taken; run this again, and Ray takes others",
    "ddress already in use": "a port is taken; unset the RAY_… variables that name ports, or end who holds it",
}
"""Parts of what Ray says, and what they mean."""


def _refuse_silent(address: str) -> None:
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise ClusterError(
            f"RAY_ADDRESS={address}: nobody answers there ({error}); start the cluster, fix the address, or unset it "
            "to start a Ray here"
        ) from None


def _refuse_taken(port: str) -> None:
    """Ray would wait for 45 seconds, and then call it a bug of its own."""
    if not port.isdigit():
        return
    try:
        with socket.socket() as one:
            one.bind(("127.0.0.1", int(port)))
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"RAY_GCS_SERVER_PORT={port}: Ray cannot listen there ({error}); unset it, so that Ray takes a free port, "
            "or end who holds it"
        ) from None


def wants_gpu(scale: ScaleConfig) -> bool:
    """Does each worker get a GPU? Call inside `ray_session`.

    In a cluster nodes with GPUs may be yet to come, and `resources.py` waits for them.

    Raises:
        ClusterError: The configuration asks for GPUs that a Ray which started here does not have.
    """
    import ray

    if scale.device == "cuda" and in_cluster():
        return True
    gpus = ray.cluster_resources().get("GPU", 0)
    needed = scale.min_workers * scale.gpus_per_worker
    if scale.device == "cuda" and gpus < needed:
        raise ClusterError(
            f"scale.device=cuda needs {needed:g} GPUs, one for each worker, but Ray here has {gpus:g}; "
            "lower scale.workers or set scale.device=cpu"
        )
    return scale.device != "cpu" and gpus >= needed


def threads_per_worker(scale: ScaleConfig, *, workers_here: int | None = None, cores: int | None = None) -> int:
    """CPU threads of each worker's arithmetic; by default a machine's cores are divided among its workers.

    Args:
        scale: The setting.
        workers_here: Workers on this machine; all of them if not said.
        cores: Cores that this process may use; asked from the system if not said.
    """
    cores = cores or len(os.sched_getaffinity(0))
    return scale.threads_per_worker or max(1, cores // (workers_here or scale.max_workers))


def _is_imported(module: str) -> bool:
    return module in sys.modules


def _start_arguments(scale: ScaleConfig, *, local: bool, cpus: int) -> dict[str, Any]:
    if not local:
        return {"address": "auto"}
    return {
        "num_cpus": cpus or local_cpus(scale),
        # What a config asks of a cluster's machines is here, too: the same config runs on a laptop.
        "resources": dict.fromkeys([*scale.resources_per_worker, *scale.data_resources], 1_000),
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        # Unix sockets live below this folder and their paths may have 107 characters at most.
        "_temp_dir": _temp_folder(),
    }


def _environment_of_workers(*, local: bool) -> dict[str, Any]:
    """What Ray's tasks and workers are given: our settings, and in a cluster this very code.

    A Ray that starts here has the settings from this process, and keeps processes ready for work that asks for no
    environment of its own. What a submitted job was given goes to them by itself, and Ray refuses to be told any of it
    twice.
    """
    if local:
        return {}
    job = _job_environment()
    names = [name for name in [*SETTINGS, *LOCAL_SETTINGS] if name not in (job.get("env_vars") or {})]
    environment: dict[str, Any] = {"env_vars": {name: os.environ[name] for name in names if name in os.environ}}
    code, folder = Path(__file__).resolve().parents[1], job_folder()
    travels = "py_modules" in job or (folder is not None and code.is_relative_to(folder.resolve()))
    if travels:
        return environment
    # Machines may have another raysrec installed, or none.
    return environment | {"py_modules": [str(code)], "excludes": ["__pycache__"]}


def _job_environment() -> dict[str, Any]:
    """What this process was submitted with as a job (`ray job submit --runtime-env …`); nothing if it is none."""
    return dict(json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {})


def _temp_folder() -> str:
    return os.environ.get("RAY_TMPDIR") or os.path.join(tempfile.gettempdir(), "ray")
