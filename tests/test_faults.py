import os
import signal

import pytest
import torch

from raysrec.config.loading import validate
from raysrec.data.prepared import PreparedDataError
from raysrec.errors import unwrapped
from raysrec.faults import explain, is_out_of_memory
from raysrec.prepare import prepare


@pytest.fixture
def run(tmp_path):
    """A config and its prepared data."""
    data = {"prepared": str(tmp_path), "synthetic": {"num_users": 60, "num_items": 40}}
    config = validate({"model": {"name": "sasrec"}, "data": data, "train": {"micro_batch_tokens": 9_999}})
    return config, prepare(config.data)


def raised(do):
    """The error that this raises."""
    with pytest.raises(BaseException) as error:  # noqa: PT011 - whatever it is
        do()
    return error.value


def from_worker(error):
    """As Ray Train hands on what a worker raised."""
    from ray.exceptions import RayTaskError
    from ray.train.v2.api.exceptions import WorkerGroupError

    wrapped = RayTaskError("train_fn", f"Traceback (most recent call last):\n{type(error).__name__}: {error}\n", error)
    return WorkerGroupError(f"[Rank 1 Error Snippet]: {error}", {1: wrapped})


def test_a_real_allocation_that_fails_is_explained(run):
    error = raised(lambda: torch.empty(2**50, dtype=torch.uint8))
    for one in (error, from_worker(error)):
        said = explain(one, *run)
        assert said.startswith("a worker ran out of memory (")
        assert "allocate" in said
        assert "by an estimate it needs about " in said
        assert "train.micro_batch_tokens=9999" in said
        assert "data.shuffle_interactions=4000000" in said
        assert "evaluate.batch_tokens=8192" in said
        assert "\n" not in said
        assert len(said) < 1500
        assert is_out_of_memory(one)


def test_memory_that_python_or_arrow_lack_is_explained(run):
    import pyarrow as pa

    for error in (raised(lambda: bytearray(2**60)), raised(lambda: pa.allocate_buffer(2**60))):
        assert explain(error, *run).startswith("a worker ran out of memory (")


@pytest.mark.parametrize(
    "text",
    [
        "Task was killed due to the node running low on memory. Memory on the node was 23.9GB / 24.0GB (0.99).",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a capacity of 139 GiB",
    ],
)
def test_what_ray_and_a_gpu_say_is_explained(run, text):
    from ray.exceptions import OutOfMemoryError

    for error in (OutOfMemoryError(text), from_worker(OutOfMemoryError(text)), torch.OutOfMemoryError(text)):
        assert explain(error, *run, on_gpu=True).startswith("a worker ran out of memory (")
        assert is_out_of_memory(error)


@pytest.mark.ray
@pytest.mark.slow
def test_what_ray_train_says_of_workers_that_end_so_is_explained(run, tmp_path):
    from raysrec.cluster.runtime import ray_session
    from raysrec.config import ScaleConfig

    def is_killed(_):
        os.kill(os.getpid(), signal.SIGKILL)

    def lacks_memory(_):
        torch.empty(2**50, dtype=torch.uint8)

    def train(work):
        import ray.train
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        storage = ray.train.RunConfig(name=work.__name__, storage_path=str(tmp_path))
        scaling = ray.train.ScalingConfig(num_workers=1)
        return DataParallelTrainer(work, train_loop_config={}, scaling_config=scaling, run_config=storage).fit()

    with ray_session(ScaleConfig()):
        killed, lacked = (raised(lambda work=work: train(work)) for work in (is_killed, lacks_memory))
    said = explain(killed, *run)
    assert said is not None, [f"{type(one)}: {one}" for one in unwrapped(killed)]
    assert said.startswith("a worker was killed, as the system does where memory runs out (or somebody did) (")
    assert "train.micro_batch_tokens=9999" in said
    assert not is_out_of_memory(killed)
    assert explain(lacked, *run).startswith("a worker ran out of memory (")
    assert is_out_of_memory(lacked)


def test_what_speaks_for_itself_is_left_as_it_is_and_others_alone(run):
    error = PreparedDataError("a.parquet: row group 3 is damaged")
    assert explain(from_worker(error), *run) == str(error)
    assert explain(FloatingPointError("the loss of step 3 is nan"), *run) is None
    assert explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), *run) is None
