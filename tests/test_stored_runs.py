"""Whole runs whose data and directory lie in a real S3 server, with nothing kept on the machine that trains."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from s3_proxy import Fault
from test_resume import until

from raysrec.checkpoints import Checkpoints
from raysrec.cluster.runtime import ray_session
from raysrec.config.loading import validate
from raysrec.config.settings import overlay
from raysrec.data.batching.loader import epoch_steps
from raysrec.data.batching.ray_reading import read_with_ray
from raysrec.place import Place
from raysrec.prepare import prepare
from raysrec.run_directory import RunDirectory
from raysrec.sweep import SweepDirectory

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

SETTINGS = {
    "data": {"synthetic": {"num_users": 401, "num_items": 50, "mean_length": 15}, "num_streams": 3},
    "model": {"name": "recgrela", "dim": 16, "num_blocks": 2, "max_length": 20},
    "train": {"epochs": 3, "batch_targets": 256, "learning_rate": 0.01, "warmup_steps": 5, "schedule": "cosine"},
    "scale": {"workers": 2, "threads_per_worker": 1},
}


@pytest.fixture
def machine(tmp_path_factory):
    """A machine with nothing on it: its command lines run in a folder of their own, with a Ray of their own."""

    def make(settings, *, environment=None):
        folder = tmp_path_factory.mktemp("machine")
        (folder / "run.yaml").write_text(yaml.safe_dump(settings))
        sessions = Path("/tmp") / f"raysrec-{os.getpid()}-{folder.name}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        root = str(Path(__file__).parent.parent)
        kept |= {"RAY_TMPDIR": str(sessions), "PYTHONPATH": root, "TMPDIR": str(folder)} | (environment or {})
        return folder, sessions, kept

    return make


def say(machine, *arguments, verb="train", **options):
    folder, _, environment = machine
    command = [sys.executable, "-m", f"raysrec.{verb}", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, **options)


def find(secret, *folders):
    """Files in which the secret stands; of several, one a line."""
    done = subprocess.run(
        ["grep", "--recursive", "--files-with-matches", "--fixed-strings", secret, *folders],
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()


def command_lines():
    """What anybody on this machine sees of its processes."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(file.read_bytes())
    return b"\n".join(found)


def test_a_run_in_a_store_goes_on_and_is_used_on_another_machine(s3, s3_server, machine, tmp_path):
    storage = {"storage": {"root": f"{s3}/runs", "name": "one"}, "data": {"prepared": f"{s3}/prepared"}}
    settings = overlay(SETTINGS, storage)
    run = RunDirectory(f"{s3}/runs/one")
    planted = "hunter2-is-no-password"
    secrets = f"{s3_server.secret_key}\n{planted}"
    folder, sessions, environment = machine(settings, environment={"MY_SERVICE_TOKEN": planted})
    command = [sys.executable, "-m", "raysrec.train", "--config", "run.yaml"]
    log = (tmp_path / "first.log").open("w")
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, stdout=log, stderr=log)
    seen = set()

    def is_trained_a_little():
        seen.update(name for name in (b"raylet", b"gcs_server", b"ray::") if name in command_lines())
        assert not any(secret.encode() in command_lines() for secret in secrets.splitlines())
        return bool(Checkpoints(run.checkpoints).names())

    try:
        until(is_trained_a_little, process, within_s=500)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert not run.metrics_file.is_file()
    assert len(seen) == 3  # there was something to look at
    # Ray's logs and the environments of its jobs and workers, what was written meanwhile, and what was printed.
    assert find(secrets, sessions, folder, tmp_path) == []

    second = machine(settings)
    done = say(second, "--config", "run.yaml")
    assert done.returncode == 0, done.stderr
    left = [path.name for path in second[0].iterdir() if not path.name.startswith("torchinductor_")]  # torch's own
    assert left == ["run.yaml"]
    epochs = [event["epoch"] for event in events(run) if event["kind"] == "step"]
    assert max(epochs) == 3
    expected = {"config.yaml", "provenance.json", "log.jsonl", "tensorboard", "checkpoints", "model", "ranks.parquet"}
    assert {info.base_name for info in run.path.below(recursive=False)} == expected | {"metrics.json"}
    metrics = json.loads(run.metrics_file.read_text())

    third = machine(settings)
    table = say(third, f"{s3}/runs/*", verb="report")
    assert table.returncode == 0, table.stderr
    assert table.stdout in done.stdout
    again = say(third, f"{s3}/runs/one", "scale.workers=1", verb="evaluate")
    assert again.returncode == 0, again.stderr
    assert json.loads(run.metrics_file.read_text())["splits"] == metrics["splits"]

    assert s3_server.secret_key not in done.stdout + done.stderr + table.stdout + again.stdout + again.stderr
    for info in run.path.below():
        if info.is_file:
            assert s3_server.secret_key.encode() not in run.path.at(info.path).read_bytes()
    for other in (second, third):
        assert find(s3_server.secret_key, other[0]) == find(s3_server.secret_key, other[1]) == []
    assert find("raysrec", sessions)  # there was something to look through


