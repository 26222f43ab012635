import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from run_folders import record_of

from raysrec.config.run import RunConfig
from raysrec.models import MODELS, build_model
from raysrec.prepare import prepare
from raysrec.run_directory import RunDirectory

TOOL = Path(__file__).parent.parent / "tools" / "plot_features.py"


@pytest.fixture(scope="module")
def plot():
    spec = spec_from_file_location("plot_features", TOOL)
    sys.modules["plot_features"] = module = module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["plot_features"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One directory per kind of model, as a finished training leaves it, but untrained."""
    folder = tmp_path_factory.mktemp("runs")
    names = [name for name, model in MODELS.items() if model.reads_items]
    return [finished(folder, name, seed=0) for name in names[:3]]


def finished(folder, name, seed):
    synthetic = {"num_users": 60, "num_items": 50, "mean_length": 20, "seed": seed}
    model = MODELS[name].Config.model_validate({"name": name, "dim": 16, "max_length": 12})
    built = build_model(model, 1, 1)
    config = RunConfig.model_validate(
        {
            "data": {"synthetic": synthetic, "prepared": str(folder / "prepared")},
            "model": model.model_dump(),
            "train": {"supervision": "every_position" if built.causal else "last_position"},
        }
    )
    data = prepare(config.data)
    run = RunDirectory(folder / f"{name}-{seed}")
    run.start(config, "0123456789abcdef")
    sizes = data.manifest.num_items, data.manifest.num_users
    weights = build_model(model, *sizes).state_dict()
    run.save_model(config, sizes[0], weights, num_users=sizes[1])
    run.save_record(record_of(prepared=str(data.directory)))
    return run


def test_the_longest_histories_are_shown_without_their_test_item(plot, runs):
    data = plot.shared_data(runs)
    histories = plot.longest_histories(runs[0], data, 5)
    assert [int(history.lengths) for history in histories] == [12] * 5
    assert all(history.items.shape == (1, 12) and (history.items > 0).all() for history in histories)
    everybody = plot.longest_histories(runs[0], data, 1_000)
    assert len(everybody) == data.manifest.num_users
    lengths = [int(history.lengths) for history in everybody]
    assert lengths == sorted(lengths, reverse=True)


def test_ranks_of_known_matrices(plot):
    spectrum = torch.linalg.svdvals(torch.diag(torch.tensor([4.0, 4.0, 4.0, 0.03])))
    assert plot.rank(spectrum, 0.01) == 3
    assert plot.rank(spectrum, 0.005) == 4
    assert plot.effective_rank(torch.tensor([4.0, 4.0, 4.0, 0.0])) == pytest.approx(3)
    assert plot.effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)


def test_features_are_the_models_states(plot, runs):
    data = plot.shared_data(runs)
    found = plot.features(runs[0], data, 3, 0.01)
    model = runs[0].load_model()
    states = [model.encode(history)[0] for history in plot.longest_histories(runs[0], data, 3)]
    assert torch.equal(found.example, states[0])
    assert 1 <= found.effective_rank <= 12
    assert found.rank == sorted(int((s > 0.01 * s[0]).sum()) for s in map(torch.linalg.svdvals, states))[1]


def test_runs_on_different_data_are_refused(plot, runs, tmp_path):
    with pytest.raises(plot.RunError, match="different data"):
        plot.shared_data([runs[0], finished(tmp_path, next(iter(MODELS)), seed=1)])


def test_a_run_that_has_not_finished_is_refused(plot, tmp_path, runs):
    run = RunDirectory(tmp_path / "begun")
    run.start(runs[0].config(), "0123456789abcdef")
    with pytest.raises(plot.RunError, match="has not finished training"):
        plot.shared_data([run])


def test_a_picture_is_drawn_for_the_runs_on_the_command_line(plot, runs, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plot`")
    out = tmp_path / "features.png"
    monkeypatch.setattr("sys.argv", ["plot_features", *(str(run.path) for run in runs), "--out", str(out)])
    before = runs[0].metrics_file.read_text()
    assert plot.main() == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [run.path.name for run in runs]
    assert all("of 16, effective rank" in line for line in lines)
    assert runs[0].metrics_file.read_text() == before  # nothing in a run is touched
