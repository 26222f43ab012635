from pathlib import Path

import pytest

from raysrec import train, tune
from raysrec.cluster.runtime import ClusterError, threads_per_worker
from raysrec.config.loading import validate
from raysrec.models import build_model
from raysrec.plan import plan
from raysrec.prepare import find_prepared, prepare

ROOT = Path(__file__).parent.parent


@pytest.fixture
def configure(tmp_path):
    """A config of fifty synthetic users and twenty items."""

    def make(name="recgrela", **sections):
        data = {"prepared": str(tmp_path), "synthetic": {"num_users": 50, "num_items": 20}} | sections.pop("data", {})
        return validate({"model": {"name": name, "dim": 16}, "data": data} | sections)

    return make


def rows(text):
    """The plan's label -> text; a label is the words before the column of texts."""
    lines = text.splitlines()
    column = next(line.index("runs/") for line in lines if line.startswith("run "))
    return {line[:column].strip(): line[column:] for line in lines}


def test_a_plan_without_data_leaves_open_what_depends_on_it(configure):
    config = configure()
    assert find_prepared(config.data) is None
    found = rows(plan(config, None))
    assert found["run"] == "runs/synthetic-recgrela"
    assert found["data"] == "synthetic: not prepared yet; python -m raysrec.prepare makes it and fills in this plan"
    assert found["model"] == "recgrela"
    assert found["supervision"] == "every_position, windows tile, histories of up to 200 items"
    assert found["engine"] == "torch, float32"
    assert not {"users", "items", "interactions", "targets per epoch", "steps", "loss"} & found.keys()


def test_a_plan_with_data_counts_what_will_be_done(configure):
    config = configure(train={"batch_targets": 64, "epochs": 7})
    data = prepare(config.data)
    assert find_prepared(config.data) == data
    lengths = [len(items) for group in data.row_groups() for items in histories(group)]
    targets = sum(length - 3 for length in lengths)
    found = rows(plan(config, data))
    assert found["data"] == f"synthetic in {data.directory}"
    assert found["users"] == str(len(lengths))
    assert found["items"] == str(data.manifest.num_items)
    assert found["interactions"] == f"{sum(lengths):,}"
    assert found["targets per epoch"] == f"{targets:,}"
    steps = round(targets / 64)
    assert found["steps"] == f"about {steps:,} an epoch, {steps * 7:,} in 7 epochs"


def test_a_plan_says_how_data_are_split_and_who_is_ranked(configure):
    config = configure(data={"split": {"name": "temporal", "validation_share": 0.2, "test_share": 0.3}})
    manifest = prepare(config.data).manifest
    found = rows(plan(config, prepare(config.data)))
    assert found["split"] == str(manifest.split)
    assert manifest.num_test_users < manifest.num_users
    expected = f"{manifest.num_validation_users:,} users to validate, {manifest.num_test_users:,} to test"
    assert found["ranked"] == expected
    assert found["targets per epoch"] == f"{manifest.num_targets:,}"


def histories(group):
    import pyarrow.parquet as pq

    return pq.ParquetFile(group.path).read_row_group(group.index, columns=["items"])["items"].to_pylist()


def test_a_plan_with_data_counts_parameters_and_the_memory_of_the_loss(configure):
    config = configure(train={"batch_targets": 64})
    data = prepare(config.data)
    num_items = data.manifest.num_items
    parameters = sum(p.numel() for p in build_model(config.model, num_items).parameters())
    found = rows(plan(config, data))
    assert found["model"] == f"recgrela, {parameters:,} parameters, causal"
    assert found["loss"] == (
        f"softmax over {num_items} items in chunks of 64 x {num_items}: {4 * 64 * num_items / 1e6:.1f} MB beside "
        f"{4 * num_items * 16 / 1e6:.1f} MB of gradient "
        f"(scoring {num_items} items costs 0.0 times encoding a target's 1.0 positions; exact up to 16 times on cpu)"
    )


def test_a_model_that_looks_both_ways_is_called_so(configure):
    config = configure(train={"supervision": "last_position"})
    config = validate({**config.model_dump(mode="json"), "model": {"name": "recgrela", "form": "bidirectional"}})
    found = rows(plan(config, prepare(config.data)))
    assert found["model"].endswith("parameters, not causal")
    assert found["supervision"] == "last_position, histories of up to 200 items"


def test_there_is_one_step_at_least(configure):
    config = configure(train={"batch_targets": 10**9, "epochs": 3})
    assert rows(plan(config, prepare(config.data)))["steps"] == "about 1 an epoch, 3 in 3 epochs"


def test_workers_engine_and_kernels_are_named(configure):
    config = configure(scale={"workers": 2}, engine={"name": "deepspeed", "zero_stage": 3})
    on_cpu, on_gpu = rows(plan(config, None)), rows(plan(config, None, use_gpu=True))
    assert on_cpu["engine"] == "deepspeed, ZeRO stage 3, float32"
    assert on_gpu["engine"] == "deepspeed, ZeRO stage 3, bfloat16 where the GPU has it"
    assert on_cpu["workers"] == f"2 on cpu, {threads_per_worker(config.scale)} threads each, 4 streams"
    assert on_gpu["workers"] == "2 on cuda, 4 streams"
    for operator in ("selective scan", "short convolution", "linear attention"):
        assert f"{operator}: " in on_cpu["kernels"]


def test_a_precision_that_is_set_is_shown_as_it_is(configure):
    config = configure(engine={"precision": "bfloat16"})
    assert rows(plan(config, None))["engine"] == "torch, bfloat16"


@pytest.mark.parametrize("verb", [train, tune])
def test_a_dry_run_refuses_what_would_not_start(verb, monkeypatch, tmp_path):
    (tmp_path / "sweep.yaml").write_text("space: {train.learning_rate: {grid: [0.1, 0.2]}}\n")
    sweep = ["--sweep", str(tmp_path / "sweep.yaml")] if verb is tune else []
    command = [*sweep, "--config", str(ROOT / "configs/quickstart.yaml"), "--dry-run"]
    # As a submitted job, in the folder that goes with it.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://a.zip"}}')
    with pytest.raises(ClusterError, match=r"storage\.root=runs: lies in the folder which Ray unpacked for this job"):
        verb.main(verb.parser().parse_intermixed_args(command))


def test_streams_that_have_nothing_to_read_are_counted(configure):
    config = configure()
    data = prepare(config.data)
    groups = len(data.row_groups())
    for number, said in (
        (groups, f"{groups} streams"),
        (groups + 3, f"{groups + 3} streams, of which 3 have nothing to read (data.num_streams={groups} is enough)"),
    ):
        streams = config.model_copy(update={"data": config.data.model_copy(update={"num_streams": number})})
        assert rows(plan(streams, data))["workers"].endswith(said)
