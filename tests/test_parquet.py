import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysrec.config import DataConfig
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.read import read


def config(path, **settings):
    return DataConfig.model_validate({"source": str(path), **settings})


def rows(path):
    table = read(config(path)).table
    return list(zip(*(table.column(name).to_pylist() for name in ("user", "item", "time")), strict=True))


def parquet(path, **columns):
    pq.write_table(pa.table({"user": ["a"], "item": ["x"], "time": [1]} | columns), path)
    return path


def test_parquet_integers_become_decimal_text(tmp_path):
    path = parquet(tmp_path / "a.parquet", user=pa.array([2**60], pa.int64()), item=pa.array([7], pa.uint8()))
    assert rows(path) == [(str(2**60), "7", 1)]


def test_parquet_reads_dictionaries_and_large_text(tmp_path):
    path = parquet(
        tmp_path / "a.parquet", user=pa.array(["é"]).dictionary_encode(), item=pa.array(["x"], pa.large_string())
    )
    assert rows(path) == [("é", "x", 1)]


@pytest.mark.parametrize(
    ("times", "expected", "floored"),
    [
        (pa.array([2**62 + 1], pa.int64()), 2**62 + 1, 0),
        (pa.array([978300760.0]), 978300760, 0),
        (pa.array([-1.5]), -2, 1),
        (pa.array([datetime.datetime(2001, 1, 1, 0, 0, 1, 500_000)]), 978307201, 1),
        (pa.array([978307201], pa.timestamp("s", "UTC")), 978307201, 0),
    ],
)
def test_parquet_times_become_whole_seconds(tmp_path, times, expected, floored):
    found = read(config(parquet(tmp_path / "a.parquet", time=times)))
    assert found.table.column("time").to_pylist() == [expected]
    assert found.floored_times == floored


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"user": [1.0]}, "a.parquet: column user is double, expected text or integers"),
        ({"item": [""]}, "a.parquet: column item is empty, expected an id; fill it in or delete the row (row 1)"),
        ({"item": pa.nulls(1, pa.string())}, "a.parquet: column item is empty, expected an id"),
        ({"time": ["1"]}, "a.parquet: column time is string, expected numbers or timestamps"),
        (
            {"time": [float("nan")]},
            "a.parquet: column time is not finite, expected a number; fix or delete the row (row 1)",
        ),
        ({"time": pa.nulls(1, pa.int64())}, "a.parquet: column time is empty, expected a number"),
        ({"time": [1e30]}, "a.parquet: column time holds a number which no 64-bit integer holds"),
        (
            {"time": pa.array([2**63], pa.uint64())},
            "a.parquet: column time holds a number which no 64-bit integer holds",
        ),
    ],
)
def test_parquet_errors_name_file_and_column(tmp_path, columns, expected):
    with pytest.raises(SourceError) as error:
        read(config(parquet(tmp_path / "a.parquet", **columns)))
    assert expected in str(error.value)


def test_parquet_without_a_column_names_those_present(tmp_path):
    path = parquet(tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="there is no column users, only user, item, time; did you mean user"):
        read(config(path, columns={"user": "users"}))


def test_what_is_no_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: is no whole Parquet file"):
        read(config(tmp_path / "a.parquet"))
