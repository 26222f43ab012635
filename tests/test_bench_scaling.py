import sys
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import pytest
from engine_workers import NUM_ITEMS, NUM_USERS, SMALL, configure, engine_of, micro_batches, on_workers

from raysrec.config.run import RunConfig
from raysrec.models import MODELS, build_model

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench_scaling as bench  # noqa: E402
import scaling_here as here  # noqa: E402
import scaling_on_paper as paper  # noqa: E402

SIZES = paper.Sizes(values=10, table=6, in_layers=2, large=6, num_small=3)
SLOW = paper.Link(bytes_per_s=50.0, latency_s=0.5)
FREE = paper.Hardware(1, paper.Link(inf), paper.Link(inf))
COMPUTE = paper.Compute(per_target_s=0.01, per_step_s=0.2, update_s=0.8)


def training(**changes):
    return replace(paper.Training(SIZES, COMPUTE, targets_per_micro_batch=1_000.0), **changes)


def test_a_ring_sends_twice_what_a_half_of_it_does():
    whole, half = paper.Exchange("all_reduce", 100.0), paper.Exchange("reduce_scatter", 100.0)
    assert whole.sent(4) == 2 * 3 / 4 * 100
    assert half.sent(4) == paper.Exchange("all_gather", 100.0).sent(4) == 3 / 4 * 100
    assert whole.seconds(4, SLOW) == 150 / 50 + 2 * 2 * 0.5
    assert half.seconds(4, SLOW) == 75 / 50 + 2 * 0.5
    assert paper.Exchange("all_gather", 100.0, messages=3, times=2).seconds(4, SLOW) == 2 * 75 / 50 + 6 * 2 * 0.5


def test_one_gpu_sends_nothing():
    assert [paper.sent_bytes(way, SIZES, 1, micro_batches=5) for way in paper.WAYS] == [0.0] * 4
    assert paper.Exchange("all_reduce", 100.0).seconds(1, SLOW) == 0.0


@pytest.mark.parametrize(
    ("way", "micro_batches", "bfloat16", "sent"),
    [
        ("DDP", 1, False, 40),  # half of 2 x 40 bytes of gradients
        ("DDP", 3, True, 40),
        ("ZeRO 1", 3, False, 40 + 20),  # and half of 40 bytes of weights
        ("ZeRO 1", 3, True, 36 + 20),  # two values of layers in half the bytes
        ("ZeRO 2", 3, False, 3 * 40 + 20),
        ("ZeRO 3", 1, False, 20 + 12 + 8),
        ("ZeRO 3", 3, False, 3 * 20 + 3 * 12 + 8),  # 24 bytes of large weights, 16 of small ones
        ("ZeRO 3", 3, True, 3 * 18 + 3 * 12 + 8),
    ],
)
def test_bytes_of_a_step_of_two(way, micro_batches, bfloat16, sent):
    assert paper.sent_bytes(way, SIZES, 2, micro_batches=micro_batches, bfloat16=bfloat16) == sent


def test_what_is_held_is_divided_as_the_stage_says():
    assert [paper.state_bytes(way, SIZES, 4) for way in paper.WAYS] == [160.0, 40 + 40 + 30, 40 + 10 + 30, 40.0]
    assert paper.state_bytes("ZeRO 3", SIZES, 1) == paper.state_bytes("DDP", SIZES, 1)


def test_links_that_cost_nothing_leave_the_compute():
    for number in (1, 2, 64):
        step = training().step("DDP", number, 100.0, FREE)
        assert step == (100.0, pytest.approx(0.01 * 100 / number + 1.0), 0.0)
        kept = training().efficiency("DDP", number, 100.0 * number, FREE, alone=100.0)
        assert kept == pytest.approx(1.0)
    divided = training().efficiency("DDP", 4, 100.0, FREE, alone=100.0)
    assert divided == pytest.approx((1.0 + 1.0) / (1.0 + 4 * 1.0))
    assert training().step("ZeRO 1", 4, 100.0, FREE).compute_s == pytest.approx(0.25 + 0.2 + 0.8 / 4)


