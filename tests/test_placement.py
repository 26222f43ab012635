import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysrec.cluster.bundles import (
    amounts_in_words,
    asked_for,
    data_bundles,
    model_options,
    reading_options,
    scale_to_rank,
    total,
    worker_bundle,
)
from raysrec.cluster.placement import TASK_BYTES, ToCome, lacking, most_workers, room_in_words, task_options, unplaced
from raysrec.config import ScaleConfig
from raysrec.config.files import ConfigError
from raysrec.config.loading import validate

GPU_NODE = {"CPU": 8.0, "GPU": 1.0, "memory": 1e10}
DATA_NODE = {"CPU": 16.0, "data": 1000.0}
HEAD = {"memory": 2.0**34}
ROOMY = DATA_NODE | {"memory": 2.0**36}
SMALL = DATA_NODE | {"memory": 2.0**29}
ON_GPUS = ScaleConfig(workers=2, device="cuda", cpus_per_worker=7, data_cpus=12, data_resources={"data": 0.001})


def run_on(scale, **evaluate):
    return validate({"model": {"name": "sasrec"}, "scale": scale.model_dump(), "evaluate": evaluate})


def test_a_laptop_is_asked_for_little():
    scale = ScaleConfig()
    assert worker_bundle(scale, use_gpu=False) == {"CPU": 1.0}
    assert data_bundles(scale) == [{"CPU": 0.5}]
    assert reading_options(scale) == {"num_cpus": 0.5, "resources": {}}
    assert task_options(scale, [{"CPU": 2.0, "memory": 2.0**34}], None) == {
        "num_cpus": 1,
        "resources": {},
        "memory": TASK_BYTES,
    }
    assert asked_for(run_on(scale), use_gpu=False) == (
        "1 x 1 CPU to train, on few machines; 0.5 CPUs to read; 1 CPU a task to prepare and rank"
    )


def test_gpus_train_and_other_machines_do_the_rest():
    assert worker_bundle(ON_GPUS, use_gpu=True) == {"CPU": 7.0, "GPU": 1.0}
    assert data_bundles(ON_GPUS) == [{"CPU": 1.0, "data": 0.001}] * 12
    # 12 CPUs for two workers, tasks of half a CPU.
    assert reading_options(ON_GPUS) == {"num_cpus": 0.5, "resources": {"data": 0.001}, "concurrency": 12}
    assert task_options(ON_GPUS, [DATA_NODE], None) == {"num_cpus": 1, "resources": {"data": 0.001}}
    assert asked_for(run_on(ON_GPUS), use_gpu=True) == (
        "2 x 7 CPUs and 1 GPU to train, on few machines; 12 CPUs and 0.012 data to read; "
        "1 CPU and 0.001 data a task to prepare and rank"
    )
    assert asked_for(run_on(ON_GPUS, device="cuda"), use_gpu=True).endswith(
        "; 1 CPU and 0.001 data a task to prepare, 1 CPU and 1 GPU to rank"
    )
    assert model_options(ON_GPUS, use_gpu=True) == {"num_cpus": 1, "num_gpus": 1.0}
    assert model_options(ON_GPUS, use_gpu=False) == {"num_cpus": 1, "resources": {"data": 0.001}}


@pytest.mark.parametrize(
    ("scale", "chosen", "expected"),
    [
        (ScaleConfig(), "auto", "auto"),
        (ScaleConfig(device="cuda"), "auto", "cuda"),
        (ScaleConfig(device="cuda"), "cpu", "cpu"),
        (ScaleConfig(device="cpu"), "cuda", "cuda"),
        # Machines for data are named, and rank.
        (ON_GPUS, "auto", "cpu"),
        (ON_GPUS, "cuda", "cuda"),
    ],
)
def test_ranking_goes_to_machines_for_data_unless_gpus_are_chosen(scale, chosen, expected):
    ranked_on = scale_to_rank(run_on(scale, device=chosen))
    assert ranked_on.device == expected
    assert data_bundles(ranked_on) == [{"CPU": 0.5} | scale.data_resources]
    assert (ranked_on.min_workers < ranked_on.max_workers) == (expected == "cuda" and scale.max_workers > 1)