@pytest.mark.long
def test_a_sweep_in_a_store_goes_on_and_is_shown_on_another_machine(s3, machine, tmp_path):
    storage = {"storage": {"root": f"{s3}/runs", "name": "sweep"}, "data": {"prepared": f"{s3}/prepared"}}
    settings = overlay(overlay(SETTINGS, storage), {"scale": {"workers": 1}, "checkpoint": {"every_steps": 5}})
    search = yaml.safe_dump({"space": {"model.num_blocks": {"grid": [1, 2]}}, "rank": "all"})
    (Place(f"{s3}/searches") / "search.yaml").write(search)
    sweep = SweepDirectory(f"{s3}/runs/sweep")
    arguments = ["--config", "run.yaml", "--sweep", f"{s3}/searches/search.yaml", "sweep.max_concurrent=1"]

    def has_saved_the_second():
        states = [trial.state for trial in sweep.trials]
        return states == ["finished", "running"] and bool(Checkpoints(sweep.runs / "trial-001/checkpoints").names())

    folder, _, environment = machine(settings)
    log = (tmp_path / "first.log").open("w")
    options = {"cwd": folder, "env": environment, "start_new_session": True, "stdout": log, "stderr": log}
    process = subprocess.Popen([sys.executable, "-m", "raysrec.tune", *arguments], **options)
    try:
        until(has_saved_the_second, process, within_s=600)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    first, second = (RunDirectory(sweep.runs / f"trial-00{number}") for number in (0, 1))
    before = events(first)

    done = say(machine(settings), *arguments, verb="tune")
    assert done.returncode == 0, done.stderr
    assert events(first) == before
    assert [event["step"] > 0 for event in events(second) if event["kind"] == "start"] == [False, True]
    assert [trial.state for trial in sweep.trials] == ["finished", "finished"]
    assert all(run.metrics_file.is_file() for run in (first, second))
    assert (sweep.path / "report.html").is_file()
    assert len([info for info in Place(f"{s3}/prepared").below(recursive=False) if not info.is_file]) == 1
    table = say(machine(settings), f"{s3}/runs/*", verb="report")
    assert table.returncode == 0, table.stderr
    assert "trial-000" in table.stdout
    trained = say(machine(settings), "--config", str(sweep.best_file), "train.epochs=1", verb="train")
    assert trained.returncode == 0, trained.stderr
    assert RunDirectory(f"{s3}/runs/sweep-best").metrics_file.is_file()


def events(run):
    return [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]


def test_each_byte_leaves_the_store_once_in_an_epoch_that_ray_reads_for_two_workers(s3, proxy, monkeypatch):
    monkeypatch.setattr("raysrec.data.batching.ray_reading.READ_INTERACTIONS", 100_000)
    monkeypatch.setattr("raysrec.data.preparing.writing.LARGEST_ROW_GROUP", 30_000)
    monkeypatch.setattr("raysrec.data.preparing.writing.ROW_GROUPS", 16)
    synthetic = {"synthetic": {"num_users": 8_000, "num_items": 3_000, "mean_length": 60}}
    config = validate(overlay(SETTINGS, {"data": {**synthetic, "num_streams": 4, "prepared": f"{s3}/prepared"}}))
    data = prepare(config.data)
    size = sum(shard.bytes for shard in data.manifest.shards)
    with ray_session(config.scale):
        for epoch, most in ((0, 1.05), (1, 1.0)):
            proxy.clear()
            for worker in range(2):
                found = epoch_steps(data, config, read_with_ray, epoch=epoch, worker=worker, num_workers=2)
                assert sum(1 for _ in found) > 10
            assert 0.5 < proxy.bytes_read("part-") / size <= most
            assert proxy.count("GET", "part-") <= 2 * len(data.row_groups())


def test_a_store_that_fails_while_training_ends_it_with_one_clear_error(s3, proxy, machine):
    query = "?max_attempts=3&request_timeout=2"
    storage = {"storage": {"root": f"{s3}/runs{query}"}, "data": {"prepared": f"{s3}/prepared{query}"}}
    one = machine(overlay(overlay(SETTINGS, storage), {"train": {"epochs": 2}, "scale": {"max_failures": 0}}))
    assert say(one, "--config", "run.yaml", verb="prepare").returncode == 0
    for part, method in (("part-00000.parquet", "GET"), ("state-0-of-2.safetensors", "PUT")):
        proxy.faults.append(Fault(10_000, method=method, key=part, status=503))
        done = say(one, "--config", "run.yaml")
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert part in last
        assert "the store failed, 3 times; run this again when it is well" in last
        proxy.faults.clear()
    # What failed to be saved is no checkpoint, and nothing is left that looks like one.
    assert Checkpoints(f"{s3}/runs/synthetic-recgrela/checkpoints").last_record() is None