def test_a_step_is_its_compute_and_its_exchange():
    slow = paper.Hardware(1, paper.Link(inf), paper.Link(10.0))
    step = training().step("DDP", 2, 100.0, slow)
    assert step == (100.0, pytest.approx(0.5 + 1.0), pytest.approx(40 / 10))
    assert step.targets_per_s == pytest.approx(100 / 5.5)
    assert step.exchange_share == pytest.approx(4 / 5.5)
    many = training(targets_per_micro_batch=20.0).step("ZeRO 2", 2, 100.0, slow)
    assert many.exchange_s == pytest.approx((3 * 40 + 20) / 10)  # 50 targets are three micro-batches


def test_all_but_the_table_hides_behind_the_backward_pass():
    slow = paper.Hardware(1, paper.Link(inf), paper.Link(10.0))
    # of 4 s: 2.4 for the table; of the other 1.6 the backward pass of 0.5 s hides 1/3
    assert training(overlap=True).step("DDP", 2, 100.0, slow).exchange_s == pytest.approx(2.4 + 1.6 - 0.5 * 2 / 3)
    assert training(overlap=True).step("DDP", 2, 1e4, slow).exchange_s == pytest.approx(2.4)


def test_between_machines_the_slower_link_counts():
    hardware = paper.Hardware(8, paper.LINKS["nvlink"], paper.LINKS["infiniband"])
    assert hardware.link(8) == paper.LINKS["nvlink"]
    assert hardware.link(9) == paper.LINKS["infiniband"]
    fast_outside = paper.Hardware(2, paper.LINKS["pcie"], paper.LINKS["infiniband"])
    assert fast_outside.link(4).bytes_per_s == paper.LINKS["pcie"].bytes_per_s
    assert paper.Hardware(1, paper.Link(1.0), SLOW).link(2) == SLOW


def test_two_batches_tell_what_a_step_takes_whatever_its_batch_is():
    assert paper.Compute.fitted([(100, 2.0), (20, 1.2)], update_s=0.5) == paper.Compute(
        pytest.approx(0.01), pytest.approx(0.5), 0.5
    )
    assert paper.Compute.fitted([(100, 2.0)], update_s=0.5) == paper.Compute(0.015, 0.0, 0.5)
    proportional = paper.Compute.fitted([(100, 2.0), (50, 1.0)], update_s=0.5)
    assert proportional == paper.Compute(0.015, 0.0, 0.5)
    assert COMPUTE.on_gpu(2.0, per_step_s=0.3) == paper.Compute(0.005, 0.3, 0.4)
    with pytest.raises(ValueError, match=r"100 targets took 1 s and one of 50 took 2 s: a larger batch must"):
        paper.Compute.fitted([(100, 1.0), (50, 2.0)])
    with pytest.raises(ValueError, match="one or two"):
        paper.Compute.fitted([(1, 1.0), (2, 2.0), (3, 3.0)])


def test_what_a_worker_computes_is_read_off_its_medians():
    whole = [[{"step_targets": 100.0, "step_s": seconds, "update_s": 0.5}] for seconds in (2.0, 9.0, 1.0)]
    smaller = [[{"step_targets": 20.0, "step_s": seconds}] for seconds in (1.2, 1.2, 7.0)]
    found = here.Here({}, {1: whole}, smaller).compute()
    assert found == paper.Compute(pytest.approx(0.01), pytest.approx(0.5), 0.5)


def test_gpus_pay_up_to_the_first_number_that_does_not():
    assert paper.worth([(1, 1.0), (2, 0.9), (4, 0.6), (8, 0.7)], at_least=0.7) == 2
    assert paper.worth([(8, 0.6)], at_least=0.7) == 1


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.reads_items])
def test_sizes_are_those_of_the_model(name):
    model = build_model(MODELS[name].Config.model_validate(SMALL[name]), NUM_ITEMS, NUM_USERS)
    sizes = here.sizes_of(model)
    assert sizes.values == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.table >= (NUM_ITEMS + 1) * 8
    whole = sum(parameter.numel() for parameter in model.parameters() if parameter.numel() <= here.PERSISTS)
    assert sizes.values - sizes.large == whole
    assert here.sizes_of(model, persists=0).large == sizes.values


