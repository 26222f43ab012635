"""Rank every user's held-out item against the whole catalogue, on any number of workers, exactly.

The product is one rank per user and split (`ranks.parquet`); every score is a function of these ranks. A popularity
baseline is ranked beside the model, in the same pass and by the same rule.
"""

import argparse
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raysrec.checkpoint_record import TrainingState
from raysrec.checkpoints import Checkpoints
from raysrec.cluster.bundles import need_to_rank, scale_to_rank
from raysrec.cluster.nodes import wait_for_nodes
from raysrec.cluster.runtime import ray_session
from raysrec.command_line import run_verb
from raysrec.config.run import RunConfig
from raysrec.data.prepared import PreparedData
from raysrec.data.preparing.fingerprint import prepared_folder
from raysrec.data.splits import HELD_OUT
from raysrec.metrics import RankSums
from raysrec.model_actors import done_by_actors
from raysrec.ranker import COVERAGE_K, Ranked, Ranker, units_of
from raysrec.report import print_runs
from raysrec.run_directory import RunDirectory, RunError
from raysrec.run_record import RunRecord, Score, Splits, SplitScores, TrainingSummary
from raysrec.tracking.mlflow_run import log_test_scores


def evaluate(run: RunDirectory, data: PreparedData, config: RunConfig) -> Splits:
    """Rank both splits with the run's model, write `ranks.parquet`, and return the scores of each split.

    Raises:
        SavedModelError: The run has no model yet.
        RuntimeError: Some user was not ranked exactly once.
    """
    ranks, recommended = _rank_with_ray(run, data, config)
    scores = {
        split: _scores(
            ranks.filter(pc.equal(ranks["split"], split)), recommended[split], config, data.manifest.num_ranked(split)
        )
        for split in HELD_OUT
    }
    run.save_ranks(ranks)
    return Splits(**scores)


def rank(run: RunDirectory, data: PreparedData, config: RunConfig, training: TrainingSummary) -> None:
    """Rank the held-out items by the best weights and write the scores, the last that a run needs to be finished.

    Args:
        run: Which.
        data: Its own.
        config: Its own, but for how and on what it is ranked.
        training: How it ended, as `training_summary` has it.
    """
    record = RunRecord(
        data=config.data.name,
        model=config.model.name,
        prepared=str(data.directory.absolute()),
        split=data.manifest.split.model_dump(mode="json"),
        evaluate=config.evaluate.model_dump(mode="json"),
        training=training,
        splits=evaluate(run, data, config),
    )
    run.save_record(record)
    log_test_scores(config, run.path, record)


def training_summary(run: RunDirectory, state: TrainingState) -> TrainingSummary:
    """How a run's training went, by its last state and its log."""
    trained = run.config()
    return TrainingSummary(
        supervision=trained.train.supervision,
        loss=state.loss,
        workers=trained.scale.max_workers,
        epochs=state.epoch,
        steps=state.step,
        best_epoch=state.best_epoch,
        seconds=state.elapsed_s,
        seconds_to_best=state.best_elapsed_s,
        cpu_seconds=state.cpu_s,
        cpu_seconds_to_best=state.best_cpu_s,
        ended_early=not state.finished,
        restarts=tuple(run.restarts()),
    )


def _rank_with_ray(run: RunDirectory, data: PreparedData, config: RunConfig) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """One row per user and split in order, and for each split which items were recommended to anybody."""
    make = partial(Ranker, str(run.path.absolute()), str(data.directory.absolute()), config.model_dump_json())
    recommended = {split: np.zeros(data.manifest.num_items + 1, dtype=bool) for split in HELD_OUT}
    tables: dict[str, list[pa.Table]] = {split: [] for split in HELD_OUT}
    for found in done_by_actors(make, units_of(data, config), scale_to_rank(config)):
        for split, ranked in found.items():
            recommended[split][ranked.top.ravel()] = True
            tables[split].append(_rank_table(split, ranked))
    return pa.concat_tables([table for split in HELD_OUT for table in tables[split]]), recommended


def _rank_table(split: str, ranked: Ranked) -> pa.Table:
    return pa.table(
        {
            "split": pa.array([split] * len(ranked.users), pa.string()),
            "user": pa.array(ranked.users, pa.int64()),
            "rank": pa.array(ranked.ranks, pa.int64()),
            "popularity_rank": pa.array(ranked.popularity_ranks, pa.int64()),
            "history_length": pa.array(ranked.lengths, pa.int64()),
        }
    )


def _scores(ranks: pa.Table, recommended: np.ndarray, config: RunConfig, num_users: int) -> SplitScores:
    users = ranks["user"].to_numpy()
    if len(users) != num_users or len(np.unique(users)) != len(users):
        raise RuntimeError(
            f"ranked {len(users)} users, {len(np.unique(users))} of them distinct, but the data has "
            f"{num_users} to rank; the ranking is not exact and is thrown away"
        )
    coverage = {f"coverage@{COVERAGE_K}": Score(mean=float(recommended[1:].mean()))}
    return SplitScores(
        users=len(users),
        model=_means(ranks["rank"], config) | coverage,
        popularity=_means(ranks["popularity_rank"], config),
    )


def _means(ranks: pa.ChunkedArray, config: RunConfig) -> dict[str, Score]:
    sums = RankSums.of(torch.from_numpy(ranks.to_numpy().copy()), config.evaluate.ks)
    intervals = sums.intervals()
    return {key: Score(mean=mean, low=intervals[key][0], high=intervals[key][1]) for key, mean in sums.means().items()}


def main(arguments: argparse.Namespace) -> None:
    """Rank again, with other `evaluate.*` or `scale.*` settings if asked, and print the table."""
    run = RunDirectory.open(arguments.run)
    config = run.config_with(arguments.overrides, only=("evaluate.", "scale."))
    record = run.record()
    training = record.training if record else training_summary(run, _trained(run))
    data = PreparedData.open(run.prepared() if record else prepared_folder(config.data))
    with ray_session(config.scale):
        wait_for_nodes([data.directory, run.path], need_to_rank(config))
        rank(run, data, config, training)
    print_runs([run.path])


def _trained(run: RunDirectory) -> TrainingState:
    """The last state of a training that was not ranked yet: a sweep's trial, also one that was ended early.

    Raises:
        RunError: It has not ended.
    """
    record = Checkpoints(run.checkpoints).last_record()
    # Weights to use are written when training is over, by itself or by a sweep's scheduler.
    if record is None or not run.has_model():
        raise RunError(f"{run.path}: has not finished training; run raysrec.train again to let it go on")
    if not record.state.finished:
        print(f"{run.path}: was ended early, after epoch {record.state.epoch}; its best weights are ranked")
    return record.state


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = argparse.ArgumentParser(
        prog="python -m raysrec.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command_line.add_argument("run", help="a run directory, for example runs/ml-1m-recgrela")
    command_line.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example scale.workers=4 evaluate.exclude_seen=true"
    )
    return command_line


if __name__ == "__main__":
    run_verb(main, parser())
