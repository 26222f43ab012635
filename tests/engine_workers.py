"""Engines in real gloo processes: small configurations, micro-batches, and what a worker is told to do with them."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from processes import run_together

from raysrec.config.run import RunConfig
from raysrec.engine import build_engine, saved_state
from raysrec.history import Batch, History
from raysrec.models import MODELS, build_model
from raysrec.objective import Objective

NUM_ITEMS = 30
NUM_USERS = 12

SMALL = {
    name: {
        "name": name,
        "dim": 8,
        "dropout": 0.0,
        **({"num_heads": 2} if "num_heads" in model.Config.model_fields else {}),
        **({"num_blocks": 1} if "num_blocks" in model.Config.model_fields else {}),
        **{field: 0.0 for field in model.Config.model_fields if "drop" in field},
    }
    for name, model in MODELS.items()
}


def configure(model="recgrela", optimizer="adam", loss="softmax", dropout=0.0, clip_norm=0.5, **engine):
    causal = build_model(MODELS[model].Config.model_validate(SMALL[model]), NUM_ITEMS, NUM_USERS).causal
    return RunConfig.model_validate(
        {
            "model": SMALL[model] | {"dropout": dropout},
            "loss": {"name": loss, **({} if loss == "softmax" else {"negatives": 4})},
            "train": {
                "learning_rate": 0.01,
                "clip_norm": clip_norm,
                "weight_decay": 0.1,
                "optimizer": optimizer,
                "supervision": "every_position" if causal else "last_position",
            },
            "engine": engine,
        }
    )


def objective_of(config):
    model = build_model(config.model, NUM_ITEMS, NUM_USERS)
    return Objective(model, config.loss, reads_last=config.train.supervision == "last_position")


def engine_of(config, *, seed=0):
    torch.manual_seed(seed)
    return build_engine(objective_of(config), config, torch.device("cpu"))


def batch_of(seed, rows):
    draw = torch.Generator().manual_seed(seed)
    items = torch.randint(1, NUM_ITEMS + 1, (rows, 7), generator=draw)
    lengths = torch.randint(2, 7, (rows,), generator=draw)
    real = torch.arange(6) < lengths[:, None]
    users = torch.randint(1, NUM_USERS + 1, (rows,), generator=draw)
    history = History(items[:, :6] * real, torch.zeros_like(items[:, :6]), lengths, users)
    return Batch(history, items[:, 1:] * real, seed)


def micro_batches(step):
    """Three micro-batches of unequal size: with two workers one gets two of them and the other one."""
    return [batch_of(10 * step + index, rows) for index, rows in enumerate((5, 2, 3))]


def share(step, worker, num_workers):
    """What a worker learns from at a step; at every third all of it is on worker 0."""
    if step % 3 == 2:
        return micro_batches(step) if worker == 0 else []
    return micro_batches(step)[worker::num_workers]


@dataclass(frozen=True)
class Training:
    """Steps that an engine makes, and the files it begins with and writes."""

    config: RunConfig
    steps: range = field(default_factory=lambda: range(3))
    restored_from: Path | None = None
    saves_in: Path | None = None
    save_after: int = -1
    """Step after which it saves; before the first for -1."""

    def run(self, worker=0, num_workers=1):
        """Losses by step, and the weights."""
        engine = engine_of(self.config, seed=0 if self.restored_from is None else 1)
        if self.restored_from is not None:
            engine.restore(saved_state(sorted(self.restored_from.glob("*.safetensors"))))
        snapshot = engine.snapshot() if self.saves_in and self.save_after < 0 else None
        losses = []
        for step in self.steps:
            result = engine.step(share(step, worker, num_workers), learning_rate=0.01)
            losses.append(result.loss / result.targets)
            if step == self.save_after:
                snapshot = engine.snapshot()
        if self.saves_in:
            # Only now, so that it is seen if the steps in between had changed it.
            self.saves_in.mkdir(exist_ok=True)
            snapshot.save(self.saves_in / snapshot.file_name)
        assert engine.step([], learning_rate=0.01).targets == 0
        return losses, engine.weights()


def on_workers(num_workers, folder, jobs):
    """What worker 0 gives back of each job, all done by the same processes one after another."""
    run_together(_work, num_workers, folder, folder, jobs)
    return {name: torch.load(folder / f"{name}.pt", weights_only=False) for name in jobs}


def _work(worker, num_workers, folder, jobs):
    for name, job in jobs.items():
        outcome = job.run(worker, num_workers)
        dist.barrier()
        if worker == 0:
            torch.save(outcome, f"{folder}/{name}.pt")
