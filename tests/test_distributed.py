import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysrec.cluster.runtime import ray_session
from raysrec.config import DataConfig, ScaleConfig
from raysrec.data.manifest import Source
from raysrec.data.preparing.distributed import is_distributed, prepare_in_tasks
from raysrec.data.preparing.fingerprint import fingerprint_of, hash_source
from raysrec.data.preparing.in_memory import prepare_in_memory
from raysrec.data.preparing.writing import write_manifest
from raysrec.data.sources.files import SourceError
from raysrec.place import Place
from raysrec.prepare import find_prepared, prepare
from raysrec.tasks import run_here, run_with_ray

ROOT = Path(__file__).parent.parent
REAL = ROOT / "../shared/data"

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
LOOSE = {"user_interactions": "[3,inf)", "item_interactions": "[1,inf)"}
THREE_ROUNDS = {"user_interactions": "[3,40]", "item_interactions": "[3,60]"}
SIZES = [(1 << 26, 1 << 21, 1 << 21), (300, 20, 200), (2_000, 100, 25)]


@contextmanager
def no_bar(name, total):
    yield lambda: None


HERE = partial(run_here, bar=no_bar)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(config, folder, how):
    """All files of the prepared data set."""
    folder.mkdir()
    directory = Place.of(folder)
    if how == "in memory":
        written = prepare_in_memory(config, after_reading=lambda: None, say=lambda line: None)(directory)
    else:
        written = prepare_in_tasks(config, directory, HERE, after_reading=lambda: None)
    facts = {"name": "a", "fingerprint": "0" * 16, "source": Source(path="a", bytes=0, sha256="")}
    write_manifest(written, config, facts, directory)
    return files(folder)


def outcome(config, folder, how):
    """What comes of it: files or an error."""
    try:
        return write(config, folder, how)
    except ValueError as error:
        return type(error), str(error)


def assert_equal(config, folder, *, within=None):
    in_memory, in_tasks = (write(config, folder / how, how) for how in ("in memory", "in tasks"))
    assert list(in_memory) == list(in_tasks)
    assert json.loads(in_tasks["manifest.json"]) == json.loads(in_memory["manifest.json"])
    assert in_tasks == in_memory
    if within:
        assert len(in_tasks) > within


