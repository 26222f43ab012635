"""Odd sources from the file to the batches: each is refused with file and row, or kept by a rule and counted."""

import csv
import gzip
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysrec.config import DataConfig
from raysrec.config.run import RunConfig
from raysrec.data.batching.loader import epoch_steps, held_out
from raysrec.data.batching.reading import read_directly
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.read import read
from raysrec.prepare import prepare, summary


@pytest.fixture
def config(tmp_path):
    """A config of a CSV of these lines, and with further settings."""

    def make(lines, columns=("user", "item", "time"), **settings):
        with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *lines])
        loose = {"user_interactions": "[3,inf)", "item_interactions": "[1,inf)"}
        places = {"source": str(tmp_path / "a.csv"), "prepared": str(tmp_path / "prepared")}
        return DataConfig.model_validate(places | loose | settings)

    return make


def histories(data):
    ids = data.item_ids().to_pylist()
    tables = [pq.read_table(data.directory / shard.file) for shard in data.manifest.shards]
    return {
        row["user_id"]: [(ids[item], time) for item, time in zip(row["items"], row["times"], strict=True)]
        for table in tables
        for row in table.to_pylist()
    }


def test_ids_are_kept_as_they_stand(config):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    long, items = "x" * 10_240, ["\u200b", "日本語", "🎧", "a,b", 'say "x"', " ", "\t", "NULL", "nan", "-"]
    lines = [(user, item, time) for user in (composed, decomposed, long) for time, item in enumerate([*items, long])]
    data = prepare(config(lines))
    assert list(histories(data)) == [composed, decomposed, long]
    assert [item for item, _ in histories(data)[long]] == [*items, long]


def test_times_before_1970_and_out_of_order_are_sorted(config):
    times = [5, -(2**40), 0, -1, 2**62]
    data = prepare(config([("u", f"i{time}", time) for time in times]))
    assert [time for _, time in histories(data)["u"]] == sorted(times)
    assert (data.manifest.first_time, data.manifest.last_time) == (-(2**40), 2**62)


def test_what_is_there_twice_counts_twice_and_is_counted(config):
    lines = [("u", "a", 1), ("u", "b", 1), ("u", "a", 1), ("u", "a", 2), ("v", "a", 1), ("u", "a", 1)]
    data = prepare(config(lines, user_interactions="[5,inf)"))
    assert [item for item, _ in histories(data)["u"]] == ["a", "b", "a", "a", "a"]
    assert data.manifest.repeated_interactions == 2
    assert "repeated      2 interactions, the same item at the same time; they are kept" in summary(data)


def test_what_was_dropped_is_counted_with_its_reason(config):
    columns = ("user", "item", "time", "kind")
    lines = [("u", "a", time, "buy") for time in range(4)] + [("u", "b", 9, "look"), ("gone", "c", 9, "look")]
    lines += [("v", "d", 1, "buy"), ("v", "a", 2, "buy")]
    manifest = prepare(config(lines, columns, where={"kind": "buy"})).manifest
    assert manifest.left_out_rows == 2
    assert (manifest.source_users, manifest.source_items, manifest.source_interactions) == (2, 2, 6)
    assert (manifest.num_users, manifest.num_items, manifest.num_interactions) == (1, 1, 4)


