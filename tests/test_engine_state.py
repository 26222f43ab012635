import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from engine_workers import Training, batch_of, configure, engine_of, objective_of, on_workers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import raysrec
from raysrec.config.run import RunConfig
from raysrec.engine import BrokenState, Snapshot, StateMismatch, saved_state
from raysrec.engine.exchange import everyones
from raysrec.engine.optimizers import new_state
from raysrec.engine.snapshot import Fragment

STEPS, SAVED_AFTER = 4, 1
TABLE = "weights/embedding.table.weight"

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


@dataclass(frozen=True)
class Refused:
    """What each worker hears when the second one's copy of a checkpoint is not the first one's."""

    config: RunConfig

    def run(self, worker, num_workers):
        engine = engine_of(self.config)
        state = {name: value.clone() for name, value in objective_of(self.config).model.state_dict().items()}
        if worker == 1:
            state["embedding.table.weight"] = torch.ones(1)
        try:
            engine.restore({f"weights/{name}": value for name, value in state.items()})
        except StateMismatch as refused:
            return everyones(str(refused))


@pytest.mark.slow
def test_all_workers_refuse_what_one_of_them_cannot_use(tmp_path):
    jobs = {kind: Refused(KINDS[kind]) for kind in ("adam", "zero2", "zero3")}
    for heard in on_workers(2, tmp_path, jobs).values():
        assert heard == [f"{TABLE}: 1 in the checkpoint, and 31 x 8 here"] * 2


@pytest.fixture
def saved(tmp_path):
    """The file of one worker's training, and what trained it."""
    engine = engine_of(KINDS["adam"])
    engine.step([batch_of(0, 4)], learning_rate=0.01)
    snapshot = engine.snapshot()
    snapshot.save(tmp_path / snapshot.file_name)
    return tmp_path / snapshot.file_name


def test_a_state_is_one_safetensors_file_that_anything_reads(saved):
    assert saved.name == "state-0-of-1.safetensors"
    with safe_open(saved, "pt") as file:
        names = set(file.keys())
        assert file.get_tensor("weights/embedding.table.weight").shape == (31, 8)
    parameters = {name for name, _ in objective_of(KINDS["adam"]).model.named_parameters()}
    kept = itertools.product(parameters, ("step", "exp_avg", "exp_avg_sq"))
    assert names == {f"weights/{name}" for name in parameters} | {f"optimizer/{name}/{key}" for name, key in kept}


def test_a_state_from_before_the_first_step_has_no_optimizer_state(tmp_path):
    training = Training(KINDS["adam"], range(2), saves_in=tmp_path / "before")
    losses, _ = training.run()
    found, _ = Training(KINDS["adam"], range(2), restored_from=tmp_path / "before").run()
    assert not any(name.startswith("optimizer/") for name in saved_state([*(tmp_path / "before").iterdir()]))
    assert found == losses


def test_a_snapshot_keeps_its_values_and_only_a_dropped_one_lends_its_memory():
    engine = engine_of(KINDS["adam"])
    engine.step([batch_of(0, 4)], learning_rate=0.01)
    first = engine.snapshot()
    place, values = (each(first.fragments[TABLE].values) for each in (Tensor.data_ptr, Tensor.clone))
    engine.step([batch_of(1, 4)], learning_rate=0.01)
    second = engine.snapshot()
    assert torch.equal(first.fragments[TABLE].values, values)
    assert torch.equal(second.fragments[TABLE].values, engine.weights()[TABLE.removeprefix("weights/")])
    assert not torch.equal(second.fragments[TABLE].values, values)
    del first
    assert engine.snapshot().fragments[TABLE].values.data_ptr() == place


def test_what_new_state_says_is_what_torch_makes():
    for kind in ("adam", "muon"):
        engine = engine_of(KINDS[kind])
        engine.step([batch_of(0, 4)], learning_rate=0.01)
        for optimizer in engine._optimizers:
            for parameter, state in optimizer.state.items():
                made = {key: (value.shape, value.dtype) for key, value in state.items()}
                assert made == {key: (v.shape, v.dtype) for key, v in new_state(optimizer, parameter).items()}


