"""A checkpoint is whole or it is none, whatever was killed, cut or written into it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysrec.checkpoint_record import CheckpointRecord, TrainingState, _hash
from raysrec.checkpoints import Checkpoints, CorruptCheckpoint, NoneIsWhole

FINGERPRINT = "0123456789abcdef"


def save(checkpoints, step, epoch=0, best=None, content=b"weights"):
    """A checkpoint of two workers; `best` is the epoch of its best weights."""
    state = TrainingState(step=step, epoch=epoch, best_epoch=best or 0)
    states = tuple(
        checkpoints.save_file(
            f"{state.name}/state-{n}-of-2.safetensors", lambda file, n=n: file.write_bytes(content * n)
        )
        for n in (1, 2)
    )
    kept = {}
    if best:
        name = f"kept/epoch-{best:05d}.safetensors"
        kept = {best: checkpoints.save_file(name, lambda file: file.write_bytes(b"best"))}
    checkpoints.publish(CheckpointRecord(state=state, fingerprint=FINGERPRINT, states=states, kept=kept))
    return state.name


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def newest(checkpoints):
    """Where training stood at the newest whole checkpoint."""
    with checkpoints.newest() as found:
        return found.record.state if found else None


def test_the_newest_is_the_one_furthest_on(checkpoints):
    assert newest(checkpoints) is None
    save(checkpoints, 5)
    save(checkpoints, 10)
    assert newest(checkpoints).step == 10
    save(checkpoints, 10, epoch=1)  # the same step, after its epoch was judged
    assert newest(checkpoints).epoch == 1
    assert checkpoints.names() == [
        "step-00000010-epoch-00001", "step-00000010-epoch-00000", "step-00000005-epoch-00000",
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["local", "s3"])
def test_what_was_saved_is_at_hand_again(place, checkpoints, request):
    if place == "s3":
        checkpoints = Checkpoints(f"{request.getfixturevalue('s3')}/checkpoints")
    name = save(checkpoints, 5, best=1)
    with checkpoints.loaded(name) as found:
        assert [file.read_bytes() for file in found.states] == [b"weights", b"weightsweights"]
        assert {epoch: file.read_bytes() for epoch, file in found.kept.items()} == {1: b"best"}
        assert found.record.state == TrainingState(step=5, best_epoch=1)
    save(checkpoints, 6)
    checkpoints.prune(1)
    assert checkpoints.names() == ["step-00000006-epoch-00000"]


DAMAGE = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-2]),
    "a flipped bit": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "file",
    [
        "step-00000010-epoch-00000/state-2-of-2.safetensors",
        "kept/epoch-00002.safetensors",
        "step-00000010-epoch-00000.json",
    ],
)
def test_a_damaged_one_is_passed_over_loudly(checkpoints, file, damage, caplog):
    save(checkpoints, 5, best=1)
    save(checkpoints, 10, best=2)
    DAMAGE[damage](checkpoints.place.local / file)
    assert newest(checkpoints).step == 5
    assert checkpoints.last_record().state.step == (5 if file.endswith(".json") else 10)
    if not (damage == "gone" and file.endswith(".json")):  # then it never was one
        assert file in caplog.text
        assert "going back to the checkpoint before it" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"states": [{"name": "../../../etc/passwd", "bytes": 1, "sha256": "0" * 64}]},
        {"states": [{"name": "/etc/passwd", "bytes": 1, "sha256": "0" * 64}]},
        {"states": [{"name": "s3://other/x.safetensors", "bytes": 1, "sha256": "0" * 64}]},
        {"format": 1},
        {"states": "all"},
        {"state": {"step": 5, "worse_in_a_row": -1}},
    ],
)
def test_a_record_that_is_not_ours_is_refused(checkpoints, change):
    name = save(checkpoints, 5)
    file = checkpoints.place.local / f"{name}.json"
    signed = json.loads(file.read_text())
    other = signed["checkpoint"] | change
    file.write_text(json.dumps({"sha256": _hash(other), "checkpoint": other}))
    with (
        pytest.raises(CorruptCheckpoint, match=f"{name}.json: describes no checkpoint .*: (state|states|format)"),
        checkpoints.loaded(name),
    ):
        pass


BEFORE_LOSS = """{
 "sha256": "cd27621466e58e8048210748a74dbf905846c1e5d59b029747cf88f75eed10c2",
 "checkpoint": {
  "format": 3,
  "state": {
   "epoch": 1, "step": 5, "steps_in_epoch": 0, "targets_in_epoch": 0, "best_score": 0.25, "best_epoch": 1,
   "best_elapsed_s": 0.0, "best_cpu_s": 0.0, "elapsed_s": 1e-7, "cpu_s": 1e+22, "worse_in_a_row": 0,
   "candidate": null, "finished": false
  },
  "fingerprint": "0123456789abcdef",
  "states": [
   {
    "name": "step-00000005-epoch-00001/state-0-of-1.safetensors", "bytes": 7,
    "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
   }
  ],
  "kept": {
   "1": {
    "name": "kept/epoch-00001.safetensors", "bytes": 4,
    "sha256": "8f4375ec65c2c4092a1cc21e76712472eae0de999384e8327c495957121db9c2"
   }
  }
 }
}
"""
"""A record that commit e2aa753 wrote, whose state knew of no loss."""


def test_a_record_of_an_older_version_is_as_whole_as_it_was(checkpoints):
    (checkpoints.place / "step-00000005-epoch-00001.json").write(BEFORE_LOSS)
    state = TrainingState(epoch=1, step=5, best_score=0.25, best_epoch=1, elapsed_s=1e-7, cpu_s=1e22)
    assert checkpoints.last_record().state == state


def test_checkpoints_of_which_none_is_whole_are_no_beginning(checkpoints):
    save(checkpoints, 5, best=1)
    save(checkpoints, 10, best=1)
    DAMAGE["cut"](checkpoints.place.local / "kept/epoch-00001.safetensors")  # which both name
    with pytest.raises(NoneIsWhole, match=r"none of its 2 checkpoints can be used \(.*kept/epoch-00001.*--fresh"):
        newest(checkpoints)
    assert len(checkpoints.names()) == 2


def test_a_number_that_changed_in_a_record_is_noticed(checkpoints):
    name = save(checkpoints, 5)
    file = checkpoints.place.local / f"{name}.json"
    file.write_text(file.read_text().replace('"worse_in_a_row": 0', '"worse_in_a_row": 1'))
    with pytest.raises(CorruptCheckpoint, match="its content is not what was saved"), checkpoints.loaded(name):
        pass


def test_a_record_under_another_name_is_refused(checkpoints):
    name = save(checkpoints, 5)
    (checkpoints.place.local / f"{name}.json").rename(checkpoints.place.local / "step-00000006-epoch-00000.json")
    with (
        pytest.raises(CorruptCheckpoint, match="is that of step-00000005"),
        checkpoints.loaded("step-00000006-epoch-00000"),
    ):
        pass


def test_the_newest_are_kept_with_the_best_weights_that_they_name(checkpoints):
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3)):
        save(checkpoints, step, best=best)
    checkpoints.prune(2)
    left = sorted(path.relative_to(checkpoints.place.local).as_posix() for path in checkpoints.place.local.glob("*/*"))
    assert left == [
        "kept/epoch-00003.safetensors",
        *(f"step-0000000{step}-epoch-00000/state-{n}-of-2.safetensors" for step in (3, 4) for n in (1, 2)),
    ]


def test_what_is_newer_than_the_one_gone_on_from_is_removed(checkpoints):
    old = save(checkpoints, 5)
    save(checkpoints, 10)
    broken = checkpoints.place.local / "step-00000015-epoch-00000" / "state-1-of-2.safetensors"
    broken.parent.mkdir()
    broken.write_bytes(b"half")
    checkpoints.remove_after(old)
    assert sorted(path.name for path in checkpoints.place.local.iterdir()) == [old, f"{old}.json"]
    checkpoints.remove_after("")
    assert list(checkpoints.place.local.iterdir()) == []


def test_killed_at_any_moment_a_whole_one_is_left(tmp_path):
    """A process that does nothing but save is killed many times; what it says it has saved is there, and whole."""
    folder = tmp_path / "checkpoints"
    program = (
        "import sys, os; from raysrec.checkpoints import *; from raysrec.checkpoint_record import *\n"
        "checkpoints = Checkpoints(sys.argv[1])\n"
        "step = int(sys.argv[2])\n"
        "while True:\n"
        "    step += 1; state = TrainingState(step=step)\n"
        "    content = os.urandom(300_000)\n"
        "    file = checkpoints.save_file(f'{state.name}/state-0-of-1.safetensors', lambda f: f.write_bytes(content))\n"
        "    record = CheckpointRecord(state=state, fingerprint='', states=(file,), kept={})\n"
        "    checkpoints.publish(record)\n"
        "    print(step, flush=True); checkpoints.prune(1)\n"
    )
    checkpoints, step, said = Checkpoints(folder), 0, 0
    for kill in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(step)], stdout=subprocess.PIPE, text=True
        )
        said = int(process.stdout.readline())
        time.sleep(0.003 * kill)
        os.kill(process.pid, signal.SIGKILL)
        said = max([said, *(int(line) for line in process.stdout.read().splitlines() if line.isdigit())])
        process.wait()
        found = newest(checkpoints)
        assert found.step in (said, said + 1)
        checkpoints.remove_after(found.name)
        step = found.step
    assert step >= 12


states = st.builds(
    TrainingState,
    epoch=st.integers(0, 10**6),
    step=st.integers(0, 10**12),
    best_score=st.floats(-1, 1),
    best_epoch=st.integers(0, 10**6),
    best_elapsed_s=st.floats(0, 1e9),
    elapsed_s=st.floats(0, 1e9),
    worse_in_a_row=st.integers(0, 100),
    finished=st.booleans(),
)


@given(state=states)
def test_a_training_state_survives_json_to_the_last_bit(state):
    assert TrainingState.model_validate_json(state.model_dump_json()) == state


def test_training_begins_before_any_epoch_with_a_score_that_every_other_beats():
    assert TrainingState() == TrainingState(epoch=0, step=0, best_score=-1.0, best_epoch=0, finished=False)
