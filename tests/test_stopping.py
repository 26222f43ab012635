"""A process that is asked to end gets the time to save; asked twice, or with nothing to save, it ends."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from raysrec.stopping import LOOK_S, STOPPED, StopRequest, Watched, stop_requests

PROGRAM = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore it
from raysrec.stopping import stop_requests
with stop_requests() as stop:
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
    print(stop.signal, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_ends_the_process(number):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"{number.name}\n"
        process.send_signal(number)
        assert process.wait(timeout=20) != 0


def test_afterwards_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_verb_with_nothing_to_save_ends_with_the_status_of_a_run_that_saved(tmp_path):
    """Slurm and others queue again what ends so; Ray's own status for it is another (test_resources.py)."""
    command = [sys.executable, "-m", "raysrec.prepare", "--config", "configs/quickstart.yaml"]
    command += ["data.synthetic.num_users=1000000", f"data.prepared={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert said
    assert (process.returncode, errors) == (STOPPED, "stopped by SIGTERM; the same command goes on\n")
    assert not list(tmp_path.glob("*/*.json"))


def test_work_that_is_watched_ends_by_itself_or_is_left_when_its_time_is_up():
    def fails():
        raise OSError("no space left")

    watched = Watched(fails, "fails")
    for _ in watched.looks(StopRequest(), within_s=60.0):
        pass
    assert str(watched.error) == "no space left"

    stop, never = StopRequest(), threading.Event()
    stop.signal = "SIGTERM"
    left = Watched(never.wait, "left")
    looks = sum(1 for _ in left.looks(stop, within_s=3 * LOOK_S))
    never.set()
    left.wait(60.0)
    assert looks >= 2
    assert left.error is None