@dataclass(frozen=True)
class Exchanged:
    """What a step of three micro-batches of each worker exchanges."""

    config: RunConfig

    def run(self, worker, num_workers):
        engine = engine_of(self.config)
        engine.step(micro_batches(0), learning_rate=0.01)
        engine.step(micro_batches(1), learning_rate=0.01)
        return here.exchanged_values(engine, micro_batches(2))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_step_exchanges_what_is_on_paper(tmp_path):
    divide_all = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    engines = {
        "DDP": {"name": "torch"},
        **{f"ZeRO {stage}": {"name": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)},
        "ZeRO 3, all divided": {"name": "deepspeed", "zero_stage": 3, "extra": divide_all},
    }
    configs = {name: configure("sasrec", clip_norm=0.0, **engine) for name, engine in engines.items()}
    seen = on_workers(2, tmp_path, {name: Exchanged(config) for name, config in configs.items()})
    model = build_model(configs["DDP"].model, NUM_ITEMS, NUM_USERS)
    for name, values in seen.items():
        sizes = here.sizes_of(model, persists=0 if "divided" in name else here.PERSISTS)
        expected = dict.fromkeys(here.KINDS, 0.0)
        for each in paper.exchanges(name.split(",")[0], sizes, micro_batches=3):
            expected[each.kind] += each.times * each.bytes / 4
        assert values == pytest.approx(expected, rel=0.01), name  # DeepSpeed fills up to whole parts


QUICK = [
    "--config",
    str(ROOT / "configs/quickstart.yaml"),
    "data.synthetic.num_users=60",
    "data.synthetic.num_items=40",
    "model.max_length=8",
    "model.dim=8",
    "train.batch_targets=64",
]


def run(options, tmp_path):
    bench.main(bench.parser().parse_intermixed_args([*QUICK, f"data.prepared={tmp_path}", *options]))


def test_paper_needs_no_measuring(tmp_path, capsys):
    given = ["--compute-seconds", "64=0.02,16=0.01", "--gpus", "1,4", "--hardware", "2:nvlink:12.5@20"]
    run(["--workers", "none", *given], tmp_path)
    said = capsys.readouterr().out
    assert "208 µs a target, 6.67 ms a step whatever its batch, 0 ms to update" in said
    assert "machines of 2, 360 GB/s a GPU inside, 12.5 GB/s between machines" in said
    one, four = [line for line in said.splitlines() if line.startswith(("| 1 ", "| 4 "))][:2]
    assert [cell.strip() for cell in one.split("|")[1:4]] == ["1", "64", "3k, 100% (0%)"]
    assert four.split("|")[2].strip() == "16"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_are_measured_with_and_without_each_other(tmp_path, capsys):
    paced = ["--compute-seconds", "64=0.02"]  # what is measured in two steps of a busy machine need not make sense
    run(["--workers", "1,2", "--steps", "2", "--rounds", "1", "engine.name=torch", *paced], tmp_path)
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[:4] if row[0].isdigit()] == ["1", "2"]
    seen = next(row for row in rows if row[0] == "all_reduce")
    assert seen[1] == seen[2] != "0"
    assert "compute as given, of one GPU" in said


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--workers", "4", "data.num_streams=2"], "--workers 4 exceeds data.num_streams=2; set data.num_streams=4"),
        (["--workers", "none"], "say with --compute-seconds what a GPU computes"),
        (["--workers", "2", "train.batch_targets=4"], "train.batch_targets=4 is too few for 2 workers"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(tmp_path, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        run(options, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--hardware", "8:nvlnk:infiniband"], "expected GPUs a machine:inside:between"),
        (["--hardware", "8:nvlink:-1"], "expected GPUs a machine:inside:between"),
        (["--compute-seconds", "0.02"], "expected targets=seconds"),
        (["--compute-seconds", "64=nan"], "expected targets=seconds"),
        (["--times-as-fast", "0"], "expected factors above 0"),
        (["--steps", "0"], "argument --steps: invalid positive value: '0'"),
        (["--gpus", "0"], "expected numbers of at least 1"),
    ],
)
def test_mistakes_are_told_in_words(tmp_path, capsys, options, complaint):
    with pytest.raises(SystemExit):
        run(options, tmp_path)
    assert complaint in capsys.readouterr().err
