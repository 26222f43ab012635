import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysrec import prepare as verb
from raysrec.command_line import run_verb
from raysrec.config import DataConfig
from raysrec.data.prepared import PreparedData
from raysrec.data.preparing import in_memory, publishing
from raysrec.data.sources.files import SourceError
from raysrec.prepare import find_prepared, prepare, summary

ROOT = Path(__file__).parent.parent
REAL = ROOT / "../shared/data"

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


@pytest.fixture
def config(tmp_path):
    """A config of the lines of a RecBole file, with further settings."""

    def make(lines, **settings):
        path = tmp_path / "a.inter"
        path.write_text(HEADER + "".join("\t".join(map(str, line)) + "\n" for line in lines))
        loose = {"user_interactions": "[3,inf)", "item_interactions": "[1,inf)"}
        return DataConfig.model_validate(
            {"source": str(path), "prepared": str(tmp_path / "prepared")} | loose | settings
        )

    return make


def histories(data):
    """External user -> [(external item, time)], in the order of the rows."""
    ids = data.item_ids().to_pylist()
    return {
        row["user_id"]: [(ids[item], time) for item, time in zip(row["items"], row["times"], strict=True)]
        for shard in data.manifest.shards
        for row in pq.read_table(data.directory / shard.file).to_pylist()
    }


def files(folder):
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_numbers_follow_first_appearance_in_what_is_kept(config):
    lines = [("gone", "z", 0), ("v", "b", 9), ("u", "c", 1), ("v", "a", 1), ("u", "b", 2), ("v", "c", 5), ("u", "a", 3)]
    data = prepare(config(lines))
    assert data.item_ids().to_pylist() == [None, "b", "c", "a"]
    assert list(histories(data).items()) == [
        ("v", [("a", 1), ("c", 5), ("b", 9)]),
        ("u", [("c", 1), ("b", 2), ("a", 3)]),
    ]
    assert pq.read_table(data.directory / "histories/part-00000.parquet").column("user").to_pylist() == [1, 2]


def test_interactions_at_the_same_time_keep_the_order_of_the_file(config):
    lines = [("u", item, 7) for item in "hagcbfed"] + [("u", "first", 6)]
    assert [item for item, _ in histories(prepare(config(lines)))["u"]] == ["first", *"hagcbfed"]


def test_times_closer_than_a_float32_can_tell_are_ordered(config):
    lines = [("u", "c", 978300762), ("u", "b", 978300761), ("u", "a", 978300760)]
    assert [item for item, _ in histories(prepare(config(lines)))["u"]] == ["a", "b", "c"]


def test_times_known_to_a_float32_only_tie_and_keep_the_order_of_the_file(config):
    lines = [("u", "d", 978300830), ("u", "c", 978300762), ("u", "b", 978300761), ("u", "a", 978300760)]
    data = prepare(config(lines, time_precision="float32"))
    assert histories(data)["u"] == [("c", 978300736), ("b", 978300736), ("a", 978300736), ("d", 978300800)]
    assert data.manifest.tied_interactions == 3
    assert data.manifest.time_rule.endswith("; known as a float32 of what the source counts")
    thousandths = [(user, item, 1000 * time) for user, item, time in lines]
    data = prepare(config(thousandths, time_precision="float32", time_unit="ms"))
    # Near 1e12 float32 steps are 2**16: thousandths, of which the seconds are kept.
    assert histories(data)["u"] == [("c", 978300764), ("b", 978300764), ("a", 978300764), ("d", 978300829)]


def test_thousandths_of_a_second_order_and_seconds_are_kept(config):
    lines = [("u", "c", 1649467982002), ("u", "a", 1649467982000), ("u", "b", 1649467982001), ("u", "d", 1649467982002)]
    data = prepare(config(lines, time_unit="ms"))
    assert histories(data)["u"] == [(item, 1649467982) for item in "abcd"]
    assert (data.manifest.tied_interactions, data.manifest.tied_test_targets) == (2, 1)
    rule = "seconds as int64; fractions are rounded down"
    assert data.manifest.time_rule == f"{rule}; ordered by the source's 1/1,000 of a second"
    assert prepare(config(lines)).manifest.time_rule == rule


def test_ties_are_counted(config):
    lines = [("test", item, time) for item, time in zip("abcd", (1, 2, 3, 3), strict=True)]
    lines += [("validation", item, time) for item, time in zip("abcd", (1, 2, 2, 3), strict=True)]
    lines += [("neither", item, time) for item, time in zip("abcd", (3, 3, 4, 5), strict=True)]
    manifest = prepare(config(lines)).manifest
    assert manifest.tied_interactions == 6
    assert manifest.tied_test_targets == 1
    assert manifest.tied_validation_targets == 2  # a tie with the test item decides both


