import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raysrec.config import RunConfig, TrainConfig
from raysrec.engine import FixedEngine, build_engine, deepspeed_config, learning_rate, share_done
from raysrec.history import Batch, History
from raysrec.models import MODELS, build_model
from raysrec.objective import Objective

NUM_ITEMS = 30
NUM_USERS = 12
STEPS = 3


SENSITIVE = {"eulerformer"}
"""Its contrast is a mean over a micro-batch, and which micro-batches a worker has is another mean of means."""

SMALL = {
    name: {
        "name": name,
        "dim": 8,
        "dropout": 0.0,
        **({"num_heads": 2} if "num_heads" in model.Config.model_fields else {}),
        **{field: 0.0 for field in model.Config.model_fields if "drop" in field},
    }
    for name, model in MODELS.items()
}


def configure(model="recgrela", optimizer="adam", loss="softmax", **engine):
    causal = build_model(MODELS[model].Config.model_validate(SMALL[model]), NUM_ITEMS, NUM_USERS).causal
    return RunConfig.model_validate(
        {
            "model": SMALL[model],
            "loss": {"name": loss, **({} if loss == "softmax" else {"negatives": 4})},
            "train": {
                "learning_rate": 0.01,
                "clip_norm": 0.5,
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


def learn(config, worker=0, num_workers=1, directory=None, save_after=None):
    """Losses and weights after a few steps; the last step's data is all on worker 0."""
    torch.manual_seed(0)
    engine = build_engine(objective_of(config), config, torch.device("cpu"))
    losses = []
    start = 0
    if directory is not None and save_after is None:
        engine.load(Path(directory))
        start = 2
    for step in range(start, STEPS):
        mine = (
            micro_batches(step)[worker::num_workers]
            if step < STEPS - 1
            else (micro_batches(step) if worker == 0 else [])
        )
        result = engine.step(mine, learning_rate=0.01)
        losses.append(result.loss / result.targets)
        if save_after == step:
            engine.save(Path(directory))
    assert engine.step([], learning_rate=0.01).targets == 0
    return losses, engine.weights()


def _worker(worker, num_workers, folder, runs):
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(worker)  # as a launcher sets it
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=worker, world_size=num_workers)
    for name, (config, arguments) in runs.items():
        (Path(folder) / name).mkdir(exist_ok=True)
        outcome = learn(config, worker, num_workers, **arguments)
        if worker == 0:
            torch.save(outcome, f"{folder}/{name}.pt")
    dist.destroy_process_group()


def on_two_workers(folder, runs):
    mp.spawn(_worker, (2, str(folder), runs), nprocs=2)
    return {name: torch.load(folder / f"{name}.pt") for name in runs}


def assert_same(one, other, tolerance=2e-6):
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "bce", "sampled_softmax"])
def test_two_workers_learn_what_one_does(tmp_path, loss):
    # What a loss draws does not depend on the model, so one is enough for those that draw.
    models = [model for model in MODELS if model not in SENSITIVE] if loss == "softmax" else ["recgrela"]
    runs = {model: (configure(model, loss=loss, name="torch"), {}) for model in models}
    outcomes = on_two_workers(tmp_path, runs)
    for model, (config, _) in runs.items():
        assert_same(learn(config), outcomes[model])


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("model", list(MODELS))
def test_every_model_learns_under_either_optimizer(model, optimizer):
    config = configure(model, optimizer, name="torch")
    torch.manual_seed(0)
    engine = build_engine(objective_of(config), config, torch.device("cpu"))
    losses = []
    for _ in range(12):
        result = engine.step(micro_batches(0), learning_rate=0.01)
        losses.append(result.loss / result.targets)
    if not engine.weights() or isinstance(engine, FixedEngine):
        assert losses[0] == losses[-1]
    else:
        assert losses[-1] < 0.98 * losses[0]


def test_a_model_without_weights_is_measured_saved_and_loaded(tmp_path):
    config = configure("popularity")
    objective = objective_of(config)
    objective.model.set_item_counts(torch.arange(NUM_ITEMS + 1))
    engine = build_engine(objective, config, torch.device("cpu"))
    engine.save(tmp_path)
    again = build_engine(objective_of(config), config, torch.device("cpu"))
    again.load(tmp_path)
    first, second = (each.step(micro_batches(0), learning_rate=0.1) for each in (engine, again))
    assert first == second
    assert first.targets > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mamba4rec", "recgrela", "caser", "bprmf"])
def test_deepspeed_learns_what_torch_does_at_every_stage(tmp_path, model):
    runs = {f"zero{stage}": (configure(model, name="deepspeed", zero_stage=stage), {}) for stage in range(4)}
    outcomes = on_two_workers(tmp_path, runs)
    expected = learn(configure(model, name="torch"))
    for outcome in outcomes.values():
        assert_same(expected, outcome)


@pytest.mark.slow
def test_bfloat16_stays_close_in_both_engines(tmp_path):
    runs = {name: (configure(name=name, precision="bfloat16"), {}) for name in ("torch", "deepspeed")}
    losses, _ = learn(configure(name="torch"))
    for found, _ in on_two_workers(tmp_path, runs).values():
        assert found == pytest.approx(losses, rel=0.01)
        assert found != losses


@pytest.mark.slow
def test_both_engines_go_on_from_what_they_saved(tmp_path):
    def runs(save_after):
        return {
            name: (configure(name=name), {"directory": str(tmp_path / name), "save_after": save_after})
            for name in ("torch", "deepspeed")
        }

    whole = on_two_workers(tmp_path, runs(1))
    (tmp_path / "rendezvous").unlink(missing_ok=True)
    resumed = on_two_workers(tmp_path, runs(None))
    for name, (losses, weights) in resumed.items():
        assert losses == whole[name][0][2:]
        assert all(torch.equal(value, whole[name][1][key]) for key, value in weights.items())


def test_learning_rate_warms_up_and_then_falls_to_zero():
    config = TrainConfig(learning_rate=1.0, warmup_steps=4, schedule="cosine")
    assert [learning_rate(config, step=step, progress=0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(config, step=9, progress=0.5) == pytest.approx(0.5)
    assert learning_rate(config, step=9, progress=1.0) == pytest.approx(0.0)
    assert math.isclose(learning_rate(TrainConfig(learning_rate=2.0), step=0, progress=0.9), 2.0)


def test_what_ends_training_first_ends_the_schedule():
    whole, cut = TrainConfig(epochs=4), TrainConfig(epochs=4, max_steps=20)
    assert share_done(whole, epochs=1.0, steps=10) == 0.25
    assert share_done(cut, epochs=1.0, steps=10) == 0.5
    assert share_done(cut, epochs=4.0, steps=12) == 1.0


def test_deepspeed_configuration_is_derived_and_extra_lies_over_it():
    config = configure(name="deepspeed", zero_stage=2, extra={"zero_optimization": {"overlap_comm": True}})
    derived = deepspeed_config(config, torch.device("cpu"))
    assert derived["gradient_clipping"] == 0.5
    assert derived["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert derived["torch_autocast"]["enabled"] is False
