import json
from pathlib import Path

import pytest
import yaml
from run_folders import record_of

from raysrec.config.files import ConfigError
from raysrec.config.loading import validate
from raysrec.place import Place
from raysrec.run_directory import RunDirectory, RunError

NUM_ITEMS = 12
NUM_USERS = 5


def configure(name="recgrela", **settings):
    return validate({"model": {"name": name, "dim": 16}} | settings)


@pytest.fixture
def run(tmp_path):
    """A run that has been started."""
    run = RunDirectory(tmp_path / "runs" / "one")
    run.start(configure(), "0123456789abcdef")
    return run


def files(folder):
    folder = Path(folder)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_started_run_can_be_opened_and_holds_its_config(run):
    assert RunDirectory.open(run.path) == RunDirectory.open(str(run.path)) == run
    assert run.config() == configure()
    assert files(run.path) == ["config.yaml", "provenance.json"]


@pytest.mark.parametrize(
    ("path", "labels"),
    [
        ("runs/one", ("one", "")),
        ("runs/heads/trials/trial-003", ("heads", "trial-003")),
        ("s3://bucket/runs/heads/trials/trial-1003?region=here", ("heads", "trial-1003")),
        ("trials/mine", ("mine", "")),
    ],
)
def test_a_run_is_known_by_its_folder_and_a_trial_by_that_of_its_sweep(path, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RunDirectory(path).labels == labels
    assert RunDirectory(path).name == "/".join(filter(None, labels))


def test_a_run_that_was_ended_early_may_go_on_although_it_was_ranked(run):
    assert not run.is_finished()
    run.save_record(record_of(training={"ended_early": True}))
    assert not run.is_finished()
    run.save_record(record_of())
    assert run.is_finished()


def test_what_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError, match=r"is no run, it has no config\.yaml; name a folder that raysrec\.train has"):
            RunDirectory.open(path)


def test_the_config_of_a_run_is_whole_and_in_the_order_of_the_schema(run):
    written = yaml.safe_load(run.config_file.read_text())
    assert written == configure().model_dump(mode="json")
    assert list(written) == list(type(configure()).model_fields)


@pytest.mark.parametrize("content", ["", "[1]", "just text", b"\xff\xfe\x00"])
def test_what_is_no_configuration_at_all_is_refused(run, content):
    run.config_file.write(content)
    with pytest.raises(RunError, match=r"config\.yaml: is no configuration of a run: "):
        run.config()


@pytest.mark.parametrize("commit", ["0123456789ab", None])
def test_a_run_of_a_version_with_other_settings_says_which_and_what_to_do(run, commit):
    settings = yaml.safe_load(run.config_file.read_text())
    settings["train"]["learning_rates"] = 0.1
    run.config_file.write(yaml.safe_dump(settings))
    provenance = run.path / "provenance.json"
    provenance.write(json.dumps(json.loads(provenance.read_text()) | {"commit": commit}))
    with pytest.raises(RunError) as refused:
        run.config()
    text = str(refused.value)
    assert "config.yaml: is no configuration of a run of this version of raysrec" in text
    assert text.endswith("\ntrain.learning_rates is not a known key; did you mean train.learning_rate?")
    assert ("of commit 0123456789ab; use that, or begin again under another storage.name" in text) == bool(commit)


def test_what_a_run_was_trained_with_cannot_be_set_afterwards(run):
    config = run.config_with(["evaluate.exclude_seen=true", "scale.workers=3"], only=("evaluate.", "scale."))
    assert (config.evaluate.exclude_seen, config.scale.workers) == (True, 3)
    assert (config.model, config.train) == (run.config().model, run.config().train)
    with pytest.raises(RunError, match=r"^model.dim=3: the run is trained; .*set now is evaluate\.\*, data\.format$"):
        run.config_with(["model.dim=3"], only=("evaluate.", "data.format"))
    with pytest.raises(ConfigError, match=r"^evaluate.exclude_seen='maybe'"):
        run.config_with(["evaluate.exclude_seen=maybe"], only=("evaluate.",))


def test_metrics_say_that_a_run_is_finished(run):
    assert not run.metrics_file.exists()
    assert run.record() is None
    record = record_of(training={"loss": "softmax", "restarts": [{"kind": "start", "at": "now"}]}, prepared="a")
    run.save_record(record)
    assert run.record() == record
    said = json.loads(run.metrics_file.read_text())
    assert said["splits"]["test"]["model"] == {"ndcg@10": {"mean": 0.1}}  # nothing is said that is not known
    assert said["training"]["restarts"] == [{"kind": "start", "at": "now"}]


@pytest.mark.parametrize("content", [b'{"cut', b"\xff\xfe", b"[]", b"", b"[" * 100_000])
def test_files_that_are_damaged_are_named(run, content):
    run.metrics_file.local.write_bytes(content)
    with pytest.raises(RunError, match=r"metrics.json: .*(damaged|decode)"):
        run.record()
    (run.path / "provenance.json").local.write_bytes(content)
    with pytest.raises(RunError, match=r"provenance.json: "):
        run.start(run.config(), "fingerprint")


def test_a_run_that_goes_on_keeps_what_it_was_begun_with(run):
    begun = (run.path / "provenance.json").read_text()
    fingerprint = json.loads(begun)["data_fingerprint"]
    run.start(configure(), fingerprint)
    assert (run.path / "provenance.json").read_text() == begun
    with pytest.raises(RunError, match=f"was begun on data {fingerprint}, but the source now gives other"):
        run.start(configure(), "other")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": {"workers": 7}}, ""),
        ({"checkpoint": {"keep": 5}}, ""),
        ({"data": {"prepared": "elsewhere", "distributed": True}}, ""),
        ({"evaluate": {"device": "cpu"}}, ""),
        ({"storage": {"root": "moved", "name": "here"}}, ""),
        ({"data": {"num_streams": 3}}, "data.num_streams was 4 and is now 3"),
        ({"evaluate": {"exclude_seen": True}}, "evaluate.exclude_seen was False and is now True"),
    ],
)
def test_only_what_changes_no_number_may_be_another_when_a_run_goes_on(run, settings, said):
    assert run.other_settings(configure(**settings)) == said


def test_lines_of_the_log_that_say_nothing_are_counted_and_end_nothing(run):
    start = {"kind": "start", "workers": 1}
    half = '{"kind": "step", "ep'
    lines = [json.dumps(start), half, half + json.dumps(start), json.dumps(start | {"workers": 2}), half]
    (run.path / "log.jsonl").write("\n".join(lines))
    assert run.events() == ([start, start | {"workers": 2}], 2)
    assert run.restarts() == [start | {"workers": 2}]


def test_what_makes_a_run_look_whole_goes_first_and_its_settings_last(run, monkeypatch):
    for name in ("metrics.json", "log.jsonl", "checkpoints/step.json", "model/model.json"):
        (run.path / name).write("{}")
    gone, delete = [], Place.delete
    monkeypatch.setattr(Place, "delete", lambda place, **order: gone.append(place.name) or delete(place, **order))
    run.remove()
    assert gone[:2] == [run.path.name, "metrics.json"]
    assert sorted(gone[2:]) == ["checkpoints", "log.jsonl", "model", "provenance.json"]
    assert not run.path.exists()


def test_scores_that_do_not_say_their_data_are_refused(run):
    with pytest.raises(RunError, match=r"has not finished training"):
        run.prepared()
    run.save_record(record_of())
    with pytest.raises(RunError, match=r"metrics\.json: does not say `prepared`"):
        run.prepared()
