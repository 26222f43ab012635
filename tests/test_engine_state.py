import itertools
import re
from pathlib import Path

import pytest
import torch
from engine_workers import Training, batch_of, configure, engine_of, objective_of, on_workers
from safetensors import safe_open
from safetensors.torch import save_file

import raysrec
from raysrec.engine import BrokenState, StateMismatch, saved_state
from raysrec.optimizers import build_optimizers, new_state

STEPS, SAVED_AFTER = 4, 1

# Some parameters of this size stay whole on every worker, and some are cut.
SMALL_STAY_WHOLE = {"zero_optimization": {"stage3_param_persistence_threshold": 100}}
BFLOAT16 = {"precision": "float32", "extra": {"bf16": {"enabled": True}}}

KINDS = {
    "adam": configure("sasrec", name="torch"),
    "muon": configure("sasrec", optimizer="muon", name="torch"),
    "zero0": configure("sasrec", name="deepspeed", zero_stage=0),
    "zero1": configure("sasrec", name="deepspeed", zero_stage=1),
    "zero2": configure("sasrec", name="deepspeed", zero_stage=2),
    "zero3": configure("sasrec", name="deepspeed", zero_stage=3, extra=SMALL_STAY_WHOLE),
    # Weights in bfloat16, and their full precision with the optimizer.
    "zero1_bf16": configure("sasrec", name="deepspeed", zero_stage=1, **BFLOAT16),
    "zero3_bf16": configure("sasrec", name="deepspeed", zero_stage=3, **BFLOAT16),
}
FLOAT32 = [kind for kind in KINDS if not kind.endswith("bf16")]
FROM_TWO = ["adam", "muon", "zero1", "zero2", "zero3"]
FROM_ONE = ["adam", "zero1", "zero3"]
OTHER_ENGINES = [
    ("adam", "zero1"),
    ("adam", "zero3"),
    ("zero1", "adam"),
    ("zero1", "zero3"),
    ("zero3", "zero2"),
    ("zero3", "zero0"),
]
"""Which engine's state another one goes on from."""


def whole(folder, kind):
    """Saves in the middle, and goes on."""
    return Training(KINDS[kind], range(STEPS), saves_in=folder, save_after=SAVED_AFTER)


def resumed(folder, kind):
    return Training(KINDS[kind], range(SAVED_AFTER + 1, STEPS), restored_from=folder)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Losses and weights by (kind, workers), and by (kind, workers) that saved and (kind, workers) that went on."""
    folder = tmp_path_factory.mktemp("states")

    def saved_by(kind, workers):
        return folder / f"{kind}-by-{workers}"

    def own(workers, kinds):
        saving = {(kind, workers): whole(saved_by(kind, workers), kind) for kind in kinds}
        return saving | resuming(workers, workers, [(kind, kind) for kind in kinds])

    def resuming(before, after, kinds):
        return {(one, before, other, after): resumed(saved_by(one, before), other) for one, other in kinds}

    found = run(2, folder, own(2, KINDS) | resuming(2, 2, OTHER_ENGINES))
    found |= run(1, folder, own(1, FLOAT32) | resuming(2, 1, [(kind, kind) for kind in FROM_TWO]))
    both = resuming(2, 3, [(kind, kind) for kind in FROM_TWO]) | resuming(1, 3, [(kind, kind) for kind in FROM_ONE])
    return found | run(3, folder, both)


def run(workers, folder, jobs):
    names = {"-".join(map(str, key)): key for key in jobs}
    outcomes = on_workers(workers, folder, {name: jobs[key] for name, key in names.items()})
    return {names[name]: outcome for name, outcome in outcomes.items()}


def assert_goes_on(outcomes, saved, resumed, *, loss=2e-6):
    """Losses and weights are those of the run that saved, as if it had never been interrupted."""
    losses, weights = outcomes[saved]
    found, found_weights = outcomes[*saved, *resumed]
    assert found == pytest.approx(losses[SAVED_AFTER + 1 :], rel=loss)
    assert set(found_weights) == set(weights)
    for name, value in weights.items():
        torch.testing.assert_close(found_weights[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [(kind, 2) for kind in KINDS] + [(kind, 1) for kind in FLOAT32])
def test_an_engine_goes_on_to_the_bit_from_what_it_saved(outcomes, kind, workers):
    losses, weights = outcomes[kind, workers]
    found, found_weights = outcomes[kind, workers, kind, workers]
    assert found == losses[SAVED_AFTER + 1 :]
    assert all(torch.equal(found_weights[name], value) for name, value in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("kind", FROM_TWO)
def test_a_state_of_two_workers_goes_on_with_fewer_and_more(outcomes, kind, after):
    assert_goes_on(outcomes, (kind, 2), (kind, after))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FROM_ONE)
def test_a_state_of_one_worker_goes_on_with_more(outcomes, kind):
    assert_goes_on(outcomes, (kind, 1), (kind, 3))


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), OTHER_ENGINES)
def test_one_engine_goes_on_from_the_state_of_another(outcomes, one, other):
    assert_goes_on(outcomes, (one, 2), (other, 2))