@pytest.fixture(params=SIZES, ids=["one block", "tiny blocks", "tiny shares"])
def _sizes(request, monkeypatch):
    """However large blocks of the source, pieces and shares of the users are."""
    block_bytes, piece, share = request.param
    monkeypatch.setattr("raysrec.data.sources.blocks.BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("raysrec.data.sources.blocks.PIECE_INTERACTIONS", piece)
    monkeypatch.setattr("raysrec.data.preparing.distributed.SHARE_INTERACTIONS", share)
    monkeypatch.setattr("raysrec.data.preparing.writing.ROW_GROUPS", 5)
    monkeypatch.setattr("raysrec.data.preparing.writing.SMALLEST_ROW_GROUP", 1)
    monkeypatch.setattr("raysrec.data.preparing.writing.LARGEST_ROW_GROUP", 30)


def hard_rows(number=700, seed=0):
    """Few times, so ties everywhere; many users of one interaction; ids in several scripts; repeated rows."""
    rng = np.random.default_rng(seed)
    users = [f"ü{n}" if n % 3 else f"用户{n}" for n in (rng.pareto(0.7, number) * 3).astype(int) % 60]
    items = [f"x{n}" if n % 2 else f"é {n}" for n in (rng.pareto(0.6, number) * 2).astype(int) % 40]
    times = rng.integers(-3, 9, number).tolist()
    rows = list(zip(users, items, times, strict=True))
    return rows + rows[:20]


def inter(path, rows):
    path.write_text(HEADER + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return str(path)


def config_of(source, **given):
    return DataConfig.model_validate({"source": source} | LOOSE | given)


def netflix(path, rows):
    movies = itertools.groupby(sorted(rows, key=lambda row: row[1]), key=lambda row: row[1])
    lines = []
    for number, (_, ratings) in enumerate(movies, start=1):
        lines.append(f"{number}:\n")
        lines += [f"{sum(map(ord, user))},3,2005-0{1 + time % 9}-06\n" for user, _, time in ratings]
    path.write_text("".join(lines))


def source_of(kind, folder):
    """A source of this kind, and the settings that it needs."""
    rows = hard_rows()
    table = pa.table(dict(zip(("user", "item", "time"), map(list, zip(*rows, strict=True)), strict=True)))
    if kind == "text":
        return inter(folder / "a.inter", rows), {}
    if kind == "several files":
        inter(folder / "a.inter", rows[:200])
        (folder / "b.inter.gz").write_bytes(gzip.compress(Path(inter(folder / "c.inter", rows[200:500])).read_bytes()))
        (folder / "c.inter").unlink()
        inter(folder / "d.inter", rows[500:])
        return str(folder), {}
    if kind == "quoted csv":
        lines = [f'"{user}, ""so""",{item},{time}.{abs(time)}\n' for user, item, time in rows]
        (folder / "a.csv").write_text("user,item,time\n" + "".join(lines))
        return str(folder / "a.csv"), {}
    if kind == "json lines":
        lines = [json.dumps(dict(zip(("user", "item", "time"), row, strict=True))) + "\n" for row in rows]
        (folder / "a.jsonl").write_text("".join(lines))
        return str(folder / "a.jsonl"), {}
    if kind == "netflix":
        netflix(folder / "combined_data_1.txt", rows[:400])
        netflix(folder / "combined_data_2.txt", rows[400:])
        return str(folder / "combined_data_*.txt"), {"format": "netflix"}
    if kind == "parquet":
        pq.write_table(table, folder / "a.parquet", row_group_size=30)
        return str(folder / "a.parquet"), {}
    if kind == "where":
        kept = table.append_column("kind", pa.array(["play" if n % 3 else "skip" for n in range(len(table))]))
        pq.write_table(kept, folder / "a.parquet", row_group_size=30)
        pq.write_table(kept.filter(pa.compute.equal(kept["kind"], "skip")), folder / "b.parquet")
        return str(folder / "*.parquet"), {"where": {"kind": "play"}}
    return "synthetic", {"synthetic": {"num_users": 40, "num_items": 30, "mean_length": 9}}


KINDS = ["text", "several files", "quoted csv", "json lines", "netflix", "parquet", "where", "synthetic"]


@pytest.mark.usefixtures("_sizes")
@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_those_of_one_process(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("raysrec.data.synthetic.walk.USERS_PER_BLOCK", 16)
    (tmp_path / "source").mkdir()
    source, given = source_of(kind, tmp_path / "source")
    assert_equal(config_of(source, **given), tmp_path, within=3)


@pytest.mark.usefixtures("_sizes")
@pytest.mark.parametrize(
    "given",
    [
        THREE_ROUNDS,
        {"split": {"name": "temporal"}},
        {"split": {"name": "temporal", "target": "first", "validate_from": 3, "test_from": 6}} | THREE_ROUNDS,
        {"time_unit": "ms"},
        {"time_precision": "float32"},
    ],
    ids=["three rounds", "temporal", "moments", "milliseconds", "float32"],
)
def test_the_rules_are_those_of_one_process(given, tmp_path):
    rows = hard_rows()
    if "time_precision" in given:  # a minute apart, and known to the nearest 64 seconds
        rows = [(user, item, 978300760 + 60 * time) for user, item, time in rows]
    config = config_of(inter(tmp_path / "a.inter", rows), **given)
    assert_equal(config, tmp_path)
    if given == THREE_ROUNDS:
        assert json.loads((tmp_path / "in tasks/manifest.json").read_text())["filter_rounds"] >= 3


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcde"), st.integers(0, 3)), max_size=60),
    low=st.integers(3, 5),
    high=st.sampled_from(["12]", "inf)"]),
    share=st.sampled_from([9, 1000]),
    lines=st.sampled_from([50, 10_000]),
    split=st.sampled_from(["leave_one_out", "temporal"]),
)
def test_any_data_and_rules_give_the_files_of_one_process(tmp_path_factory, rows, low, high, share, lines, split):
    folder = tmp_path_factory.mktemp("any")
    interval = f"[{low},{high}"
    rules = {"user_interactions": interval, "item_interactions": interval, "split": {"name": split}}
    config = config_of(inter(folder / "a.inter", rows), **rules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysrec.data.sources.blocks.BLOCK_BYTES", lines)
        patch.setattr("raysrec.data.preparing.distributed.SHARE_INTERACTIONS", share)
        outcomes = [outcome(config, folder / how, how) for how in ("in memory", "in tasks")]
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("name", ["ml-100k", "amazon-beauty"])
def test_the_files_of_real_data_are_those_of_one_process(name, tmp_path, monkeypatch):
    source = REAL / f"{name}.inter.gz"
    if not source.is_file():
        pytest.skip(f"{source} is not on this machine")
    monkeypatch.setattr("raysrec.data.sources.blocks.BLOCK_BYTES", 1 << 19)
    monkeypatch.setattr("raysrec.data.preparing.distributed.SHARE_INTERACTIONS", 1 << 15)
    assert_equal(DataConfig(source=str(source)), tmp_path)


def break_line(path, number):
    lines = path.read_text().splitlines()
    for place in (number - 1, len(lines) - 1):  # the first one is named, whoever finds the other one before
        lines[place] = lines[place].rpartition("\t" if path.suffix == ".inter" else ",")[0]
    path.write_text("\n".join(lines) + "\n")


def break_row(path, row):
    table = pq.read_table(path)
    users = table["user"].to_pylist()
    users[row - 1] = ""
    pq.write_table(table.set_column(0, "user", pa.array(users)), path, row_group_size=30)


@pytest.mark.usefixtures("_sizes")
@pytest.mark.parametrize("kind", ["text", "several files", "quoted csv", "json lines", "netflix", "parquet"])
def test_a_fault_is_named_as_in_one_process(kind, tmp_path):
    source, given = source_of(kind, tmp_path)
    last = sorted(tmp_path.iterdir())[-1]
    if kind == "parquet":
        break_row(last, 370)
    else:
        break_line(last, 137)
    messages = []
    for how in ("in memory", "in tasks"):
        with pytest.raises(SourceError) as raised:
            write(config_of(source, **given), tmp_path / how, how)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert str(last) in messages[0]
    assert ("row 370" if kind == "parquet" else "line 137") in messages[0]


@pytest.mark.parametrize("text", ["", HEADER, HEADER + "\n\n", HEADER + "u\n"])
def test_a_file_in_which_nothing_stands_is_refused_as_in_one_process(text, tmp_path, monkeypatch):
    monkeypatch.setattr("raysrec.data.sources.blocks.BLOCK_BYTES", 8)
    inter(tmp_path / "a.inter", hard_rows(9))
    (tmp_path / "b.inter").write_text(text)
    messages = []
    for how in ("in memory", "in tasks"):
        with pytest.raises(SourceError) as raised:
            write(config_of([str(tmp_path / "a.inter"), str(tmp_path / "b.inter")]), tmp_path / how, how)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert "b.inter" in messages[0]


def test_scratch_files_are_gone_at_the_end(tmp_path):
    write(config_of(inter(tmp_path / "a.inter", hard_rows())), tmp_path / "in tasks", "in tasks")
    assert sorted(os.listdir(tmp_path / "in tasks")) == ["catalog.parquet", "histories", "manifest.json"]


def test_the_setting_is_no_part_of_the_fingerprint(tmp_path):
    source = inter(tmp_path / "a.inter", hard_rows())
    configs = [config_of(source, distributed=how) for how in ("auto", True, False)]
    assert len({fingerprint_of(config, hash_source(config)) for config in configs}) == 1


def test_large_sources_are_prepared_in_tasks(tmp_path, monkeypatch):
    source = inter(tmp_path / "a.inter", hard_rows())
    assert not is_distributed(config_of(source))
    assert not is_distributed(DataConfig())
    assert is_distributed(config_of(source, distributed=True))
    monkeypatch.setattr("raysrec.data.preparing.distributed.LARGE_INTERACTIONS", 500)
    assert is_distributed(config_of(source))
    assert is_distributed(DataConfig())
    assert not is_distributed(config_of(source, distributed=False))


@pytest.fixture
def _tasks_here(monkeypatch):
    """`prepare` does the tasks in this process."""

    @contextmanager
    def no_session(*_, **__):
        yield

    monkeypatch.setattr("raysrec.prepare.ray_session", no_session)
    monkeypatch.setattr("raysrec.prepare.wait_for_data_nodes", lambda *_: {})
    monkeypatch.setattr("raysrec.prepare.run_with_ray", run_here)


@pytest.mark.usefixtures("_tasks_here")
def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    source = inter(tmp_path / "a.inter", hard_rows())
    config = config_of(source, distributed=True, prepared=str(tmp_path / "prepared"))

    def read_and_append(*arguments):
        yield from read(*arguments)
        with open(source, "a") as file:
            file.write("u\ta\t1\n")

    import raysrec.data.preparing.shares as shares

    read = shares.read_pieces
    monkeypatch.setattr(shares, "read_pieces", read_and_append)
    with pytest.raises(SourceError, match="changed while it was read"):
        prepare(config)
    assert os.listdir(tmp_path / "prepared") == []


@pytest.mark.usefixtures("_tasks_here")
def test_every_stage_says_how_it_went(tmp_path):
    said = []
    source = inter(tmp_path / "a.inter", hard_rows())
    prepare(config_of(source, distributed=True, prepared=str(tmp_path / "prepared")), progress=said.append)
    rounds = ["filtering, round 1", "filtering, round 2"]
    stages = ["reading", "grouping by user", *rounds, "numbering", "ordering", "writing"]
    assert [line.partition(":")[0] for line in said[1:]] == stages


@pytest.mark.ray
def test_results_and_faults_come_in_the_order_of_the_work():
    def slowest_first(number):
        time.sleep(0 if number else 1)
        if number in (3, 5):
            raise SourceError(f"fault {number}")
        yield from (number, -number)

    run = partial(run_with_ray, bar=no_bar)
    with ray_session(ScaleConfig(workers=2), cpus=3):
        assert list(run("test", slowest_first, [(0,), (1,), (2,)])) == [0, 0, 1, -1, 2, -2]
        found = run("test", slowest_first, [(number,) for number in range(6)])
        assert list(itertools.islice(found, 6)) == [0, 0, 1, -1, 2, -2]
        with pytest.raises(SourceError, match="fault 3"):
            next(found)


@pytest.mark.ray
def test_the_command_prepares_in_a_cluster_and_a_killed_one_leaves_nothing(tmp_path):
    for name, start in (("a", 0), ("b", 3000)):
        inter(tmp_path / f"{name}.inter", hard_rows(9000)[start : start + 3000])
    given = {"source": str(tmp_path), "format": "recbole"} | LOOSE
    config = DataConfig.model_validate(given | {"prepared": str(tmp_path / "prepared"), "distributed": True})
    expected = prepare(config.model_copy(update={"prepared": str(tmp_path / "expected"), "distributed": False}))

    (tmp_path / "config.yaml").write_text("model: {name: popularity}\n")
    overrides = [
        f"data.{name}={value}" for name, value in json.loads(config.model_dump_json(exclude_unset=True)).items()
    ]
    command = [sys.executable, "-m", "raysrec.prepare", "--config", str(tmp_path / "config.yaml"), *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=-1, text=True, env=environment) as killed:
        while not (line := killed.stdout.readline()).startswith("reading"):
            assert line, "it ended before it was killed"
        os.kill(killed.pid, signal.SIGKILL)
    assert find_prepared(config) is None
    assert [name for name in os.listdir(config.prepared) if not name.startswith(".")] == []

    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "writing: " in done.stdout
    assert os.listdir(config.prepared) == [expected.directory.name]
    assert files(Path(config.prepared)) == files(tmp_path / "expected")