def test_the_manifest_counts(config):
    lines = (
        [("u", item, time) for time, item in enumerate("abcde")]
        + [("v", item, 0.5) for item in "abc"]
        + [("w", "a", 0)]
    )
    manifest = prepare(config(lines, name="toy")).manifest
    assert (manifest.num_users, manifest.num_items, manifest.num_interactions) == (2, 5, 8)
    assert (manifest.source_interactions, manifest.filter_rounds, manifest.longest_history) == (9, 1, 5)
    assert manifest.num_targets == 2
    assert manifest.floored_times == 3
    assert manifest.name == "toy"


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"validate_from": 1, "test_from": 2}, "there is nothing to learn from (temporal: learns before 1970-01"),
        ({"validate_from": 5, "test_from": 6}, "there is nothing to validate on"),
        ({"validate_from": 3, "test_from": 9}, "there is nothing to test on"),
        ({"validate_from": 3, "test_from": 9}, "the interactions are of 1970-01-01 00:00:00 to 1970-01-01 00:00:04"),
    ],
)  # fmt: skip
def test_a_split_that_leaves_nothing_is_an_error(config, split, expected):
    settings = config([("u", item, time) for time, item in enumerate("abcde")], split={"name": "temporal"} | split)
    with pytest.raises(ValueError, match=re.escape(expected)):
        prepare(settings)
    assert not Path(settings.prepared).exists()


def test_a_temporal_split_is_counted_and_leaks_nothing(config):
    lines = [("early", item, time) for time, item in enumerate("abc")]
    lines += [("late", item, time) for time, item in enumerate("abcd", 6)]
    lines += [("long", item, 2 * time) for time, item in enumerate("abcde")]
    moments = {"name": "temporal", "validate_from": 5, "test_from": 7}
    manifest = prepare(config(lines, split=moments)).manifest
    assert (manifest.num_validation_users, manifest.num_test_users, manifest.num_targets) == (1, 2, 4)
    assert (manifest.cold_validation_users, manifest.cold_test_users) == (0, 1)
    assert (manifest.leaked_validation_targets, manifest.leaked_test_targets) == (0, 0)
    assert [group.learned for shard in manifest.shards for group in shard.row_groups] == [6]
    manifest = prepare(config(lines)).manifest
    assert (manifest.leaked_validation_targets, manifest.leaked_test_targets) == (2, 1)


def test_filtering_takes_as_many_rounds_as_it_needs(config):
    pairs = [(user, item) for user in "ABC" for item in "123"]
    pairs += [
        ("D", "4"),
        ("D", "1"),
        ("E", "4"),
        ("E", "1"),
        ("E", "2"),
        ("F", "4"),
        ("F", "1"),
        ("F", "2"),
        ("F", "3"),
    ]
    lines = [(user, item, time) for time, (user, item) in enumerate(pairs)]
    data = prepare(config(lines, item_interactions="[3,inf)"))
    assert data.manifest.filter_rounds == 3
    assert list(histories(data)) == ["A", "B", "C", "F"]
    assert data.manifest.num_interactions == 12


def test_nothing_left_is_an_error(config):
    with pytest.raises(
        ValueError, match=r"user_interactions=\[9,inf\).*nothing is left of the 1 interactions of .*a\.inter"
    ):
        prepare(config([("u", "a", 1)], user_interactions="[9,inf)"))


def test_two_runs_write_the_same_bytes(config, tmp_path):
    lines = [(f"u{n % 17}", f"i{n * n % 31}", n * 7919 % 101) for n in range(1000)]
    first = prepare(config(lines))
    second = prepare(config(lines, prepared=str(tmp_path / "again")))
    assert first.directory.name == second.directory.name
    assert files(first.directory) == files(second.directory)


def test_what_is_there_is_reused_and_what_is_broken_made_again(config, monkeypatch):
    settings = config([("u", item, 0) for item in "abc"])
    assert find_prepared(settings) is None
    data = prepare(settings)
    before = files(data.directory)
    monkeypatch.setattr(in_memory, "read", None)  # would fail if it were called
    assert prepare(settings) == data == find_prepared(settings)
    monkeypatch.undo()
    (data.directory / "catalog.parquet").delete()
    assert find_prepared(settings) is None
    assert files(prepare(settings).directory) == before
    assert os.listdir(settings.prepared) == [data.directory.name]


def test_a_source_that_changes_while_it_is_read_is_refused(config, monkeypatch):
    settings = config([("u", item, 0) for item in "abc"])

    def read_and_append(config):
        found = read(config)
        with open(config.source, "a") as file:
            file.write("u\td\t1\n")
        return found

    read = in_memory.read
    monkeypatch.setattr(in_memory, "read", read_and_append)
    with pytest.raises(SourceError, match="changed while it was read"):
        prepare(settings)
    assert not Path(settings.prepared).exists()


