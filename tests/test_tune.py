"""The command on a real Ray on this machine: asked to stop, killed, and typed again until it is done."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from sweeps import SETTINGS, lines, make_sweep
from test_resume import environment, until

from raysrec import tune
from raysrec.command_line import load, overlay
from raysrec.run_directory import RunDirectory
from raysrec.stopping import StopRequest
from raysrec.sweep import SweepDirectory
from raysrec.sweep.book import TrialBook

SWEEP = {
    "space": {"train.learning_rate": {"grid": [2.0e-3, 1.0e-7]}},
    "scheduler": {"name": "asha", "grace_epochs": 3, "reduction_factor": 2},
}


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


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_that_is_stopped_and_killed_goes_on_and_repeats_no_finished_trial(tmp_path):
    places = {
        "storage": {"root": str(tmp_path / "runs"), "name": "sweep"},
        "data": {"prepared": str(tmp_path / "data")},
    }
    settings = overlay(overlay(SETTINGS, places), {"train": {"epochs": 12}})
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SWEEP))
    command = [sys.executable, "-m", "raysrec.tune", "--config", str(tmp_path / "base.yaml"), "--sweep"]
    command.append(str(tmp_path / "search.yaml"))
    directory = SweepDirectory(tmp_path / "runs" / "sweep")
    runs = [RunDirectory(directory.runs / f"trial-{number:03d}") for number in range(2)]
    env = {**environment(), "RAY_metrics_report_interval_ms": "1000"}  # within a trial's life on a fast machine too
    shown = {"env": env, "text": True, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}

    def reaches(number, epoch):
        """Is this trial trained, and has it been validated so often in this start of the sweep?"""
        trials = directory.trials
        return len(trials) > number and trials[number].state == "running" and trials[number].epoch >= epoch

    process = subprocess.Popen(command, **shown)
    until(lambda: reaches(0, 1), process, within_s=400)
    until(lambda: labels_of("ray_raysrec_restarts"), process)  # said before the first step
    (labels,) = labels_of("ray_raysrec_restarts")
    assert labels["run"] == "trial-000"
    assert labels["trial"]
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 143, said
    assert [line["state"] for line in lines(directory)] == ["interrupted"]
    saved = events(runs[0], "checkpoint")[-1]["step"]

    process = subprocess.Popen(command, **shown)
    until(lambda: reaches(1, 1), process, within_s=400)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = (runs[0].path / "log.jsonl").read_text()
    assert [line["state"] for line in lines(directory)] == ["finished", "running"]
    assert events(runs[0], "start")[1]["step"] == saved > 0

    done = subprocess.run(command, **shown, timeout=400)
    assert done.returncode == 0, done.stderr
    assert [line["state"] for line in lines(directory)] == ["finished", "stopped"]
    assert (runs[0].path / "log.jsonl").read_text() == finished
    starts = events(runs[1], "start")
    assert len(starts) == 2
    assert starts[1]["step"] > 0
    for run, line in zip(runs, lines(directory), strict=True):
        best = max(event["validation/ndcg@10"] for event in events(run, "validation"))
        assert line["score"] == pytest.approx(best)
        run.load_model()
    early = lines(directory)[1]
    assert 3 <= early["epoch"] < 6
    assert len([folder for folder in (tmp_path / "data").iterdir() if folder.is_dir()]) == 1

    best = max(range(2), key=lambda number: lines(directory)[number]["score"])
    assert [run.metrics_file.is_file() for run in runs] == [number == best for number in range(2)]
    assert f"best  trial-{best:03d}: train.learning_rate=" in done.stdout
    ready = load([directory.best_file.local])
    assert ready.train.learning_rate == SWEEP["space"]["train.learning_rate"]["grid"][best]
    assert ready.run_directory.name == "sweep-best"

    again = subprocess.run(command, **shown, timeout=100)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    refused = subprocess.run([*command, "train.epochs=5"], **shown, timeout=100)
    assert refused.returncode == 2
    assert "holds another sweep: config.train.epochs was 12 and is now 5" in refused.stderr


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
        monkeypatch.setattr(tune, "ASK_AGAIN_S", 0.1)
        monkeypatch.setattr(tune, "ask_to_stop", lambda run, by: asked.append((run.path.name, by)))
        stop.signal = "SIGTERM"
        error = tune._in_a_thread(lambda give_up: trials(book, asked, give_up), book, stop)
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
            book.heard(name, {"kind": "end", "state": "stopped", "seconds": 1.0})

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
