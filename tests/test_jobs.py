"""Submitted jobs, in a real cluster of one machine with a dashboard, none of whose processes has raysrec installed."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

import psutil
import pytest

from raysrec.cluster.runtime import LOCAL_SETTINGS, SETTINGS

ROOT = Path(__file__).parent.parent


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def python(tmp_path):
    """An interpreter that has all that raysrec needs, and not raysrec."""
    venv.create(tmp_path / "venv", symlinks=True)
    site = tmp_path / f"venv/lib/python3.{sys.version_info.minor}/site-packages"
    # Folders of editable installations are named in files that are read only where they lie.
    (site / "all.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    found = tmp_path / "venv/bin/python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [found, "-c", "import ray, raysrec"], cwd="/", env=environment, capture_output=True, text=True
    )
    assert "No module named 'raysrec'" in done.stderr
    return found


@pytest.fixture
def dashboard(python):
    """The address of the dashboard of a cluster that starts here and ends with the test."""
    folder = Path(tempfile.mkdtemp(prefix="raysrec-jobs-", dir="/tmp"))
    dropped = ("PYTHONPATH", "RAY_ADDRESS", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= SETTINGS | LOCAL_SETTINGS | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    port = free_port()
    options = {
        "port": free_port(),
        "dashboard-port": port,
        "dashboard-agent-listen-port": free_port(),
        "ray-client-server-port": free_port(),
        "metrics-export-port": free_port(),
        "num-cpus": 3,
        "object-store-memory": 200_000_000,
        "temp-dir": folder,
    }
    command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=true"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=environment, cwd="/", stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def submit_first(address, **job):
    """The client and the job, as soon as the cluster is there: the dashboard comes first, and who starts jobs later."""
    from ray.job_submission import JobSubmissionClient

    deadline = time.monotonic() + 120
    while True:
        try:
            client = JobSubmissionClient(address)
            return client, client.submit_job(**job)
        except (OSError, RuntimeError):  # as those of requests are
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def submit(address, *command):
    """`ray job submit`, to its end."""
    ray = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "job",
        "submit",
        f"--address={address}",
        f"--working-dir={ROOT}",
    ]
    return subprocess.run([*ray, "--", *command], capture_output=True, text=True, timeout=300)


def starts(run):
    """Where its workers began, each time."""
    events = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [event for event in events if event["kind"] == "start"]


def until(condition):
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def training_in(folder, epochs):
    """A small training whose run and data lie in this folder."""
    settings = {
        "data.synthetic.num_users": 60,
        "data.prepared": folder / "prepared",
        "storage.root": folder / "runs",
        "engine.name": "torch",
        "scale.workers": 1,
        "train.epochs": epochs,
        "train.patience": 99,
        "train.validate_every": epochs,
    }
    command = ["python", "-m", "raysrec.train", "--config", "configs/quickstart.yaml"]
    return command + [f"{name}={value}" for name, value in settings.items()]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_is_stopped_or_killed_goes_on_when_it_is_submitted_again(dashboard, tmp_path, monkeypatch):
    for name, value in LOCAL_SETTINGS.items():
        monkeypatch.setenv(name, value)
    # Ray's own default is 3 seconds; this is how a user gives more.
    longer = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    # So many epochs that the first is over long before the last, also when the stop takes its time to arrive.
    command = training_in(tmp_path, epochs=20)
    client, job = submit_first(
        dashboard, entrypoint=" ".join(command), runtime_env={"working_dir": str(ROOT), "env_vars": longer}
    )

    async def stop_in_the_middle():
        said = ""
        async for lines in client.tail_job_logs(job):
            if "epoch 1" not in said and "epoch 1" in said + lines:
                client.stop_job(job)
            said += lines
        return said

    said = asyncio.run(asyncio.wait_for(stop_in_the_middle(), 300))
    assert "SIGTERM: saving, then stopping" in said, said
    assert "runs/quickstart: stopped by SIGTERM, saved after step" in said
    assert client.get_job_status(job).value == "STOPPED"

    job = client.submit_job(entrypoint=" ".join(command), runtime_env={"working_dir": str(ROOT)})
    until(lambda: len(starts(tmp_path / "runs/quickstart")) == 2)
    drivers = [
        # A process that has ended, or is another's, has no command line.
        one
        for one in psutil.process_iter(["cmdline"])
        if f"storage.root={tmp_path}/runs" in (one.info["cmdline"] or ())
    ]
    assert drivers
    for driver in drivers:
        driver.kill()
    until(lambda: client.get_job_status(job).value == "FAILED")

    done = submit(dashboard, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 20" in done.stdout
    assert "epoch 1 " not in done.stdout
    assert (tmp_path / "runs/quickstart/metrics.json").is_file()
    steps = [event["step"] for event in starts(tmp_path / "runs/quickstart")]
    assert len(steps) == 3
    assert 0 == steps[0] < steps[1] <= steps[2]

    done = submit(dashboard, *command[:5], "data.prepared=/tmp/a")
    assert done.returncode == 1
    assert "error: storage.root=runs: lies in the folder which Ray unpacked for this job" in done.stdout


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_other_verbs_are_submitted_like_a_training(dashboard, tmp_path, monkeypatch):
    for name, value in LOCAL_SETTINGS.items():
        monkeypatch.setenv(name, value)
    train = training_in(tmp_path, epochs=1)
    run, settings = tmp_path / "runs/quickstart", train[3:]
    client, job = submit_first(dashboard, entrypoint=" ".join(train), runtime_env={"working_dir": str(ROOT)})
    until(lambda: client.get_job_status(job).is_terminal())

    (tmp_path / "sweep.yaml").write_text("{space: {train.learning_rate: {grid: [0.01]}}, num_samples: 1}")
    sweep = ["python", "-m", "raysrec.tune", "--sweep", tmp_path / "sweep.yaml", *settings, "train.epochs=1"]
    commands = {
        "prepare": ["python", "-m", "raysrec.prepare", *settings],
        "evaluate": ["python", "-m", "raysrec.evaluate", run, "evaluate.exclude_seen=true"],
        "recommend": ["python", "-m", "raysrec.recommend", run, "--output", tmp_path / "lists", "--k", "3"],
        "tune": [*sweep, "train.validate_every=1", "storage.name=sweep"],
        "dry run": [*sweep, "scale.workers=4", "data.num_streams=4", "--dry-run"],
    }
    jobs = {
        name: client.submit_job(entrypoint=" ".join(map(str, command)), runtime_env={"working_dir": str(ROOT)})
        for name, command in commands.items()
    }
    until(lambda: all(client.get_job_status(job).is_terminal() for job in jobs.values()))
    said = {name: client.get_job_logs(job) for name, job in jobs.items()}
    assert {name: client.get_job_status(job).value for name, job in jobs.items()} == dict.fromkeys(jobs, "SUCCEEDED"), (
        said
    )
    assert "reusing" in said["prepare"]
    record = json.loads((run / "metrics.json").read_text())
    assert record["evaluate"]["exclude_seen"] is True
    lists = json.loads((tmp_path / "lists/_manifest.json").read_text())
    assert lists["counts"]["users"] == record["splits"]["test"]["users"] > 50
    assert (tmp_path / "runs/sweep/best.yaml").is_file()
    assert "3 CPUs: NEVER enough for 4 workers; no machine has room for 1 CPU" in said["dry run"]


@pytest.mark.parametrize("with_gitignore", [True, False])
def test_what_is_submitted_is_small(tmp_path, with_gitignore):
    """By the function that `ray job submit` packs with; all these folders may lie in a project that is in use."""
    from ray._private.runtime_env.packaging import create_package

    project = tmp_path / "project"
    kept = ("raysrec", "configs", "cluster")
    for name in kept:
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, project / name)
    for name in (
        ".git/objects/pack/a",
        ".venv/lib/torch.so",
        "venv/lib/torch.so",
        "data/ml-1m/ratings.dat",
        "data/netflix/combined_data_1.txt.part",
        "mlruns/0/meta.yaml",
        "dist/raysrec-1.whl",
        "runs/a/checkpoints/step-1/state.safetensors",
        "prepared/0f/histories/0.parquet",
        "ratings.dat.gz",
        "ml-1m/ratings.parquet",
        "raysrec/__pycache__/train.cpython-311.pyc",
        "tests/golden/a.safetensors",
        "build/lib/a.so",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(os.urandom(1_000_000))
    # Since Ray 2.50 it is read, unless a variable says otherwise.
    create_package(str(project), tmp_path / "package.zip", include_gitignore=with_gitignore)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
    assert {name.split("/")[0] for name in names} == {*kept, ".gitignore", ".rayignore", "pyproject.toml", "README.md"}
    assert not any("__pycache__" in name for name in names)
    code = {str(file.relative_to(ROOT)) for file in (ROOT / "raysrec").rglob("*.*") if file.suffix != ".pyc"}
    assert {name for name in names if name.startswith("raysrec/")} >= code > {"raysrec/data/prepared.py"}
    assert (tmp_path / "package.zip").stat().st_size < 2_000_000
