"""Ranking and recommending on a real Ray, whose actors are killed for real: nobody can tell afterwards."""

import os
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mortal_actors import Doomed, MortalRanker, MortalRecommender
from test_recommend import histories, read, run_of, table_of, written

from raysrec import evaluate as ranking_verb
from raysrec import recommend as verb
from raysrec.checkpoint_record import TrainingState
from raysrec.cluster.runtime import ClusterError, ray_session
from raysrec.config import ScaleConfig
from raysrec.data.batching.reading import read_directly
from raysrec.data.splits import HELD_OUT
from raysrec.evaluate import evaluate, rank, training_summary
from raysrec.model_actors import done_by_actors
from raysrec.ranker import rank_tables
from raysrec.recommend import recommend
from raysrec.recommending.request import Request, users_file

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def local_ray():
    paths = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)  # where its processes find mortal_actors.py
        with ray_session(ScaleConfig(workers=2)):
            yield


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run whose data are in many row groups, which are recommended to in several parts."""
    monkeypatch.setattr("raysrec.data.preparing.writing.SMALLEST_ROW_GROUP", 64)
    monkeypatch.setattr("raysrec.recommending.asked.AT_ONCE", 200)
    run, config, data = run_of(tmp_path, "gru4rec")
    return run, config.model_copy(update={"scale": ScaleConfig(workers=2, threads_per_worker=1)}), data


def test_an_actor_that_is_killed_changes_no_rank(local_ray, finished, monkeypatch):
    run, config, data = finished
    monkeypatch.setattr(ranking_verb, "Ranker", MortalRanker)
    scores = evaluate(run, data, config)
    assert (run.path / "died").is_file()
    ranks = pq.read_table(run.ranks_file)
    model, found = run.load_model(), ranks.to_pydict()
    expected = [
        (split, *row)
        for split in HELD_OUT
        for part in rank_tables(model, data, config, read_directly(data.row_groups()), split)
        for row in zip(part.users.tolist(), part.ranks.tolist(), part.popularity_ranks.tolist(), strict=True)
    ]
    columns = (found[name] for name in ("split", "user", "rank", "popularity_rank"))
    assert sorted(zip(*columns, strict=True)) == sorted(expected)
    assert scores.test.users == data.manifest.num_ranked("test")
    test = np.array([row[2] for row in expected if row[0] == "test"])
    assert scores.test.model["hr@10"].mean == pytest.approx((test <= 10).mean())


def test_what_ranks_a_run_changes_nothing_that_is_said_of_its_training(local_ray, finished, monkeypatch):
    run, config, data = finished
    assert config.scale.max_workers != run.config().scale.max_workers
    rank(run, data, config, training_summary(run, TrainingState(epoch=3, finished=True, loss="gbce")))
    before = run.record()
    training = before.training
    assert (training.workers, training.loss) == (run.config().scale.max_workers, "gbce")
    told = []
    monkeypatch.setattr(ranking_verb, "log_test_scores", lambda config, path, record: told.append(record))
    ranking_verb.main(Namespace(run=run.path, overrides=["evaluate.exclude_seen=true"]))
    after = run.record()
    assert (before.evaluate["exclude_seen"], after.evaluate["exclude_seen"]) == (False, True)
    assert after.splits != before.splits
    assert after.training == training
    assert told == [after]


def test_an_actor_that_is_killed_changes_no_recommendation(local_ray, finished, tmp_path, monkeypatch, capfd):
    run, config, data = finished
    config = config.model_copy(update={"scale": ScaleConfig(workers=1, threads_per_worker=1)})
    monkeypatch.setattr(verb, "LARGE_INTERACTIONS", 0)  # the file is read by tasks, too
    users = users_file(written(table_of(histories(data)), tmp_path / "new.parquet"), config, [])
    monkeypatch.setattr(verb, "Recommender", MortalRecommender)
    manifest = recommend(run, config, Request(users=users), str(tmp_path / "killed"))
    assert (run.path / "died").is_file()
    assert "a process that held the model died" in capfd.readouterr().out
    assert len(manifest["files"]) > 4
    do_here = lambda make, work, scale: map(make(torch.device("cpu")), work)  # noqa: E731
    monkeypatch.setattr(verb, "done_by_actors", do_here)
    recommend(run, config, Request(users=users), str(tmp_path / "here"))
    assert read(tmp_path / "killed") == read(tmp_path / "here")


def test_work_that_kills_every_actor_ends_with_one_error(local_ray):
    results = done_by_actors(Doomed, [0, 1, 2], ScaleConfig(workers=1, max_failures=1), say=partial(str.strip))
    assert next(results) == 0
    with pytest.raises(ClusterError, match=r"died, 2 times in a row \(scale\.max_failures=1\).* lower evaluate\.batch"):
        list(results)
