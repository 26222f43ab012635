"""The main job on a real Ray on this machine: trained and ranked, with one, two and three workers."""

import json
import shutil

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raysrec.cluster.runtime import ray_session
from raysrec.config import ScaleConfig
from raysrec.config.loading import validate
from raysrec.config.settings import nest, overlay
from raysrec.data.batching.ray_reading import read_with_ray
from raysrec.data.batching.reading import read_directly
from raysrec.evaluate import evaluate
from raysrec.prepare import prepare
from raysrec.run_directory import RunDirectory, RunError
from raysrec.train import train

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SETTINGS = {
    "data": {"synthetic": {"num_users": 401, "num_items": 50, "mean_length": 15}, "num_streams": 3},
    "model": {"name": "recgrela", "dim": 16, "num_blocks": 2, "max_length": 20, "dropout": 0.0, "drop_path": 0.0},
    "train": {"epochs": 3, "batch_targets": 256, "learning_rate": 0.01, "warmup_steps": 5, "schedule": "cosine"},
    "scale": {"workers": 2, "threads_per_worker": 1},
}


@pytest.fixture(scope="module")
def local_ray():
    with ray_session(ScaleConfig(workers=3)):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


def configure(folder, name, **changes):
    settings = overlay(SETTINGS, {"storage": {"root": str(folder / "runs"), "name": name}})
    settings = overlay(settings, nest("data.prepared", str(folder / "prepared")))
    for key, value in changes.items():
        settings = overlay(settings, nest(key.replace("__", "."), value))
    return validate(settings)


