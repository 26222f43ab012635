import math
import os
import sys
import time
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from engine_workers import NUM_ITEMS, Training, configure, engine_of, micro_batches, objective_of, on_workers

from raysrec.config import ScaleConfig, TrainConfig
from raysrec.config.run import RunConfig
from raysrec.engine import FixedEngine, build_engine, deepspeed_config, learning_rate, saved_state, share_done
from raysrec.engine.exchange import everyones
from raysrec.models import MODELS


def assert_same(one, other, tolerance=2e-6):
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "bce", "sampled_softmax"])
def test_two_workers_learn_what_one_does(tmp_path, loss):
    # What a loss draws does not depend on the model, so one is enough for those that draw.
    models = list(MODELS) if loss == "softmax" else ["recgrela"]
    trainings = {model: Training(configure(model, loss=loss, name="torch")) for model in models}
    outcomes = on_workers(2, tmp_path, trainings)
    for model, training in trainings.items():
        assert_same(training.run(), outcomes[model])


@pytest.mark.slow
def test_dropout_does_not_depend_on_the_number_of_workers(tmp_path):
    without, torch_engine = Training(configure("sasrec", name="torch")), configure("sasrec", dropout=0.3, name="torch")
    trainings = {
        "torch": Training(torch_engine),
        "zero2": Training(configure("sasrec", dropout=0.3, name="deepspeed", zero_stage=2)),
        "sampled": Training(configure("sasrec", dropout=0.3, loss="sampled_softmax", name="torch")),
    }
    alone = {name: Training(torch_engine).run() for name in ("torch", "zero2")}
    alone["sampled"] = trainings["sampled"].run()
    assert alone["torch"][0] != pytest.approx(without.run()[0], rel=1e-3)
    for name, outcome in on_workers(2, tmp_path, trainings).items():
        assert_same(alone[name], outcome)


@dataclass(frozen=True)
class Wishing:
    """What all workers hear of two wishes: in a step with targets, and in one without."""

    config: RunConfig

    def run(self, worker, num_workers):
        engine = engine_of(self.config)
        with_targets = engine.step(micro_batches(0), learning_rate=0.01, wish=3 * worker)
        without = engine.step([], learning_rate=0.01, wish=2 - worker)
        return everyones([with_targets.wish, without.wish, (with_targets + without).wish])


@pytest.mark.slow
def test_every_worker_hears_the_largest_wish(tmp_path):
    configs = {name: configure(name=name) for name in ("torch", "deepspeed")} | {"fixed": configure("popularity")}
    for heard in on_workers(2, tmp_path, {name: Wishing(config) for name, config in configs.items()}).values():
        assert heard == [[3, 2, 3], [3, 2, 3]]


def test_dropout_depends_on_the_micro_batch_alone():
    engine = engine_of(configure("sasrec", dropout=0.5, name="torch"))
    first, second = micro_batches(0)[:2]
    both = engine.step([first, second], learning_rate=0.0).loss
    torch.manual_seed(123)
    other_way = engine.step([second, first], learning_rate=0.0).loss
    assert other_way == pytest.approx(both, rel=1e-12)
    assert engine.step([replace(first, seed=77), second], learning_rate=0.0).loss != pytest.approx(both, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("model", list(MODELS))
def test_every_model_learns_under_either_optimizer(model, optimizer):
    config = configure(model, optimizer, name="torch")
    engine = engine_of(config)
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
    snapshot = engine.snapshot()
    snapshot.save(tmp_path / snapshot.file_name)
    again = engine_of(config)
    again.restore(saved_state([tmp_path / snapshot.file_name]))
    first, second = (each.step(micro_batches(0), learning_rate=0.1) for each in (engine, again))
    assert first == second
    assert first.targets > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mamba4rec", "recgrela", "caser", "bprmf"])
def test_deepspeed_learns_what_torch_does_at_every_stage(tmp_path, model):
    stages = {f"zero{stage}": Training(configure(model, name="deepspeed", zero_stage=stage)) for stage in range(4)}
    outcomes = on_workers(2, tmp_path, stages)
    expected = Training(configure(model, name="torch")).run()
    for outcome in outcomes.values():
        assert_same(expected, outcome)


class Stalled:
    """The second worker says nothing while the first waits for its gradients."""

    def run(self, worker, num_workers):
        config = configure(name="deepspeed", zero_stage=1)
        engine = engine_of(config.model_copy(update={"scale": ScaleConfig(stalled_after_s=3.0)}))
        if worker:
            time.sleep(12)
            return ""
        gradients = engine._optimizer.dp_process_group
        with pytest.raises(RuntimeError) as error:
            dist.all_reduce(torch.ones(1), group=gradients)
        return str(error.value)


@pytest.mark.slow
def test_deepspeed_waits_for_a_stalled_worker_as_long_as_the_configuration_says(tmp_path):
    assert "Timed out waiting 3000ms" in on_workers(2, tmp_path, {"stalled": Stalled()})["stalled"]


class Started:
    """What a worker has loaded, and what it leaves in the environment, when its engine has started."""

    def run(self, worker, num_workers):
        engine_of(configure(name="deepspeed", zero_stage=1))
        return "torch._inductor.compile_fx" in sys.modules, os.environ.get("TORCHDYNAMO_DISABLE")


def test_deepspeed_starts_without_the_compiler_that_its_own_muon_would_load(tmp_path):
    assert on_workers(1, tmp_path, {"started": Started()})["started"] == (False, None)


@pytest.mark.slow
def test_bfloat16_stays_close_in_both_engines(tmp_path):
    trainings = {name: Training(configure(name=name, precision="bfloat16")) for name in ("torch", "deepspeed")}
    losses, _ = Training(configure(name="torch")).run()
    for found, _ in on_workers(2, tmp_path, trainings).values():
        assert found == pytest.approx(losses, rel=0.01)
        assert found != losses


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
