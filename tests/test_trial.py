"""What a trial tells its sweep, whatever happens to it; the training itself is in test_train.py and test_tune.py."""

import contextlib
import json

import pytest
from sweeps import make_sweep, validation

from raysrec.checkpoint_record import TrainingState
from raysrec.checkpoints import Checkpoints
from raysrec.evaluate import _trained
from raysrec.models import build_model
from raysrec.prepare import prepare
from raysrec.run_directory import RunDirectory, RunError, RunStopped
from raysrec.tuning import trial


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Trains a trial by a stand-in for `learn`, without Ray; what it told, and its run."""
    from ray import tune

    sweep = make_sweep(tmp_path, {"model.num_blocks": {"grid": [1, 2]}})
    config = sweep.config_of("trial-000", {"model.num_blocks": 1})
    data = prepare(config.data)
    given = {"config": config.model_dump_json(), "prepared": str(data.directory), "command": ["tune"], "rank": False}
    reports = []
    monkeypatch.setattr(tune, "report", reports.append)
    monkeypatch.setattr(trial, "ray_session", lambda scale: contextlib.nullcontext())
    monkeypatch.setattr(trial, "wait_for_room", lambda need, say: None)
    monkeypatch.setattr(trial, "is_trained_now", lambda run: False)

    def train(learn, **changes):
        monkeypatch.setattr(trial, "learn", lambda run, data, config, show: learn(run, show))
        trial.train_trial({**given, **changes})
        return [json.loads(report["event"]) for report in reports], RunDirectory(config.run_directory)

    train.sweep, train.data, train.config = sweep, data, config
    return train


def test_every_validation_is_told_and_steps_now_and_then(told):
    def learn(run, show):
        for step in range(1, 6):
            show({"kind": "step", "step": step})
        show(validation(1, 0.1))
        return TrainingState(finished=True)

    events, run = told(learn)
    assert [event["kind"] for event in events] == ["step", "validation", "end"]
    assert events[-1] == {"kind": "end", "state": "finished"}
    assert json.loads((run.path / "provenance.json").read_text())["command"] == ["tune"]


def test_what_cannot_be_trained_is_told_in_words_and_ends_nothing_else(told):
    def learn(run, show):
        raise RunError("trials/trial-000: the loss is NaN")

    assert told(learn)[0] == [{"kind": "end", "state": "failed", "why": "trials/trial-000: the loss is NaN"}]


def test_a_run_of_other_settings_is_not_gone_on_with(told):
    told(lambda run, show: TrainingState(finished=True))
    other = told.sweep.config_of("trial-000", {"model.num_blocks": 2})
    (event,) = told(lambda run, show: pytest.fail("it was trained"), config=other.model_dump_json())[0][1:]
    assert event["state"] == "failed"
    assert "model.num_blocks was 1 and is now 2; --fresh" in event["why"]


def test_a_trial_that_is_ended_early_leaves_its_best_weights_to_use_and_one_that_goes_on_does_not(
    told, monkeypatch, capsys
):
    weights = build_model(told.config.model, told.data.manifest.num_items).state_dict()
    state = TrainingState(epoch=3, best_epoch=2, best_score=0.25, best_elapsed_s=20.0, elapsed_s=31.0)
    monkeypatch.setattr(trial, "best_so_far", lambda run: (state, weights))

    class Record:
        pass

    Record.state = state
    monkeypatch.setattr(Checkpoints, "last_record", lambda self: Record)

    def stopped(by):
        def learn(run, show):
            raise RunStopped(f"stopped by {by}", by)

        return learn

    best = {"best": [2, 0.25, 20.0], "seconds": 31.0}
    events, run = told(stopped("SIGTERM"))
    assert events == [{"kind": "end", "state": "interrupted", **best}]
    with pytest.raises(RunError, match=r"trial-000: has not finished training; run raysrec\.train again"):
        _trained(run)

    events, run = told(stopped(trial.SCHEDULER))
    assert events[-1] == {"kind": "end", "state": "stopped", **best}
    assert run.load_model().state_dict().keys() == weights.keys()
    assert not run.metrics_file.is_file()
    assert _trained(run) == state
    assert f"{run.path}: was ended early, after epoch 3; its best weights are ranked" in capsys.readouterr().out
