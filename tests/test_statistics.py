"""What `python -m raysrec.data` says and draws, against a slow count of the same files."""

import json
import sys

import numpy as np
import pytest

from raysrec.command_line import run_verb
from raysrec.config import DataConfig
from raysrec.data import __main__ as verb
from raysrec.data.batching.reading import read_directly
from raysrec.data.statistics import BINS, Statistics, describe, in_largest_unit
from raysrec.prepare import prepare

SPLITS = [{}, {"name": "temporal", "validation_share": 0.2, "test_share": 0.2}]


@pytest.fixture(scope="module", params=SPLITS, ids=["leave_one_out", "temporal"])
def data(request, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("prepared"))
    small = {"num_users": 150, "num_items": 60, "mean_length": 12}
    return prepare(DataConfig.model_validate({"prepared": folder, "synthetic": small, "split": request.param}))


@pytest.fixture(scope="module")
def found(data):
    return Statistics.of(data)


def test_everything_is_counted_once(data, found):
    rows = [row for table in read_directly(data.row_groups()) for row in table.to_pylist()]
    lengths = sorted(len(row["items"]) for row in rows)
    assert np.repeat(np.arange(len(found.users_of_length)), found.users_of_length).tolist() == lengths
    assert found.item_counts.tolist() == sorted(data.counts()[1:].tolist(), reverse=True)
    times = [time for row in rows for time in row["times"]]
    assert found.interactions.tolist() == np.histogram(times, found.edges)[0].tolist()
    assert (found.edges[0], found.edges[-1], len(found.edges)) == (min(times), max(times) + 1, BINS + 1)
    assert found.learned.sum() == data.train_counts().sum()
    assert {name: count.sum() for name, count in found.targets.items()} == {
        name: data.manifest.num_ranked(name) for name in ("validation", "test")
    }


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_quantiles_are_lengths_that_occur(found, share):
    lengths = np.repeat(np.arange(len(found.users_of_length)), found.users_of_length)
    assert found.length_quantile(share) == np.quantile(lengths, share, method="inverted_cdf")


def skewed(counts):
    return Statistics(np.array([0, 1]), np.array(counts), np.arange(3.0), *[np.zeros(2, np.int64)] * 2, {}, {})


def test_popularity_is_even_or_skewed():
    assert skewed([3, 3, 3, 3]).gini == pytest.approx(0)
    assert skewed([100, 0, 0, 0]).gini == pytest.approx(0.75)
    counts = [9, 5, 2, 1]
    differences = sum(abs(a - b) for a in counts for b in counts)
    assert skewed(counts).gini == pytest.approx(differences / (2 * 4 * sum(counts)))
    assert skewed(counts).share_of_top(0.01) == 9 / 17
    assert skewed(counts).share_of_top(0.5) == 14 / 17


def test_items_that_are_never_learned_from_are_counted(data, found):
    train_counts, manifest = data.train_counts(), data.manifest
    cold = dict.fromkeys(found.cold_targets, 0)
    for table in read_directly(data.row_groups()):
        for items, times in zip(table["items"].to_pylist(), table["times"].to_pylist(), strict=True):
            places = manifest.split.positions(np.array([0, len(times)]), np.array(times)).held_out
            for name, (place,) in places.items():
                cold[name] += int(place >= 0 and train_counts[items[place]] == 0)
    assert found.cold_targets == cold


def test_the_description_says_what_the_manifest_says(data, found):
    text = describe(data, found)
    manifest = data.manifest
    for expected in (
        manifest.fingerprint,
        f"{manifest.num_users:,} (0 of {manifest.source_users:,} were filtered out)",
        f"{manifest.num_ranked('test'):,} users; {manifest.num_users - manifest.num_ranked('test'):,} have nothing",
        f"{manifest.leaked_test_targets:,} items",
        str(manifest.split),
        f"part-00000.parquet: {manifest.shards[0].bytes:,} bytes",
    ):
        assert expected in text
    assert in_largest_unit(59.0) == "59 seconds"
    assert in_largest_unit(8.64e7) == "1,000 days"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["data", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            run_verb(verb.main, verb.parser())
        return exit.value.code, *capsys.readouterr()

    return run


def test_a_folder_or_the_config_that_prepared_it_is_named(run, tmp_path):
    settings = {"source": "synthetic", "prepared": str(tmp_path / "p"), "synthetic": {"num_users": 50}}
    (tmp_path / "a.yaml").write_text(json.dumps({"model": {"name": "recgrela"}, "data": settings}))
    assert run("--config", tmp_path / "a.yaml")[2].startswith(f"error: {tmp_path}/p/")
    data = prepare(DataConfig.model_validate(settings))
    code, printed, _ = run("--config", tmp_path / "a.yaml", "data.name=toys")
    assert code == 0
    assert run(data.directory) == (0, printed, "")
    assert run()[::2] == (2, "error: name one prepared folder, such as prepared/0123456789abcdef, or the --config of "
                             "its data\n")  # fmt: skip
    assert "no prepared data here (there is no manifest.json)" in run(tmp_path)[2]


def test_the_picture_is_drawn(run, data, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plot`")
    code, printed, _ = run(data.directory, "--picture", tmp_path / "a.png")
    assert code == 0
    assert printed.endswith(f"picture in {tmp_path / 'a.png'}\n")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("times", [[2**62, 2**62 + 1, -(2**62)], [5, 5, 5]])
def test_any_times_are_drawn(run, tmp_path, times):
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra `plot`")
    (tmp_path / "a.csv").write_text(
        "user,item,time\n" + "".join(f"u,{place},{time}\n" for place, time in enumerate(times))
    )
    loose = {"user_interactions": "[3,inf)", "item_interactions": "[1,inf)", "prepared": str(tmp_path / "p")}
    data = prepare(DataConfig(source=str(tmp_path / "a.csv"), **loose))
    assert run(data.directory, "--picture", tmp_path / "a.png")[0] == 0


def test_without_matplotlib_a_picture_says_what_to_install(run, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, printed, error = run(data.directory, "--picture", tmp_path / "a.png")
    assert (code, error) == (
        2,
        f"error: {tmp_path / 'a.png'}: a picture needs matplotlib; pip install 'raysrec[plot]'\n",
    )
    assert printed.startswith("data ")
