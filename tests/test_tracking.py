"""What TensorBoard and an MLflow server are told of a run."""

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest
from run_folders import record_of

from raysrec.config.files import ConfigError
from raysrec.config.loading import validate
from raysrec.errors import LastingError
from raysrec.run_directory import RunDirectory
from raysrec.tracking import mlflow_run
from raysrec.tracking.hyperparameters import hyperparameters
from raysrec.tracking.mlflow_run import MlflowRun, log_test_scores, require_mlflow
from raysrec.tracking.recorder import Recorder

STEP = {
    "kind": "step",
    "epoch": 1,
    "step": 10,
    "progress": 0.5,
    "loss": 6.5,
    "learning_rate": 0.001,
    "targets_per_s": 100.0,
}
VALIDATION = {
    "kind": "validation",
    "epoch": 1,
    "step": 20,
    "elapsed_s": 7.5,
    "is_best": True,
    "validation/ndcg@10": 0.15,
}
SCORES = {"model": {"ndcg@10": {"mean": 0.14, "low": 0.1, "high": 0.2}, "coverage@10": {"mean": 0.5}}}
SCORES |= {"users": 3, "popularity": {}}
RECORD = record_of(
    training={"steps": 20, "best_epoch": 1, "seconds": 8.0, "seconds_to_best": 7.5},
    splits={"validation": SCORES, "test": SCORES},
)

has_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed; pip install 'raysrec[mlflow]'"
)


def config_of(uri="", **model):
    settings = {"data": {"name": "toys"}, "model": {"name": "recgrela", **model}, "storage": {"mlflow": uri}}
    return validate(settings)


@pytest.fixture
def run(tmp_path):
    """A run that has just begun, as RunDirectory.start leaves it."""

    def begin(config, name="run"):
        directory = RunDirectory(tmp_path / name)
        directory.start(config, "fingerprint")
        return directory

    return begin


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real tracking server, of `mlflow` or of what RAYSREC_MLFLOW_SERVER names.

    It needs other versions than raysrec's, so it is a program of another environment:
    python -m venv /tmp/mlflow && /tmp/mlflow/bin/pip install mlflow
    """
    program = os.environ.get("RAYSREC_MLFLOW_SERVER") or shutil.which("mlflow")
    if not program:
        pytest.skip("no MLflow server here; install mlflow elsewhere and name its program in RAYSREC_MLFLOW_SERVER")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [program, "server", "--backend-store-uri", f"sqlite:///{folder}/runs.db", "--host", "127.0.0.1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        for _ in range(120):
            if process.poll() is not None:
                pytest.skip(f"the MLflow server does not start: {(folder / 'log').read_text()[-300:]}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


def test_tensorboard_has_a_row_for_every_run_with_its_own_settings(tmp_path):
    for name, model in (("a", {"num_heads": 2}), ("b", {"name": "mamba4rec", "d_state": 16})):
        (tmp_path / name).mkdir()
        with Recorder(tmp_path / name, config_of(**model)) as recorder:
            recorder.record(VALIDATION)
    experiment, rows = hparams_tab(tmp_path)
    assert {"model.num_heads", "model.d_state", "train.learning_rate"} <= {
        info.name for info in experiment.hparam_infos
    }
    assert "validation/ndcg@10" in {info.name.tag for info in experiment.metric_infos}
    settings = {row.hparams["model.name"].string_value: row.hparams for row in rows}
    assert settings["recgrela"]["model.num_heads"].number_value == 2
    assert settings["mamba4rec"]["model.d_state"].number_value == 16
    assert "model.num_heads" not in settings["mamba4rec"]


def hparams_tab(folder):
    """What TensorBoard's own plugin makes of the files."""
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = data_provider.MultiplexerDataProvider(runs, str(folder))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    nobody = context.RequestContext()
    everything = api_pb2.GetExperimentRequest(include_metrics=True)
    experiment = get_experiment.Handler(nobody, backend, "", everything).run()
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=api_pb2.Status.values(), include_metrics=True
    )
    groups = list_session_groups.Handler(nobody, backend, "", asked).run().session_groups
    return experiment, groups