def events(run, kind):
    lines = (run.path / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def epoch_learned_before_each_validation(run):
    """Of the last step that is in the log before the scores of each validated epoch."""
    epochs = {"step": 0}
    found = []
    for line in (run.path / "log.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "validation":
            found.append(epochs["step"])
        epochs[event["kind"]] = event.get("epoch")
    return found


def validation_scores(run):
    return [[value for name, value in event.items() if "@" in name] for event in events(run, "validation")]


@pytest.fixture(scope="module")
def undisturbed(local_ray, folder):
    return train(configure(folder, "undisturbed"))


def test_a_run_leaves_everything_it_promises(undisturbed):
    left = {path.name for path in undisturbed.path.local.iterdir()}
    assert {
        "config.yaml",
        "provenance.json",
        "log.jsonl",
        "tensorboard",
        "checkpoints",
        "model",
        "ranks.parquet",
        "metrics.json",
    } <= left
    record = json.loads(undisturbed.metrics_file.read_text())
    test = record["splits"]["test"]
    assert test["users"] == pq.read_table(undisturbed.ranks_file).num_rows // 2
    assert test["model"]["ndcg@10"]["low"] < test["model"]["ndcg@10"]["mean"] < test["model"]["ndcg@10"]["high"]
    assert test["popularity"]["ndcg@10"]["mean"] > 0
    assert len(events(undisturbed, "validation")) == 3
    assert set(events(undisturbed, "step")[-1]) >= {
        "loss",
        "targets_per_s",
        "tokens_per_s",
        "padding_share",
        "data_wait_share",
        "left_s",
    }


def test_best_weights_are_the_ones_that_were_validated_best(undisturbed):
    record = json.loads(undisturbed.metrics_file.read_text())
    best = max(event["validation/ndcg@10"] for event in events(undisturbed, "validation"))
    assert record["splits"]["validation"]["model"]["ndcg@10"]["mean"] == pytest.approx(best, abs=1e-9)


def test_validated_beside_its_workers_a_run_ends_the_same(undisturbed, folder):
    run = train(configure(folder, "beside", evaluate__concurrent=True))
    assert len(validation_scores(run)) == 3
    for scores, expected in zip(validation_scores(run), validation_scores(undisturbed), strict=True):
        assert scores == pytest.approx(expected, abs=1e-12)
    record, expected = (json.loads(one.metrics_file.read_text()) for one in (run, undisturbed))
    assert record["training"]["best_epoch"] == expected["training"]["best_epoch"]
    assert record["splits"] == expected["splits"]
    # Nobody waits for an epoch's scores but at the end, when nothing is left to learn.
    assert epoch_learned_before_each_validation(undisturbed) == [1, 2, 3]
    assert epoch_learned_before_each_validation(run) == [2, 3, 3]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_ranks_do_not_depend_on_the_number_of_workers(undisturbed, folder, workers, exclude_seen):
    config = configure(folder, "undisturbed", scale__workers=workers, evaluate__exclude_seen=exclude_seen)
    data = prepare(config.data)
    scores = evaluate(undisturbed, data, config)
    ranks = pq.read_table(undisturbed.ranks_file)
    expected = brute_force_ranks(undisturbed, data, config)
    found = {
        (split, user): rank
        for split, user, rank in zip(*(ranks[c].to_pylist() for c in ("split", "user", "rank")), strict=True)
    }
    assert found == expected
    test = np.array([rank for (split, _), rank in expected.items() if split == "test"])
    gains = np.where(test <= 10, 1 / np.log2(test + 1), 0)
    assert scores.test.model["ndcg@10"].mean == pytest.approx(gains.mean(), abs=1e-6)


def brute_force_ranks(run, data, config):
    """Rank of each user's held-out items by scoring one history at a time and comparing in NumPy."""
    import torch

    from raysrec.history import History

    model = run.load_model()
    vectors = model.item_vectors().detach().numpy()
    expected = {}
    for table in read_directly(data.row_groups()):
        for user, items in zip(table["user"].to_pylist(), table["items"].to_pylist(), strict=True):
            for split, end in (("validation", len(items) - 2), ("test", len(items) - 1)):
                past = torch.tensor([items[max(0, end - config.model.max_length) : end]])
                with torch.inference_mode():
                    state = model.encode(History(past, torch.zeros_like(past), torch.tensor([past.shape[1]])))[0, -1]
                scores = vectors @ state.numpy()
                candidates = np.ones(len(scores), dtype=bool)
                candidates[0] = False
                if config.evaluate.exclude_seen:
                    candidates[items[:end]] = False
                candidates[items[end]] = False
                # Float32 sums in another order differ in the last bits; a tie of different items does not occur here.
                expected[split, user] = 1 + int((scores[candidates] >= scores[items[end]]).sum())
    return expected


def test_ray_reads_the_same_tables_in_the_same_order(local_ray, folder):
    groups = prepare(configure(folder, "reading").data).row_groups()
    order = [*groups[::-1], *groups[:3]]
    by_ray, directly = list(read_with_ray(order)), list(read_directly(order))
    assert len(by_ray) == len(directly) == len(order)
    assert all(one.cast(other.schema).equals(other) for one, other in zip(by_ray, directly, strict=True))


def test_a_run_that_was_trained_but_not_ranked_is_only_ranked(undisturbed, folder):
    before, log = json.loads(undisturbed.metrics_file.read_text()), undisturbed.path / "log.jsonl"
    lines = len(log.read_text().splitlines())
    undisturbed.metrics_file.delete()
    train(configure(folder, "undisturbed"))
    after = json.loads(undisturbed.metrics_file.read_text())
    assert after["splits"] == before["splits"]
    assert after["training"]["best_epoch"] == before["training"]["best_epoch"]
    assert [event for event in map(json.loads, log.read_text().splitlines()[lines:]) if event["kind"] == "step"] == []


def test_fresh_starts_over_and_removes_nothing_but_a_run(undisturbed, folder):
    first = RunDirectory(folder / "runs" / "fresh")
    shutil.copytree(undisturbed.path.local, first.path.local)
    started_at = json.loads((first.path / "provenance.json").read_text())["started_at"]
    settings = {"model": {"name": "popularity"}, "train": {"epochs": 1}}
    again = train(of_another_model(folder, "fresh", settings), fresh=True)
    assert len(events(again, "validation")) == 1
    record = json.loads(again.metrics_file.read_text())
    scores = record["splits"]["test"]
    assert scores["users"] == 401
    assert scores["model"]["ndcg@10"] == scores["popularity"]["ndcg@10"]
    assert record["training"]["loss"] == "softmax"
    assert type(again.load_model()).__name__ == "Popularity"
    assert json.loads((again.path / "provenance.json").read_text())["started_at"] > started_at
    (folder / "runs" / "mine").mkdir()
    with pytest.raises(RunError, match=r"is no run, it has no config\.yaml"):
        train(configure(folder, "mine"), fresh=True)
    assert (folder / "runs" / "mine").is_dir()


def test_a_finished_run_is_not_trained_again_and_other_settings_are_refused(undisturbed, folder):
    written = {file: file.stat().st_mtime_ns for file in undisturbed.path.local.rglob("*") if file.is_file()}
    assert train(configure(folder, "undisturbed")).path == undisturbed.path
    assert written == {file: file.stat().st_mtime_ns for file in undisturbed.path.local.rglob("*") if file.is_file()}
    with pytest.raises(RunError, match=r"train\.epochs was 3 and is now 4"):
        train(configure(folder, "undisturbed", train__epochs=4))


def of_another_model(folder, name, settings):
    common = {key: SETTINGS[key] for key in ("data", "train", "scale")}
    places = {"storage": {"root": str(folder / "runs"), "name": name}, "data": {"prepared": str(folder / "prepared")}}
    return validate(overlay(overlay(common, settings), places))


def test_a_temporal_split_is_trained_validated_and_ranked_on_any_number_of_workers(local_ray, folder, monkeypatch):
    """Most users have no item to rank in a time, and in whole row groups nobody has; the model has users' vectors."""
    monkeypatch.setattr("raysrec.data.preparing.writing.SMALLEST_ROW_GROUP", 64)
    settings = {
        "data": {"split": {"name": "temporal", "validation_share": 0.05, "test_share": 0.05}},
        "model": {"name": "caser", "max_length": 5},
        "train": {"epochs": 1, "supervision": "last_position", "prefixes_per_user": 3},
    }
    config = of_another_model(folder, "temporal", settings)
    data = prepare(config.data)
    manifest = data.manifest
    run = train(config)
    first = pq.read_table(run.ranks_file)
    for name in ("validation", "test"):
        ranked = first.filter(pc.equal(first["split"], name))["user"].to_pylist()
        assert len(set(ranked)) == len(ranked) == manifest.num_ranked(name) < manifest.num_users // 2
        assert json.loads(run.metrics_file.read_text())["splits"][name]["users"] == len(ranked)
    assert json.loads(run.metrics_file.read_text())["training"]["loss"] == "softmax"
    assert type(run.load_model()).__name__ == "Caser"
    evaluate(run, data, of_another_model(folder, "temporal", overlay(settings, {"scale": {"workers": 3}})))
    assert pq.read_table(run.ranks_file).equals(first)