def test_every_reader_counts_what_where_leaves_out(tmp_path):
    rows = {"user": ["u"] * 5, "item": list("abcde"), "time": range(5), "kind": [0, 1, 1, 0, 1]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    lines = [
        f'{{"user": "u", "item": "{item}", "time": {time}, "kind": {time % 2}}}\n' for time, item in enumerate("abc")
    ]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    for name, left_out in (("a.parquet", 2), ("a.jsonl", 2)):
        assert read(DataConfig(source=str(tmp_path / name), where={"kind": "1"})).left_out == left_out


def test_a_broken_file_among_good_ones_is_named(tmp_path):
    for number in range(3):
        pq.write_table(pa.table({"user": ["u"], "item": ["a"], "time": [number]}), tmp_path / f"{number}.parquet")
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-3])
    with pytest.raises(SourceError, match=r"1\.parquet: is no whole Parquet file"):
        prepare(DataConfig(source=str(tmp_path), prepared=str(tmp_path / "p")))
    (tmp_path / "b").mkdir()
    for number in range(3):
        (tmp_path / f"b/{number}.csv.gz").write_bytes(
            gzip.compress(b"user,item,time\nu,a,1\n")[: -5 if number == 2 else None]
        )
    with pytest.raises(SourceError, match=r"2\.csv\.gz: it is no whole gzip file"):
        prepare(DataConfig(source=str(tmp_path / "b"), format="csv", prepared=str(tmp_path / "p")))
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({"user": ["a", "b", "", "d"]}, {}, "column user is empty, expected an id; fill it in or "
         "delete the row (row 3)"),
        ({"user": ["a", "b", "c", None]}, {"where": {"k": "1"}}, "column user is empty, expected an id; fill it in or "
         "delete the row (row 4)"),
        ({"item": [["x"], ["y"], ["z", None], ["w"]], "time": [[1], [2], [3, 4], [5]]}, {}, "column item is empty"),
        ({"item": [["x"], ["y"], ["z", None], ["w"]], "time": [[1], [2], [3, 4], [5]]}, {}, "(row 3)"),
        ({"item": [["x"], None, [], ["w"]], "time": [[1], None, [], [5]]}, {}, "column item is empty; fill it in or "
         "delete the row (row 2)"),
        ({"item": [["x"], [], [], ["w"]], "time": [[1], [], [], [5, 6]]}, {"where": {"k": "1"}}, "column time has not "
         "as many values as column item (row 4)"),
        ({"user": pa.array([b"a", b"\xff", b"c", b"d"]).view(pa.string())}, {}, "Invalid UTF8"),
    ],
)  # fmt: skip
def test_a_value_is_named_by_the_row_of_its_file(tmp_path, columns, settings, expected):
    whole = {"user": list("abcd"), "item": list("wxyz"), "time": [1, 2, 3, 4], "k": [1, 0, 0, 1]}
    pq.write_table(pa.table(whole | columns), tmp_path / "a.parquet")
    with pytest.raises(SourceError) as error:
        read(DataConfig(source=str(tmp_path / "a.parquet"), **settings))
    assert expected in str(error.value)
    assert "a.parquet: " in str(error.value)


QUOTES = b'user,item,time,title\nu,a,1,"good"\nu,b,2,"12"" vinyl"\n'


@pytest.mark.parametrize(
    "lines",
    [
        b'u,c,3,"opened\nu,d,4,good\nu,e,5,closed"\n',
        b'u,c,3,"opened and never closed\nu,d,4,good\n',
    ],
)
def test_a_quote_left_open_swallows_no_line(tmp_path, lines):
    path = tmp_path / "a.csv"
    path.write_bytes(QUOTES + lines)
    with pytest.raises(SourceError, match=r"a\.csv: line 4: a quote is opened and not closed on the line: 'u,c,3,"):
        read(DataConfig(source=str(path)))
    path.write_bytes(QUOTES)
    assert len(read(DataConfig(source=str(path))).table) == 2


def test_a_user_with_a_million_events_is_learned_from_and_ranked(tmp_path):
    """Windows and row groups hold them as they hold any; no batch grows with the user."""
    events = 1_000_000
    users = np.concatenate([np.zeros(events, np.int64), np.arange(1, 200).repeat(6)])
    rng = np.random.default_rng(0)
    columns = {"user": users, "item": rng.integers(500, size=len(users)), "time": rng.integers(10**9, size=len(users))}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    settings = {"source": str(tmp_path / "a.parquet"), "prepared": str(tmp_path / "p"), "item_interactions": "[1,inf)"}
    train = {"micro_batch_tokens": 4096, "batch_targets": 8192}
    config = RunConfig.model_validate(
        {"data": settings, "model": {"name": "recgrela", "max_length": 50}, "train": train}
    )
    data = prepare(config.data)
    assert data.manifest.longest_history == events
    found = Counter()
    for step in epoch_steps(data, config, read_directly, epoch=0, worker=0, num_workers=1):
        for batch in step:
            assert batch.history.items.numel() <= 4096
            found["targets"] += batch.num_targets()
    assert found["targets"] == data.manifest.num_targets == len(users) - 3 * 200
    ranked = list(held_out(read_directly(data.row_groups()), data.manifest.split, config, split="test"))
    assert sum(len(batch.users) for batch in ranked) == 200
    assert max(batch.history.items.shape[1] for batch in ranked) == 50
