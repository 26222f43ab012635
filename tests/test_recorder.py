import json

import pytest
from events import NOTE, STEP, VALIDATION
from full_disk import fill

from raysrec.tracking.recorder import Recorder


def scalars(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(directory / "tensorboard"))
    board.Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_the_log_and_tensorboard_hold_the_same_numbers(tmp_path):
    events = [STEP, STEP | {"step": 41, "loss": 5.5}, NOTE, VALIDATION]
    with Recorder(tmp_path) as recorder:
        for event in events:
            recorder.record(event)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == events
    expected = {}
    for event in logged:
        for name, value in event.items():
            if name not in ("kind", "step", "text"):
                tag = name if "/" in name else f"{event['kind']}/{name}"
                expected.setdefault(tag, []).append((event["step"], pytest.approx(float(value), rel=1e-6)))  # float32
    found = scalars(tmp_path)
    assert found == expected
    assert {"step/loss", "validation/ndcg@10", "validation/epoch"} <= found.keys()


def test_a_resumed_run_goes_on_in_the_same_log(tmp_path):
    for loss in (3.0, 2.0):
        with Recorder(tmp_path) as recorder:
            recorder.record(STEP | {"loss": loss})
    assert [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").open()] == [3.0, 2.0]


def test_the_log_is_on_disk_after_every_event(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.record(STEP)
        assert json.loads((tmp_path / "log.jsonl").read_text()) == STEP


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer
def test_a_full_disk_is_told_once_and_what_could_not_be_written_comes_later(small_disk, caplog):
    events = [{"kind": "step", "step": step, "epoch": 1, "loss": 0.5} for step in range(200)]
    with Recorder(small_disk) as recorder:
        recorder.record(events[0])
        fill(small_disk / "somebody-elses")
        for event in events[1:-1]:
            recorder.record(event)
        (small_disk / "somebody-elses").unlink()
        recorder.record(events[-1])
    assert [json.loads(line) for line in (small_disk / "log.jsonl").read_text().splitlines()] == events
    assert caplog.text.count("No space left on device") == 1


def test_half_a_line_of_a_driver_that_was_killed_stays_a_line_of_its_own(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"kind": "step", "ep')
    with Recorder(tmp_path) as recorder:
        recorder.record(NOTE)
    with Recorder(tmp_path) as recorder:
        recorder.record(NOTE)
    assert (tmp_path / "log.jsonl").read_text().splitlines() == ['{"kind": "step", "ep', *[json.dumps(NOTE)] * 2]