@pytest.mark.parametrize(
    ("there", "may_come", "expected"),
    [
        ([HEAD, ROOMY], {}, TASK_BYTES),
        # Less than a task may need, and no machine has more.
        ([SMALL], {}, 2**29),
        ([SMALL, ROOMY], {}, TASK_BYTES),
        # That without `data` is asked for no task.
        ([SMALL, {"CPU": 8.0, "memory": 2.0**34}], {}, 2**29),
        ([HEAD], {"data": (8, ROOMY)}, TASK_BYTES),
        # An autoscaler that does not know its memory would not start it.
        ([HEAD, ROOMY], {"data": (8, DATA_NODE), "gpu": (8, GPU_NODE)}, None),
        ([HEAD, ROOMY], {"data": (8, ROOMY), "gpu": (8, {"CPU": 8.0, "GPU": 1.0})}, TASK_BYTES),
        ([HEAD], {}, None),
    ],
)
def test_a_task_takes_memory_where_machines_that_have_it_declare_it(there, may_come, expected):
    assert task_options(ON_GPUS, there, ToCome(may_come, 16)).get("memory") == expected


def test_elastic_workers_and_other_resources_are_said():
    scale = ScaleConfig.model_validate(
        {"workers": {"min": 1, "max": 4}, "placement": "spread", "resources_per_worker": {"big": 2}}
    )
    assert asked_for(run_on(scale), use_gpu=False).startswith("1 to 4 x 1 CPU and 2 big to train, on many machines; ")


@pytest.mark.parametrize(
    ("there", "to_come", "expected"),
    [
        ([GPU_NODE, GPU_NODE, DATA_NODE], None, "3 machines with 32 CPUs, 2 GPUs and 1000 data: enough for 2 workers"),
        (
            [{"CPU": 0.0}],
            ToCome({"gpu": (2, GPU_NODE), "data": (1, DATA_NODE)}, 3),
            "1 machine with nothing, and up to 2 gpu, 1 data to come: enough for 2 workers when those have started",
        ),
        (
            [DATA_NODE],
            ToCome({"gpu": (1, GPU_NODE)}, 1),
            "1 machine with 16 CPUs and 1000 data, and up to 1 gpu to come: NEVER enough for 2 workers; no machine "
            "has room for 7 CPUs and 1 GPU",
        ),
        (
            [GPU_NODE, GPU_NODE, {"CPU": 64.0}],
            ToCome({}, 0),
            "3 machines with 80 CPUs and 2 GPUs: NEVER enough for 2 workers; no machine has room for 1 CPU and 0.001 "
            "data",
        ),
        # Enough in all, but not on one machine.
        (
            [{"CPU": 4.0, "GPU": 1.0}] * 4 + [DATA_NODE],
            ToCome({}, 0),
            "NEVER enough for 2 workers; no machine has room for 7 CPUs",
        ),
        # Enough of each kind, but not together.
        (
            [],
            ToCome({"data": (8, DATA_NODE), "gpu": (8, GPU_NODE)}, 3),
            "0 machines with nothing, and up to 3 data, 3 gpu (3 in all) to come: enough for 2 workers when those have",
        ),
        ([], ToCome({"data": (8, DATA_NODE), "gpu": (8, GPU_NODE)}, 2), "2 gpu (2 in all) to come: NEVER enough for 2"),
        (
            [{"CPU": 0.0}],
            None,
            "1 machine with nothing: not enough for 2 workers now, and what an autoscaler may start is not known here",
        ),
    ],
)
def test_it_is_said_whether_a_cluster_has_room_or_ever_will(there, to_come, expected):
    assert expected in room_in_words(ON_GPUS, there, to_come, use_gpu=True)


def test_of_few_machines_that_may_come_the_right_ones_do():
    scale = ScaleConfig(workers=2, device="cuda", cpus_per_worker=7, data_cpus=2)
    # Reading fits beside the workers; a machine for it alone would be one too many.
    to_come = ToCome({"data": (2, DATA_NODE), "gpu": (2, GPU_NODE)}, 2)
    assert "enough for 2 workers when those have started" in room_in_words(scale, [], to_come, use_gpu=True)


