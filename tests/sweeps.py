"""Sweeps to try things on, without data and without Ray."""

import json

import yaml

from raysrec.sweep.loading import load_sweep

SETTINGS = {
    "data": {"synthetic": {"num_users": 401, "num_items": 50, "mean_length": 15}, "num_streams": 3},
    "model": {"name": "recgrela", "dim": 16, "num_blocks": 2, "max_length": 20},
    "train": {"epochs": 9, "batch_targets": 256, "learning_rate": 0.01},
    "scale": {"workers": 1, "threads_per_worker": 1},
}


def make_sweep(folder, space, *overrides, **settings):
    """A sweep over a small configuration, kept in this folder."""
    (folder / "base.yaml").write_text(yaml.safe_dump(SETTINGS, sort_keys=False))
    (folder / "search.yaml").write_text(yaml.safe_dump({"space": space, **settings}, sort_keys=False))
    places = [f"storage.root={folder / 'runs'}", f"data.prepared={folder / 'prepared'}", "storage.name=sweep"]
    return load_sweep(folder / "search.yaml", [folder / "base.yaml"], [*places, *overrides])


def validation(epoch, score, **more):
    """What a trial tells when it was validated."""
    return {"kind": "validation", "epoch": epoch, "validation/ndcg@10": score, "elapsed_s": 10.0 * epoch, **more}


def lines(directory):
    """What lies in `trials.jsonl`."""
    return [json.loads(line) for line in (directory.path / "trials.jsonl").read_text().splitlines()]