def test_an_error_while_writing_leaves_nothing(config, monkeypatch):
    settings = config([("u", item, 0) for item in "abc"])
    monkeypatch.setattr(in_memory, "write_histories", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(settings)
    assert os.listdir(settings.prepared) == []


KILLED_AT = (
    "raysrec.data.preparing.in_memory.write_catalog",  # before the first file
    "raysrec.data.preparing.writing.RowGroupSize",  # within a file of histories
    "raysrec.data.preparing.writing.Manifest",  # when only the manifest is missing
    "raysrec.data.preparing.publishing._rename",  # when only the name is missing
)

# One process per moment, forked from one that has imported all; each stops where it is to be killed.
STOP_AT = """
import os, sys, time
from unittest import mock
from raysrec.config import DataConfig
from raysrec.prepare import prepare
def stop(*_, **__):
    print(os.getpid(), flush=True)
    time.sleep(60)
for line in sys.stdin:
    moment, _, config = line.partition(" ")
    child = os.fork()
    if not child:
        with mock.patch(moment, stop):
            prepare(DataConfig.model_validate_json(config))
    os.waitpid(child, 0)
"""


def test_killed_at_any_moment_nothing_looks_whole(config, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STOP_AT]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, bufsize=1, env=environment) as starter:
        for number, moment in enumerate(KILLED_AT):
            lines = [(f"u{n % 17}", f"i{n * n % 31}", n) for n in range(1000)]
            settings = config(lines, prepared=str(tmp_path / f"prepared-{number}"))
            starter.stdin.write(f"{moment} {settings.model_dump_json()}\n")
            started = int(starter.stdout.readline())
            # While it lives, its work is left alone.
            publishing.sweep(Path(settings.prepared))
            assert len(os.listdir(settings.prepared)) == 1
            os.kill(started, signal.SIGKILL)
            assert find_prepared(settings) is None
            assert [name for name in os.listdir(settings.prepared) if not name.startswith(".")] == []
            wait_until_gone(started)
            data = prepare(settings)
            assert os.listdir(settings.prepared) == [data.directory.name]


def wait_until_gone(process):
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(process, 0)
            time.sleep(0.01)


def test_two_at_once_do_not_break_each_other(config, monkeypatch):
    settings = config([(f"u{n % 17}", f"i{n * n % 31}", n) for n in range(1000)])
    both_have_written = threading.Barrier(2, timeout=30)
    rename = publishing._rename

    def wait_and_rename(*arguments):
        both_have_written.wait()
        rename(*arguments)

    monkeypatch.setattr(publishing, "_rename", wait_and_rename)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare, [settings, settings])
    assert first == second == PreparedData.open(first.directory)
    assert os.listdir(settings.prepared) == [first.directory.name]


def test_the_summary_says_what_came_out(config):
    data = prepare(config([("u", item, 0) for item in "abcd"]))
    text = summary(data)
    assert "users         1 of 1" in text
    assert "4 of 4, after 0 rounds of filtering; 1 to learn from" in text
    assert str(data.directory) in text


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run(data, *overrides):
        (tmp_path / "a.yaml").write_text(f"model: {{name: recgrela}}\ndata: {data}\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["prepare", "--config", "a.yaml", *overrides])
        with pytest.raises(SystemExit) as exit:
            run_verb(verb.main, verb.parser())
        return exit.value.code, *capsys.readouterr()

    return run


def test_the_command_prints_the_summary(run):
    code, printed, _ = run("{synthetic: {num_users: 50}}", "data.prepared=here")
    assert code == 0
    assert "users         45 of 50" in printed
    assert len(os.listdir("here")) == 1


def test_the_command_says_what_is_wrong_in_one_message(run):
    assert run("{source: none.inter}") == (2, "", "error: data.source=none.inter: there is no such file\n")


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions"),
    [
        ("ml-1m", 6_040, 3_416, 999_611),
        ("amazon-beauty", 22_363, 12_101, 198_502),
        ("ml-100k", 943, 1_349, 99_287),
    ],
)
def test_real_data_has_the_published_sizes(tmp_path, name, users, items, interactions):
    source = REAL / f"{name}.inter.gz"
    if not source.is_file():
        pytest.skip(f"{source} is not on this machine")
    data = prepare(DataConfig(source=str(source), prepared=str(tmp_path)))
    manifest = data.manifest
    assert (manifest.num_users, manifest.num_items, manifest.num_interactions) == (users, items, interactions)
    assert manifest.num_targets == interactions - 3 * users
    assert data.train_counts().sum() == interactions - 2 * users
    assert (data.counts()[1:] >= 5).all()
    lengths = [len(row) for row in pq.read_table(data.directory / manifest.shards[0].file).column("items").to_pylist()]
    assert np.min(lengths) >= 5
    assert (manifest.tied_interactions > 0) == (name == "ml-100k")