def test_a_state_of_another_model_or_optimizer_is_refused_in_one_line(saved):
    state = dict(saved_state([saved]))
    engine = engine_of(KINDS["adam"])
    item = TABLE

    def refusal(changed, engine=engine):
        with pytest.raises(StateMismatch) as refused:
            engine.restore(changed)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    without = {name: value for name, value in state.items() if name != item}
    assert refusal(without) == f"{item}: not in the checkpoint, and the model needs it; is it another model's?"
    assert refusal(state | {item: torch.ones(31, 4)}) == f"{item}: 31 x 4 in the checkpoint, and 31 x 8 here"
    assert refusal(state | {"weights/other": torch.ones(1)}).startswith("weights/other: in the checkpoint, and nothing")
    assert refusal(state | {"optimizer/other/step": torch.ones(())}).startswith(
        "optimizer/other/step: in the checkpoint"
    )
    assert "the checkpoint has exp_avg, exp_avg_sq, step, and this optimizer keeps mean" in refusal(
        state, engine_of(KINDS["muon"])
    )
    one_more = {name: value + 1 if name.endswith("table.weight/step") else value for name, value in state.items()}
    engine.restore(one_more)  # torch counts for each parameter


def test_a_file_that_was_cut_or_garbled_is_named(saved):
    content = saved.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    for cut in (0, 4, header - 3, header + 5, len(content) - 1):
        saved.write_bytes(content[:cut])
        with pytest.raises(BrokenState, match=re.escape(str(saved))):
            saved_state([saved])
    for place in (3, 9, header - 400, header + 1, len(content) - 1):
        saved.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
        with pytest.raises(BrokenState, match=re.escape(str(saved))):
            dict(saved_state([saved]))
    saved.unlink()
    with pytest.raises(BrokenState, match=re.escape(str(saved))):
        saved_state([saved])
    save_file({"weights/a": torch.ones(1)}, saved)
    with pytest.raises(BrokenState, match="is no state file of this version"):
        saved_state([saved])


@pytest.mark.parametrize(
    "header",
    [
        {"tensors": "[]"},
        {"tensors": "{}"},
        {"tensors": '{"weights/a": 3}'},
        {"tensors": '{"weights/a": {"start": 0, "size": 1, "shape": 1, "crc32": 0}}'},
        {"tensors": '{"weights/a": {"start": "x", "size": 1, "shape": [1], "crc32": 0}}'},
        {"worker": "1000000000000", "num_workers": "1000000000001"},
        {"worker": "one"},
    ],
)
def test_a_header_of_nonsense_is_refused(tmp_path, header):
    tensors = '{"weights/a": {"start": 0, "size": 1, "shape": [1], "crc32": 0}}'
    whole = {"format": "raysrec-state-1", "worker": "0", "num_workers": "1", "tensors": tensors}
    save_file({"weights/a": torch.ones(1)}, tmp_path / "a", whole | header)
    with pytest.raises(BrokenState, match=re.escape(str(tmp_path / "a"))):
        saved_state([tmp_path / "a"])


def fragment_files(folder, *, starts):
    """Files of workers that each have two of a tensor's four values."""
    for worker, start in enumerate(starts):
        fragment = Fragment(torch.arange(start, start + 2.0), start, (2, 2))
        Snapshot(worker, len(starts), {"weights/a": fragment}).save(folder / f"{worker}.safetensors")
    return sorted(folder.iterdir())


def test_whole_tensors_are_put_together_from_fragments(tmp_path):
    files = fragment_files(tmp_path, starts=(2, 0))
    assert torch.equal(saved_state(files)["weights/a"], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    values = saved_state(files)["weights/a"]
    fragment_files(tmp_path, starts=(0, 2))
    assert values.tolist() == [[0.0, 1.0], [2.0, 3.0]]  # also when the files have been replaced


@pytest.mark.parametrize(("starts", "missing"), [((2, 2), 0), ((0, 1), 2), ((0, 0), 2), ((0, 3), 2), ((0, 1, 3), 2)])
def test_fragments_that_leave_a_gap_are_refused_by_name(tmp_path, starts, missing):
    files = fragment_files(tmp_path, starts=starts)
    with pytest.raises(
        BrokenState, match=f"of weights/a, 4 values, those from {missing} on are missing or there twice"
    ):
        saved_state(files)


def test_every_worker_s_file_must_be_there(tmp_path):
    files = fragment_files(tmp_path, starts=(0, 2))
    with pytest.raises(BrokenState, match=r"these are of workers \[0\], of \[2\]"):
        saved_state(files[:1])
    with pytest.raises(BrokenState, match="no file"):
        saved_state([])
    Snapshot(1, 3, {}).save(files[1])
    with pytest.raises(BrokenState, match=r"of \[2, 3\]"):
        saved_state(files)


def test_nothing_that_is_loaded_can_run_code():
    """Pickle stays between the tasks and actors of one run, in Ray's memory."""
    unsafe = re.compile(r"torch\.(load|save)\b|\bpickle\b|\ball_gather_object\b|_object_list\b|load_checkpoint")
    package = Path(raysrec.__file__).parent
    found = {file.relative_to(package).as_posix() for file in package.rglob("*.py") if unsafe.search(file.read_text())}
    assert found == {"tasks.py", "model_actors.py"}
