"""Rank every user's held-out item against the whole catalogue, on any number of workers, exactly.

The product is one rank per user and split (`ranks.parquet`); every score is a function of these ranks. A popularity
baseline is ranked beside the model, in the same pass and by the same rule.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raysrec.checkpoints import Checkpoints, TrainingState
from raysrec.command_line import load, run_verb
from raysrec.config import RunConfig
from raysrec.data.batches import HeldOut
from raysrec.data.catalog import PreparedData, RowGroup
from raysrec.data.fingerprint import prepared_folder
from raysrec.data.loader import held_out
from raysrec.data.order import share_of_worker
from raysrec.data.reading import Reader, read_directly
from raysrec.data.splits import HELD_OUT
from raysrec.metrics import RankSums
from raysrec.mlflow_tracking import log_test_scores
from raysrec.models import SequenceModel
from raysrec.objective import choose_loss
from raysrec.ranking import rank_of_target, top_items
from raysrec.report import print_runs
from raysrec.resources import wait_for_room
from raysrec.run_directory import RunDirectory, RunError
from raysrec.runtime import ray_session, threads_per_worker, wants_gpu

COVERAGE_K = 10
"""Length of the lists whose distinct items are counted as coverage."""

UNITS_PER_WORKER = 8
"""Blocks of row groups that each worker ranks: enough that the workers end at about the same time."""


@dataclass(frozen=True)
class Ranked:
    """Ranks of some users' held-out items, 1 is best."""

    users: np.ndarray
    ranks: np.ndarray
    popularity_ranks: np.ndarray
    lengths: np.ndarray
    """Interactions before the held-out one."""
    top: np.ndarray
    """The COVERAGE_K best items of each user."""


def evaluate(run: RunDirectory, data: PreparedData, config: RunConfig) -> dict[str, Any]:
    """Rank both splits with the run's model, write `ranks.parquet`, and return the scores of each split.

    Raises:
        RunError: The run has no model yet.
        RuntimeError: Some user was not ranked exactly once.
    """
    ranks, recommended = _rank_with_ray(run, data, config)
    metrics = {
        split: _scores(
            ranks.filter(pc.equal(ranks["split"], split)), recommended[split], config, data.manifest.num_ranked(split)
        )
        for split in HELD_OUT
    }
    run.save_ranks(ranks)
    return metrics


def rank(run: RunDirectory, data: PreparedData, config: RunConfig, state: TrainingState) -> None:
    """Rank the held-out items by the best weights and write the scores, with which the run is finished."""
    use_gpu = wants_gpu(config.scale)
    splits = evaluate(run, data, config)
    record = {
        "data": config.data.name,
        "model": config.model.name,
        "prepared": str(data.directory.absolute()),
        "split": data.manifest.split.model_dump(mode="json"),
        "evaluate": config.evaluate.model_dump(mode="json"),
        "training": {
            "supervision": config.train.supervision,
            "loss": choose_loss(config.loss, run.load_model(), device="cuda" if use_gpu else "cpu").config.name,
            "workers": config.scale.max_workers,
            "epochs": state.epoch,
            "steps": state.step,
            "best_epoch": state.best_epoch,
            "seconds": state.elapsed_s,
            "seconds_to_best": state.best_elapsed_s,
            "cpu_seconds": state.cpu_s,
            "cpu_seconds_to_best": state.best_cpu_s,
            "restarts": run.restarts(),
        },
        "splits": splits,
    }
    run.save_metrics(record)
    log_test_scores(config, run.path, record)


def validation_sums(
    model: SequenceModel, data: PreparedData, config: RunConfig, read: Reader, *, worker: int, num_workers: int
) -> RankSums:
    """This worker's share of the validation ranks, as sums to be added over workers."""
    device = model.item_vectors().device
    groups = data.row_groups()
    mine = [groups[index] for index in share_of_worker(len(groups), worker=worker, num_workers=num_workers)]
    batches = held_out(read(mine), data.manifest.split, config, split="validation")
    ranks = [_ranks(model, batch.to(device), config)[0] for batch in batches]
    return RankSums.of(torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.long), config.evaluate.ks)


