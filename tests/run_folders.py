"""Run directories as a training leaves them, made without one: real files, ranks drawn from a seed."""

import json

import numpy as np
import pyarrow as pa
import torch

from raysrec.config.loading import validate
from raysrec.metrics import RankSums
from raysrec.run_directory import RunDirectory
from raysrec.run_record import RunRecord

USERS, ITEMS = 300, 200


def held_out(seed=0):
    """Whose targets are ranked: history lengths and places by popularity of every user, the same for a seed."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 80, USERS), rng.integers(1, ITEMS + 1, USERS)


def record_of(**told):
    """A record that says no more than it must, and what it is told to."""
    split = {"users": 1, "model": {"ndcg@10": {"mean": 0.1}}, "popularity": {"ndcg@10": {"mean": 0.1}}}
    training = {"workers": 1, "best_epoch": 1, "seconds": 1.0, "seconds_to_best": 1.0} | told.pop("training", {})
    known = {"data": "toys", "training": training, "splits": {"validation": split, "test": split}}
    return RunRecord.model_validate(known | told)


def run_folder(
    path, *, model="recgrela", share=0.05, seed=0, targets=0, finished=True, data="ml-1m", settings=None, **record
):
    """A run whose ranks are geometric with this chance of the first place; its log has 4 epochs and a restart."""
    run = RunDirectory(path)
    overlaid = {
        "data": {"name": data},
        "model": {"name": model},
        "train": {"epochs": 4, "seed": seed},
        **(settings or {}),
    }
    run.start(validate(overlaid), "fingerprint")
    (path / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log(share)))
    if not finished:
        return path
    lengths, popularity = held_out(targets)
    rng = np.random.default_rng(seed + 100)
    ranks = {split: np.minimum(rng.geometric(share, USERS), ITEMS) for split in ("validation", "test")}
    run.save_ranks(
        pa.concat_tables(
            pa.table(
                {
                    "split": [split] * USERS,
                    "user": np.arange(1, USERS + 1),
                    "rank": ranks[split],
                    "popularity_rank": popularity,
                    "history_length": lengths,
                }
            )
            for split in ranks
        )
    )
    (path / "model").mkdir(exist_ok=True)
    (path / "model" / "model.json").write_text(json.dumps({"model": {"name": model}, "num_items": ITEMS}))
    training = {"supervision": "every_position", "loss": "softmax", "workers": 2, "epochs": 4, "steps": 40}
    training |= {"best_epoch": 4, "seconds": 123.4, "seconds_to_best": 99.6}
    other = {"coverage@10": {"mean": 0.5}}
    splits = {
        split: {
            "users": USERS,
            "model": scores(ranks[split]) | other,
            "popularity": scores(popularity),
        }
        for split in ranks
    }
    known = {"data": data, "model": model, "evaluate": {"exclude_seen": False}}
    run.save_record(record_of(training=training, splits=splits, **(known | record)))
    return path


def three_runs(folder):
    """Two finished runs on the same targets and one that is not finished."""
    better = run_folder(folder / "better", share=0.12, seed=1)
    worse = run_folder(folder / "worse", model="mamba4rec", share=0.05, seed=2)
    going = run_folder(folder / "going", model="sasrec", finished=False)
    return [worse, better, going]


def scores(ranks):
    sums = RankSums.of(torch.from_numpy(np.array(ranks)))
    bounds = sums.intervals()
    return {
        name: {"mean": mean, "low": bounds[name][0], "high": bounds[name][1]} for name, mean in sums.means().items()
    }


def log(level):
    """Ten steps and a validation an epoch; training goes on from the end of epoch 2 when epoch 3 has begun."""
    yield {"kind": "start", "epoch": 1, "step": 0, "workers": 2, "at": "2026-01-02T03:04:05+00:00", "text": ""}
    for epoch in (1, 2):
        yield from one_epoch(epoch, level)
    yield step(25, 99.0)
    yield {"kind": "failure", "at": "2026-01-02T03:05:05+00:00", "text": "a worker was lost; starting again"}
    yield {"kind": "start", "epoch": 3, "step": 20, "workers": 2, "at": "2026-01-02T03:05:25+00:00", "text": "going on"}
    for epoch in (3, 4):
        yield from one_epoch(epoch, level)


def one_epoch(epoch, level):
    for number in range(10 * epoch - 9, 10 * epoch + 1):
        yield step(number, 6.0 - number / 10)
    score = {"validation/ndcg@10": level * epoch, "validation/hr@10": 2 * level * epoch}
    yield {
        "kind": "validation",
        "epoch": epoch,
        "step": 10 * epoch,
        "elapsed_s": 25.0 * epoch,
        "is_best": True,
        **score,
    }
    yield {"kind": "checkpoint", "epoch": epoch, "step": 10 * epoch, "seconds": 0.5, "stalled_s": 0.01, "bytes": 1000}


def step(number, loss):
    speed = {"targets_per_s": 1000.0, "tokens_per_s": 1100.0, "padding_share": 0.1, "data_wait_share": 0.01}
    place = {"epoch": 1 + (number - 1) // 10, "step": number, "progress": number / 10, "share_done": number / 40}
    times = {"elapsed_s": 2.5 * number, "left_s": 100.0 - 2.5 * number}
    return {"kind": "step", **place, "loss": loss, "learning_rate": 0.001, **speed, **times}