def test_settings_are_flat_and_plain():
    found = hyperparameters(config_of(num_heads=2))
    assert (found["model.num_heads"], found["data.name"], found["evaluate.ks"]) == (2, "toys", "[5, 10, 20]")
    assert {type(value) for value in found.values()} <= {bool, int, float, str}
    assert not any(key.startswith(("storage", "data.source")) for key in found)


@pytest.mark.parametrize("uri", ["http://me:secret@localhost:5000", "localhost"])
def test_an_address_that_is_none_or_holds_credentials_is_refused(uri):
    with pytest.raises(ConfigError, match=r"storage\.mlflow") as refused:
        config_of(uri)
    assert "secret" not in str(refused.value)


def test_mlflow_that_is_not_installed_is_an_error_before_anything_starts(monkeypatch):
    monkeypatch.setattr(mlflow_run.importlib.util, "find_spec", lambda name: None)
    require_mlflow(config_of())
    with pytest.raises(LastingError, match=r"storage\.mlflow=http://localhost:5000 needs MLflow.*raysrec\[mlflow\]"):
        require_mlflow(config_of("http://localhost:5000"))


@has_mlflow
def test_a_server_has_settings_scores_of_epochs_test_scores_and_the_configuration(server, run):
    from mlflow import MlflowClient

    config = config_of(server, num_heads=2)
    directory = run(config)
    for epoch in (1, 2):  # the second as after a restart of the driver
        tracker = MlflowRun(config, directory.path)
        tracker.record(STEP | {"step": 20 * epoch - 10})
        tracker.record(VALIDATION | {"step": 20 * epoch, "validation/ndcg@10": 0.1 * epoch})
        tracker.close()
    log_test_scores(config, directory.path, RECORD)
    client = MlflowClient(tracking_uri=server)
    (found,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert (found.data.params["model.num_heads"], found.data.params["train.learning_rate"]) == ("2", "0.001")
    history = client.get_metric_history(found.info.run_id, "validation/ndcg_at_10")
    assert [(one.step, one.value) for one in history] == [(20, 0.1), (40, 0.2)]
    assert [one.step for one in client.get_metric_history(found.info.run_id, "loss")] == [10, 30]
    assert (found.data.metrics["test/ndcg_at_10"], found.data.metrics["training/seconds"]) == (0.14, 8.0)
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["config.yaml"]
    assert json.loads((directory.path / "mlflow.json").read_text()) == {"server": server, "run": found.info.run_id}

    log_test_scores(config, run(config, "heads/trials/trial-003").path, RECORD)
    trial, _ = client.search_runs([found.info.experiment_id])
    assert trial.info.run_name == "heads/trial-003"
    assert (trial.data.tags["sweep"], trial.data.tags["trial"]) == ("heads", "trial-003")


@has_mlflow
def test_a_server_that_fails_ends_nothing_and_is_said(run, caplog, monkeypatch):
    monkeypatch.setattr(mlflow_run, "LAST_TRY_S", 1.0)
    address = f"http://127.0.0.1:{free_port()}"
    config = config_of(address)
    directory = run(config)
    with caplog.at_level(logging.WARNING, "raysrec.tracking.mlflow_run"):
        tracker = MlflowRun(config, directory.path)
        tracker.record(STEP)
        tracker.record(VALIDATION)
        tracker.close()
        log_test_scores(config, directory.path, RECORD)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("raysrec")]
    assert len(said) == 3
    assert "training goes on, and it is tried again" in said[0]
    assert said[1] == f"MLflow at {address}: the last 2 events are not there; log.jsonl has them"
    assert "the test scores are not there; metrics.json has them" in said[2]
