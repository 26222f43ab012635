import math
from dataclasses import dataclass, replace

import pytest
import torch
from engine_workers import batch_of, configure, objective_of, on_workers

from raysrec.config.run import RunConfig
from raysrec.engine import NonFiniteLoss, build_engine
from raysrec.engine.exchange import everyones

LOST_USER = 9
TABLE = "users.table.weight"


def batch_of_users(seed, *users):
    batch = batch_of(seed, len(users))
    return replace(batch, history=replace(batch.history, users=torch.tensor(users)))


def broken_objective(config, *, what):
    """One whose loss is NaN for one user, or whose gradient of one parameter is too large for a float."""
    torch.manual_seed(0)
    objective = objective_of(config)
    parameter = objective.model.get_parameter(TABLE)
    if what == "loss":
        with torch.no_grad():
            parameter[LOST_USER] = math.nan
    else:
        parameter.register_hook(lambda gradient: gradient * 1e38 * 1e38)
    return objective


@dataclass(frozen=True)
class Faulty:
    """A good step, then one that fails; what each worker heard of it."""

    config: RunConfig
    what: str = "loss"

    def run(self, worker=0, num_workers=1):
        engine = build_engine(broken_objective(self.config, what=self.what), self.config, torch.device("cpu"))
        if self.what == "loss":
            engine.step([batch_of_users(5, 1, 2)] if worker == 0 else [], learning_rate=0.01)
        before, saved = engine.weights(), engine.snapshot()
        batches = [
            [batch_of_users(0, 1, 2), batch_of_users(1, 3)],
            [batch_of_users(2, 4, 5, 4), batch_of_users(3, 6, LOST_USER, 6, 7)],
        ]
        mine = batches[worker] if num_workers > 1 else [*batches[0], *batches[1]]
        with pytest.raises(NonFiniteLoss) as fault:
            engine.step(mine, learning_rate=0.01)
        after, again = engine.weights(), engine.snapshot()
        unchanged = all(same(value, after[name]) for name, value in before.items())
        unchanged &= set(saved.fragments) == set(again.fragments)
        unchanged &= all(same(part.values, again.fragments[name].values) for name, part in saved.fragments.items())
        heard = {"message": str(fault.value), "faults": [vars(each) for each in fault.value.faults]}
        return everyones(heard | {"unchanged": unchanged})


def same(one, other):
    return torch.equal(one.nan_to_num(1e9), other.nan_to_num(1e9))


def engines(**settings):
    return {
        "torch": configure("bprmf", name="torch", **settings),
        **{f"zero{stage}": configure("bprmf", name="deepspeed", zero_stage=stage, **settings) for stage in range(4)},
    }


def test_one_worker_says_where_a_loss_is_nan():
    ((heard),) = Faulty(configure("bprmf", clip_norm=0.0, name="torch")).run()
    (fault,) = heard["faults"]
    assert heard["unchanged"]
    assert (fault["worker"], fault["micro_batch"], fault["users"], fault["num_users"]) == (0, 3, [6, LOST_USER, 7], 3)
    assert math.isnan(fault["loss"])
    assert TABLE in fault["not_finite"]
    assert heard["message"].startswith(
        f"the loss is not finite; worker 0, micro-batch 3: loss nan of 3 users (6, {LOST_USER}, 7); gradient not finite"
    )


@pytest.mark.slow
def test_every_worker_hears_what_happened_in_one_of_them(tmp_path):
    jobs = {name: Faulty(config) for name, config in engines().items()}
    jobs |= {f"{name}_gradient": Faulty(config, "gradient") for name, config in engines().items()}
    jobs |= {f"{name}_unclipped_gradient": Faulty(one, "gradient") for name, one in engines(clip_norm=0.0).items()}
    for name, (first, second) in on_workers(2, tmp_path, jobs).items():
        assert first["message"] == second["message"], name
        assert first["unchanged"], name
        assert second["unchanged"], name
        if name.endswith("gradient"):
            faults = first["faults"]
            assert first["message"].startswith("the gradient is not finite although the loss is; worker 0"), name
            assert [(each["worker"], each["micro_batch"]) for each in faults] == [(0, 0), (1, 0)]
            assert {parameter for each in faults for parameter in each["not_finite"]} == {TABLE}
            assert all(0 < each["largest"] < 1 for each in faults)
        else:
            (fault,) = first["faults"]
            assert (fault["worker"], fault["micro_batch"]) == (1, 1), name
            assert fault["users"] == [6, LOST_USER, 7]


def test_many_users_are_counted_and_a_dozen_named():
    objective = broken_objective(configure("bprmf", name="torch"), what="loss")
    engine = build_engine(objective, configure("bprmf", name="torch"), torch.device("cpu"))
    with pytest.raises(NonFiniteLoss, match=r"of 12 users \(9, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12\)"):
        engine.step([batch_of_users(0, 9, *range(1, 13))], learning_rate=0.01)


def test_a_sum_of_gradients_that_is_too_large_names_the_largest():
    config = configure("bprmf", clip_norm=1.0, name="torch")
    objective = objective_of(config)
    objective.model.get_parameter(TABLE).register_hook(lambda gradient: gradient / gradient.abs().max() * 1e30)
    engine = build_engine(objective, config, torch.device("cpu"))
    with pytest.raises(NonFiniteLoss, match=r"gradient finite, at most 1e\+30 \(users.table.weight\)") as fault:
        engine.step([batch_of_users(0, 1, 2), batch_of_users(1, 3)], learning_rate=0.01)
    assert len(fault.value.faults) == 1


def test_a_model_without_parameters_stops_too():
    config = configure("popularity")
    objective = objective_of(config)
    objective.forward = lambda batch: torch.tensor(math.inf)
    with pytest.raises(NonFiniteLoss, match="loss inf of 2 users"):
        build_engine(objective, config, torch.device("cpu")).step([batch_of_users(0, 1, 2)], learning_rate=0.1)