def rank_row_groups(
    model: SequenceModel, data: PreparedData, config: RunConfig, groups: Sequence[RowGroup], split: str
) -> Iterator[Ranked]:
    """Rank the held-out item of every user in these row groups, by the model and by popularity."""
    device = model.item_vectors().device
    popularity = torch.from_numpy(data.train_counts()).to(torch.float32)[:, None].to(device)
    for batch in held_out(read_directly(groups), data.manifest.split, config, split=split):
        batch = batch.to(device)
        ranks, states = _ranks(model, batch, config)
        flat = torch.ones(len(batch.users), 1, device=device)
        by_popularity = rank_of_target(
            flat, popularity, batch.targets, seen=batch.seen, items_per_chunk=config.evaluate.items_per_chunk
        )
        top, _ = top_items(
            states,
            model.item_vectors(),
            min(COVERAGE_K, data.manifest.num_items),
            bias=model.item_bias(),
            seen=batch.seen,
            items_per_chunk=config.evaluate.items_per_chunk,
        )
        yield Ranked(batch.users, ranks.cpu().numpy(), by_popularity.cpu().numpy(), batch.lengths, top.cpu().numpy())


@torch.inference_mode()
def _ranks(model: SequenceModel, batch: HeldOut, config: RunConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks of the targets, and the states they were ranked by."""
    states = model.read(batch.history)
    ranks = rank_of_target(
        states,
        model.item_vectors(),
        batch.targets,
        bias=model.item_bias(),
        seen=batch.seen,
        items_per_chunk=config.evaluate.items_per_chunk,
    )
    return ranks, states


def _rank_with_ray(run: RunDirectory, data: PreparedData, config: RunConfig) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """One row per user and split in order, and for each split which items were recommended to anybody."""
    import ray.data

    work = [{"group": group, "split": split} for split in HELD_OUT for group in range(len(data.row_groups()))]
    arguments = {
        "run": str(run.path.absolute()),
        "weights": run.weights_stamp(),
        "prepared": str(data.directory.absolute()),
        "config_json": config.model_dump_json(),
    }
    ranked = ray.data.from_items(
        work, override_num_blocks=min(len(work), UNITS_PER_WORKER * config.scale.max_workers)
    ).map_batches(
        _rank_units,
        fn_kwargs=arguments,
        compute=ray.data.TaskPoolStrategy(size=config.scale.max_workers),
        batch_size=None,
        num_cpus=1,
    )
    ranked.context.enable_progress_bars = False
    ranked.context.execution_options.preserve_order = True
    recommended = {split: np.zeros(data.manifest.num_items + 1, dtype=bool) for split in HELD_OUT}
    tables = []
    for block in ranked.iter_batches(batch_size=None, batch_format="numpy"):
        for split in HELD_OUT:
            recommended[split][block["top"][block["split"] == split].ravel()] = True
        tables.append(_rank_table(block))
    return pa.concat_tables(tables), recommended


def _rank_units(
    batch: dict[str, np.ndarray], *, run: str, weights: str, prepared: str, config_json: str
) -> dict[str, Any]:
    """A Ray Data task: rank the row groups of one block."""
    config = RunConfig.model_validate_json(config_json)
    torch.set_num_threads(threads_per_worker(config.scale))
    model, data = _loaded(run, weights, prepared)
    parts, splits = [_nobody(data)], []
    for group, split in zip(batch["group"].tolist(), batch["split"].tolist(), strict=True):
        for part in rank_row_groups(model, data, config, [data.row_groups()[group]], split):
            parts.append(part)
            splits += [split] * len(part.users)
    return {
        "split": np.array(splits, dtype=f"U{max(map(len, HELD_OUT))}"),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in Ranked.__annotations__},
    }


@functools.lru_cache(maxsize=1)
def _loaded(run: str, weights: str, prepared: str) -> tuple[SequenceModel, PreparedData]:
    """A process that ranks unit after unit loads the model once; `weights` tells new weights of a run from old."""
    return RunDirectory.open(run).load_model(), PreparedData.open(prepared)


def _nobody(data: PreparedData) -> Ranked:
    """Of no users: what row groups give in which nobody has an item to rank."""
    none = np.empty(0, np.int64)
    return Ranked(none, none, none, none, np.empty((0, min(COVERAGE_K, data.manifest.num_items)), np.int64))


def _rank_table(block: dict[str, np.ndarray]) -> pa.Table:
    return pa.table(
        {
            "split": pa.array(block["split"]).cast(pa.string()),
            "user": pa.array(block["users"], pa.int64()),
            "rank": pa.array(block["ranks"], pa.int64()),
            "popularity_rank": pa.array(block["popularity_ranks"], pa.int64()),
            "history_length": pa.array(block["lengths"], pa.int64()),
        }
    )


def _scores(ranks: pa.Table, recommended: np.ndarray, config: RunConfig, num_users: int) -> dict[str, Any]:
    users = ranks["user"].to_numpy()
    if len(users) != num_users or len(np.unique(users)) != len(users):
        raise RuntimeError(
            f"ranked {len(users)} users, {len(np.unique(users))} of them distinct, but the data has "
            f"{num_users} to rank; the ranking is not exact and is thrown away"
        )
    scores: dict[str, Any] = {"users": len(users)}
    for name, column in (("model", "rank"), ("popularity", "popularity_rank")):
        sums = RankSums.of(torch.from_numpy(ranks[column].to_numpy().copy()), config.evaluate.ks)
        intervals = sums.intervals()
        scores[name] = {
            key: {"mean": mean, "low": intervals[key][0], "high": intervals[key][1]}
            for key, mean in sums.means().items()
        }
    scores["model"][f"coverage@{COVERAGE_K}"] = {"mean": float(recommended[1:].mean())}
    return scores


def main(arguments: argparse.Namespace) -> None:
    """Rank again, with other `evaluate.*` or `scale.*` settings if asked, and print the table."""
    run = RunDirectory.open(arguments.run)
    with run.config_file.at_hand() as file:
        config = load([file], _only_ranking(arguments.overrides))
    record = run.metrics()
    trained = None if record else _trained(run)
    data = PreparedData.open(record["prepared"] if record else prepared_folder(config.data))
    with ray_session(config.scale):
        wait_for_room(config.scale, workers=1)
        if trained:
            rank(run, data, config, trained)
        elif record:
            record["splits"] = evaluate(run, data, config)
            record["evaluate"] = config.evaluate.model_dump(mode="json")
            run.save_metrics(record)
    print_runs([run.path])


def _trained(run: RunDirectory) -> TrainingState:
    """How a training ended that was never ranked, as that of a sweep's trial.

    Raises:
        RunError: It has not ended.
    """
    record = Checkpoints(run.checkpoints).last_record()
    if record is None or not record.state.finished:
        raise RunError(f"{run.path}: has not finished training; run raysrec.train again to let it go on")
    return record.state


def _only_ranking(overrides: list[str]) -> list[str]:
    """Refuse what would change another thing than how the trained model is ranked."""
    for override in overrides:
        if override.split(".")[0] not in ("evaluate", "scale"):
            raise RunError(
                f"{override}: the run is trained; only evaluate.* and scale.* can be set when it is ranked again"
            )
    return overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m raysrec.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run directory, for example runs/ml-1m-recgrela")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example scale.workers=4 evaluate.exclude_seen=true"
    )
    return parser


if __name__ == "__main__":
    # Ray's tasks find functions by the name of their module, which `__main__` is not.
    from raysrec import evaluate as module

    run_verb(module.main, _parser())
