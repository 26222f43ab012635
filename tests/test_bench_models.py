import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from raysrec.history import HIDDEN
from raysrec.models import MODELS

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import bench_gpu
import bench_models as bench
import model_steps

GIVEN = Namespace(
    device="cpu",
    items=40,
    batch=3,
    positions=24,
    targets=1_000,
    threads=1,
    seconds=0.0,
    precision="float32",
    supervision="native",
    lifelong=False,
)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_measured(name):
    found = bench.measure(name, 8, GIVEN)
    model, _ = bench._made(bench.config_of(name, 8), 8, GIVEN)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["supervision"] == (
        "every_position" if model.causal else "cloze" if model.fills_gaps else "last_position"
    )
    assert found["inference_s"] > 0
    assert ("epoch_s" in found) == (found["parameters"] > 0)
    assert found["flops"] + found["other_values"] > 0 or not model.reads_items
    cells = bench._cost_cells(found)
    assert cells["parameters"] == f"{found['parameters']:,}"


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.reads_items])
def test_every_model_that_reads_items_has_a_cost_per_item(name):
    assert bench.measure(name, 8, Namespace(**{**vars(GIVEN), "batch": None, "lifelong": True}))["us_per_item"] > 0


def test_an_epoch_has_as_many_targets_however_they_are_learned(monkeypatch):
    monkeypatch.setattr(bench, "_seconds", lambda call, given: 1.0)
    causal = next(name for name in MODELS if bench._made(bench.config_of(name, 8), 8, GIVEN)[0].causal)
    assert bench.measure(causal, 8, GIVEN)["epoch_s"] == pytest.approx(1_000 / (3 * 8))
    prefixes = Namespace(**{**vars(GIVEN), "supervision": "last_position"})
    assert bench.measure(causal, 8, prefixes)["epoch_s"] == pytest.approx(1_000 / 3)


def test_what_fills_gaps_learns_from_what_training_hides_of_it(monkeypatch):
    many = Namespace(**{**vars(GIVEN), "batch": 200})
    model, history = bench._made(bench.config_of("bert4rec", 500), 500, many)
    batch = model_steps.with_targets(history, bench._supervision(model, many))
    hidden = batch.history.items == HIDDEN
    assert torch.equal(batch.targets, history.items * hidden)
    only_last = hidden.sum(1) == 1
    assert hidden[only_last, -1].all()
    assert only_last.float().mean() == pytest.approx(0.5, abs=0.1)
    assert hidden[~only_last].float().mean() == pytest.approx(0.2, abs=0.02)
    monkeypatch.setattr(bench, "_seconds", lambda call, given: 1.0)
    assert bench.measure("bert4rec", 500, GIVEN)["epoch_s"] == pytest.approx(1_000 / (3 * (0.5 + 0.5 * 100)))


def test_flops_see_products_and_the_other_count_sees_the_rest():
    from torch.utils.flop_counter import FlopCounterMode

    a, b = torch.ones(3, 4), torch.ones(4, 5)
    with FlopCounterMode(display=False) as flops, bench._OtherValues() as other:
        ((a @ b).exp().view(15)[:7] + 1).sum()
    assert flops.get_total_flops() == 2 * 3 * 4 * 5
    assert other.total == 15 + 7 + 1  # exp, addition, sum; neither the product nor views


def test_settings_stand_after_the_name():
    name = next(iter(MODELS))
    assert bench.config_of(f"{name}:dim=32,dropout=0.5", 8) == MODELS[name].Config(dim=32, dropout=0.5, max_length=8)


@pytest.mark.slow
def test_the_table_is_markdown_of_one_process_per_length(monkeypatch, capsys):
    name = next(name for name, model in MODELS.items() if model.reads_items)
    small = ["--device", "cpu", "--positions", "40", "--items", "30", "--seconds", "0", "--models", name]
    monkeypatch.setattr("sys.argv", ["bench_models", *small, "--lifelong", "--lengths", "10", "20"])
    assert bench.main() == 0
    header, line, row = capsys.readouterr().out.strip().splitlines()[-3:]
    columns = [cell.strip() for cell in header.split("|")[1:-1]]
    assert columns == ["model", "us/item at 10", "us/item at 20", "20 to 10"]
    assert set(line) <= set("|-")
    assert row.split("|")[1].strip() == name


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--lifelong", "--positions", "100"], "not a multiple of every length"),
        (["--lifelong", "--batch", "3"], "give --positions and not --batch"),
        (["--models", "no-such-model"], "no-such-model"),
        (["--models", f"{next(iter(MODELS))}:width=3"], "width"),
    ],
)
def test_mistakes_are_told_in_words(monkeypatch, capsys, options, complaint):
    monkeypatch.setattr("sys.argv", ["bench_models", "--device", "cpu", *options])
    with pytest.raises(SystemExit):
        bench.main()
    assert complaint in capsys.readouterr().err


def test_every_model_that_learns_has_a_row_of_what_a_gpu_could_do(monkeypatch, capsys):
    small = ["--device", "cpu", "--small", "--lengths", "8", "--positions", "16", "--items", "30", "--seconds", "0"]
    monkeypatch.setattr("sys.argv", ["bench_gpu", *small])
    assert bench_gpu.main() == 0
    rows = capsys.readouterr().out.splitlines()[5:]
    assert [row.split()[0] for row in rows] == [name for name in MODELS if name != "popularity"]  # it only counts
    assert all(row.split()[1:3] == ["8", "torch"] and row.endswith("%") for row in rows)
