"""What the driver of a training refuses before a cluster starts, and how it ends when it is asked to."""

import pytest
from run_folders import record_of

from raysrec.checkpoint_record import TrainingState
from raysrec.config.loading import validate
from raysrec.models import build_model
from raysrec.run_directory import RunDirectory, RunError, RunStopped
from raysrec.train import prepare_to_learn, train
from raysrec.training import driver
from raysrec.training.driver import learn


@pytest.fixture
def config(tmp_path):
    return validate(
        {
            "data": {"prepared": str(tmp_path / "prepared"), "synthetic": {"num_users": 40, "num_items": 20}},
            "model": {"name": "sasrec", "dim": 8, "max_length": 8},
            "storage": {"root": str(tmp_path / "runs"), "name": "one"},
        }
    )


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_holds_a_sweep_is_left_alone(config, fresh):
    sweep = config.run_directory / "sweep.yaml"
    sweep.write("sweep: {}")
    with pytest.raises(RunError, match=r"one holds a sweep, not a run; set storage\.name to keep both"):
        train(config, fresh=fresh)
    assert [info.base_name for info in config.run_directory.below()] == ["sweep.yaml"]


def test_what_is_left_of_a_run_counts_for_no_other_settings(config):
    run = RunDirectory(config.run_directory)
    run.save_record(record_of())
    with pytest.raises(RunError, match=r"one holds a part of a run, without its config\.yaml; delete it"):
        train(config)


def test_a_signal_that_came_when_training_had_just_ended_is_not_forgotten(config, monkeypatch):
    data, run = prepare_to_learn(config), RunDirectory(config.run_directory)
    weights = build_model(config.model, data.manifest.num_items).state_dict()
    ended = (TrainingState(epoch=3, finished=True), weights, "SIGTERM")
    monkeypatch.setattr(driver, "_train_on_workers", lambda *_: ended)
    with pytest.raises(RunStopped, match="stopped by SIGTERM, after training; the same command ranks it") as stopped:
        learn(run, data, config)
    assert stopped.value.by == "SIGTERM"
    assert run.has_model()
