"""The command on a real Ray on this machine: asked to stop, killed, and typed again until it is done."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml
from sweeps import SETTINGS, lines, make_sweep
from test_resume import environment, until

from raysrec import tune
from raysrec.checkpoints import Checkpoints
from raysrec.config.loading import load
from raysrec.config.settings import overlay
from raysrec.run_directory import RunDirectory
from raysrec.stopping import StopRequest
from raysrec.sweep import SweepDirectory
from raysrec.sweep.book import TrialBook

LEARNING_RATES = [2.0e-3, 1.0e-7, 2.0e-7]
ASHA = {"name": "asha", "grace_epochs": 3, "reduction_factor": 2}


def labels_of(metric):
    """The labels under which the Ray of these commands gives a metric to Prometheus."""
    session = Path(environment()["RAY_TMPDIR"], "session_latest")
    (port,) = (file.read_text() for file in session.glob("metrics_export_port_*"))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return [dict(re.findall(r'(\w+)="([^"]*)"', line)) for line in lines if line.startswith(f"{metric}{{")]


def events(run, kind):
    lines = (run.path / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def processes_of(process, name, file=""):
    """Processes of this command's Ray whose name begins so, which have this file open."""
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            if one.name().startswith(name) and one.status() != psutil.STATUS_ZOMBIE:
                opened = not file or any(open_file.path == file for open_file in one.open_files())
                found += [one] if opened else []
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("struck", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_sweep_that_is_stopped_and_killed_goes_on_and_repeats_no_finished_trial(tmp_path, struck):
    """With `struck` a worker and a trial's process are killed, too, and trials are trained two at a time."""
    grid = LEARNING_RATES if struck else LEARNING_RATES[:2]
    places = {
        "storage": {"root": str(tmp_path / "runs"), "name": "sweep"},
        "data": {"prepared": str(tmp_path / "data")},
    }
    settings = overlay(overlay(SETTINGS, places), {"checkpoint": {"every_steps": 5}, "train": {"epochs": 24}})
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings))
    search = {"space": {"train.learning_rate": {"grid": grid}}, "scheduler": ASHA}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search))
    command = [sys.executable, "-m", "raysrec.tune", "--config", str(tmp_path / "base.yaml"), "--sweep"]
    command.append(str(tmp_path / "search.yaml"))
    directory = SweepDirectory(tmp_path / "runs" / "sweep")
    runs = [RunDirectory(directory.runs / f"trial-{number:03d}") for number in range(len(grid))]
    env = {**environment(), "RAY_metrics_report_interval_ms": "1000"}  # within a trial's life on a fast machine too
    shown = {"env": env, "text": True, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}

    def has_saved(number):
        """Is this trial trained now, and is there something that it would go on from?"""
        states = [trial.state for trial in directory.trials]
        return states[number : number + 1] == ["running"] and bool(Checkpoints(runs[number].checkpoints).names())

    process = subprocess.Popen(command, **shown)
    until(lambda: has_saved(0), process, within_s=400)
    until(lambda: labels_of("ray_raysrec_restarts"), process)
    assert [(one["run"], one["trial"]) for one in labels_of("ray_raysrec_restarts")] == [("sweep", "trial-000")]
    if struck:
        (worker,) = processes_of(process, "ray::RayTrainWo")
        worker.kill()
        until(lambda: len(events(runs[0], "start")) == 2, process, within_s=400)
        assert events(runs[0], "start")[1]["step"] > 0
        assert len(events(runs[0], "failure")) == 1
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 143, said
    assert [line["state"] for line in lines(directory)] == ["interrupted"]
    saved = events(runs[0], "checkpoint")[-1]["step"]

    together = ["sweep.max_concurrent=2", "scale.workers=2"] if struck else []
    process = subprocess.Popen([*command, *together], **shown)
    if struck:
        until(lambda: has_saved(1) and has_saved(0), process, within_s=400)
        assert len(processes_of(process, "ray::RayTrainWo")) == 4
        (trial,) = processes_of(process, "ray::ImplicitFu", str(runs[1].path / "log.jsonl"))
        trial.kill()
    until(lambda: has_saved(len(grid) - 1), process, within_s=400)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert events(runs[0], "start")[-1]["step"] == saved > 0
    assert not struck or events(runs[1], "start")[1]["step"] > 0
    done = [run for run, line in zip(runs, lines(directory), strict=True) if line["state"] in ("finished", "stopped")]
    logs = [(run.path / "log.jsonl").read_text() for run in done]
    assert logs

    ended = subprocess.run(command, **shown, timeout=400)
    assert ended.returncode == 0, ended.stderr
    assert [line["state"] for line in lines(directory)] == ["finished"] + ["stopped"] * (len(grid) - 1)
    assert [(run.path / "log.jsonl").read_text() for run in done] == logs
    assert events(runs[-1], "start")[1]["step"] > 0
    for run, line in zip(runs, lines(directory), strict=True):
        best = max(event["validation/ndcg@10"] for event in events(run, "validation"))
        assert line["score"] == pytest.approx(best)
        run.load_model()
    assert all(3 <= line["epoch"] < 24 for line in lines(directory)[1:])
    assert len([folder for folder in (tmp_path / "data").iterdir() if folder.is_dir()]) == 1

    assert [run.metrics_file.is_file() for run in runs] == [True] + [False] * (len(grid) - 1)
    assert "best  trial-000: train.learning_rate=" in ended.stdout
    ready = load([directory.best_file.local])
    assert ready.train.learning_rate == grid[0]
    assert ready.run_directory.name == "sweep-best"

    again = subprocess.run(command, **shown, timeout=100)
    assert again.returncode == 0, again.stderr
    assert again.stdout == ended.stdout
    refused = subprocess.run([*command, "train.epochs=5"], **shown, timeout=100)
    assert refused.returncode == 2
    assert "holds another sweep: config.train.epochs was 24 and is now 5" in refused.stderr