SETTINGS = {
    "max_workers": 5,
    "available_node_types": {
        "head": {"max_workers": 0, "resources": {"CPU": 0}},
        "gpu": {"max_workers": 4, "resources": GPU_NODE},
        "data": {"resources": DATA_NODE},
    },
}


@pytest.mark.parametrize(
    ("workers", "said", "at_most"),
    [
        ([], "4 gpu, 5 data (5 in all)", 5),
        (["gpu", "gpu", "data"], "2 gpu, 2 data (2 in all)", 2),
        (["data"] * 5, "", 0),
        # Machines of other origin count, too.
        (["gpu"] * 4 + ["", ""], "", 0),
    ],
)
def test_machines_that_are_there_do_not_come_again(workers, said, at_most):
    found = ToCome.of(SETTINGS, workers)
    assert (str(found), found.at_most) == (said, at_most)


@given(st.lists(st.integers(1, 6), max_size=8), st.lists(st.integers(1, 8), max_size=5))
def test_what_is_placed_fits(sizes, machines):
    bundles = [{"CPU": float(size)} for size in sizes]
    left = unplaced(bundles, [{"CPU": float(size)} for size in machines])
    placed = sum(sizes) - sum(bundle["CPU"] for bundle in left)
    assert placed <= sum(machines)
    if sizes and max(sizes) <= min(machines, default=0) and len(sizes) <= len(machines):
        assert left == []


def test_a_gpu_machine_is_spared_for_what_needs_one():
    bundles = [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}]
    assert unplaced(bundles, [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}]) == []
    assert unplaced(bundles, [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}]) == [{"CPU": 4.0}]


def test_amounts_in_words():
    assert amounts_in_words({"CPU": 1.0, "GPU": 2.0, "data": 0.001}) == "1 CPU, 2 GPUs and 0.001 data"
    assert amounts_in_words({}) == "nothing"
    assert total([{"CPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}]) == {"CPU": 3.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"gpus_per_worker": 0.5, "workers": 2},
            "scale.gpus_per_worker=0.5 lets workers of one run share a GPU, which NCCL refuses; set scale.workers=1",
        ),
        (
            {"resources_per_worker": {"GPU": 1}},
            "scale.resources_per_worker.GPU: is for what else a machine has; set sc",
        ),
        (
            {"data_resources": {"CPU": 1}},
            "scale.data_resources.CPU: is for what else a machine has; set scale.cpus_per",
        ),
        ({"data_resources": {"data": 0}}, "scale.data_resources.data=0: input should be greater than 0"),
        ({"cpus_per_worker": 0}, "scale.cpus_per_worker=0: "),
        ({"placement": "strict"}, "scale.placement='strict': input should be 'pack' or 'spread'"),
    ],
)
def test_impossible_wishes_are_refused(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate({"model": {"name": "sasrec"}, "scale": given})


READING = [{"CPU": 0.5}]


@pytest.mark.parametrize(
    ("machines", "expected"),
    [
        ([{"CPU": 2.0}], 1),
        ([{"CPU": 2.0}, {"CPU": 1.0}], 2),
        ([{"CPU": 2.5}], 2),
        ([{"CPU": 8.0}], 3),
        # What reads goes to the machine that is no good to a worker.
        ([{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 0.5}], 2),
        ([], 3),
    ],
)
def test_workers_leave_room_for_reading(machines, expected):
    assert most_workers({"CPU": 1.0}, READING, machines, at_most=3) == expected


def test_workers_do_not_matter_to_reading_that_has_no_room_anyway():
    assert most_workers({"CPU": 1.0}, [{"CPU": 0.5, "data": 0.001}], [{"CPU": 2.0}], at_most=2) == 2


def test_reading_takes_no_gpu_from_a_worker():
    machines = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0}]
    assert most_workers({"CPU": 8.0, "GPU": 1.0}, READING, machines, at_most=4) == 2
    assert most_workers({"CPU": 8.0, "GPU": 1.0}, READING, machines[:2], at_most=4) == 1


def test_what_is_lacking_is_said():
    scale = ScaleConfig(workers=2)
    assert lacking(scale, [{"CPU": 2.0}, {"CPU": 1.0}], use_gpu=False) == ""
    assert lacking(scale, [{"CPU": 2.0}], use_gpu=False) == "no room for 2 workers and reading on 1 machine with 2 CPUs"