class Never:
    def judge(self, name, *, epoch, score, best):
        return False


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """Runs a sweep of two trials that is asked to stop at once; who was asked to save, and where the trials stand."""

    def run(trials, stop_within_s):
        overrides = (f"checkpoint.stop_within_s={stop_within_s}", "sweep.max_concurrent=2")
        sweep = make_sweep(tmp_path, {"model.num_blocks": {"grid": [1, 2, 3]}}, *overrides)
        sweep.directory.begin(sweep.settings, sweep.config, "0123")
        book, stop, asked = TrialBook(sweep, Never()), StopRequest(), []
        begun = [book.begin_next()[0].name for _ in range(2)]
        monkeypatch.setattr(tune, "ask_to_stop", lambda run, by: asked.append((run.path.name, by)))
        stop.signal = "SIGTERM"
        error = tune._until_done_or_saved(lambda give_up: trials(book, asked, give_up), book, stop)
        assert book.begin_next() is None
        assert {name for name, _ in asked} == set(begun)
        return error, asked, [trial.state for trial in sweep.directory.trials]

    return run


def until_true(condition):
    while not condition():
        time.sleep(0.01)


def test_asked_to_stop_a_sweep_asks_each_trial_until_it_has_saved(stopped):
    def trials(book, asked, give_up):
        for number in range(2):  # the second one has only just started, and hears nothing at first
            name = f"trial-{number:03d}"
            until_true(lambda: asked.count((name, "SIGTERM")) > 2 * number)  # noqa: B023
            book.heard(name, {"kind": "end", "state": "interrupted", "seconds": 1.0})

    error, _, states = stopped(trials, stop_within_s=60)
    assert error is None
    assert states == ["interrupted", "interrupted"]


def test_trials_that_do_not_end_in_time_are_left_to_go_on_another_time(stopped):
    error, _, states = stopped(lambda book, asked, give_up: give_up.wait(60), stop_within_s=0.5)
    assert error is None
    assert states == ["interrupted", "interrupted"]


def test_what_ends_ray_tune_is_not_hidden(stopped):
    def trials(book, asked, give_up):
        until_true(lambda: len({name for name, _ in asked}) == 2)
        raise OSError("no space left")

    error, _, _ = stopped(trials, stop_within_s=60)
    assert str(error) == "no space left"
