import datetime
import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysrec.config import DataConfig
from raysrec.data.sources import SourceError, read

INTER = b"user_id:token\titem_id:token\ttimestamp:float\n"
UIT = {"user": "u", "item": "i", "time": "t"}


def config(path, **settings):
    return DataConfig.model_validate({"source": str(path), **settings})


def rows(path, **settings):
    table = read(config(path, **settings)).table
    return list(zip(*(table.column(name).to_pylist() for name in ("user", "item", "time")), strict=True))


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("a.inter", INTER + b"u2\t07\t5\nu1\tNaN\t-3\n", {}),
        ("a.inter.gz", INTER + b"u2\t07\t5\nu1\tNaN\t-3\n", {}),
        ("a.inter", INTER.replace(b"\n", b"\r\n") + b"u2\t07\t5\r\nu1\tNaN\t-3\r\n\r\n", {}),
        ("a.inter", b"x:float\titem_id:token\ttimestamp:float\tuser_id:token\n\xff\t07\t5\tu2\n2\tNaN\t-3\tu1", {}),
        ("ratings.dat", b"u2::07::3::5\nu1::NaN::4::-3\n", {}),
        ("ratings.dat.gz", b"u2::07::3::5\nu1::NaN::4::-3\n", {}),
        ("ratings.csv", b"userId,movieId,rating,timestamp\nu2,07,3.5,5\nu1,NaN,4,-3\n", {}),
        ("a.csv", b"time,item,user\n5,07,u2\n-3,NaN,u1\n", {}),
        ("a.csv", b'\xef\xbb\xbfuser,item,time\n"u2","07",5\nu1,NaN,"-3"\n', {}),
        ("a.tsv.gz", b"time\titem\tuser\n5\t07\tu2\n-3\tNaN\tu1\n", {}),
        ("a.csv", b"u::i::t\nu2::07::5\nu1::NaN::-3\n", {"separator": "::", "columns": UIT}),
        ("ratings.csv", b"u;i;t\nu2;07;5\nu1;NaN;-3\n", {"separator": ";", "columns": UIT}),
    ],
)  # fmt: skip
def test_every_text_format_gives_the_same_rows_in_file_order(file, name, content, settings):
    assert rows(file(name, content), **settings) == [("u2", "07", 5), ("u1", "NaN", -3)]


def test_ids_are_text_as_it_stands(file):
    ids = ["1.0", "1", "01", " 1", "1e3", "null", "élan", '"x"']
    content = INTER + "".join(f"{text}\ti\t1\n" for text in ids).encode()
    assert [user for user, _, _ in rows(file("a.inter", content))] == ids


def test_a_quoted_id_may_hold_the_separator(file):
    assert rows(file("a.csv", b'user,item,time\n"a,b","say ""x""",1\n')) == [("a,b", 'say "x"', 1)]


def test_whole_numbers_with_a_point_are_times(file):
    found = read(config(file("a.inter", INTER + b"u\ti\t978300760.0\nu\tj\t1e3\nu\tk\t9007199254740993\n")))
    assert found.table.column("time").to_pylist() == [978300760, 1000, 9007199254740993]
    assert found.floored_times == 0


def test_fractions_are_rounded_down_and_counted(file):
    found = read(config(file("a.inter", INTER + b"u\ti\t1.75\nu\tj\t-1.25\nu\tk\t2\n")))
    assert found.table.column("time").to_pylist() == [1, -2, 2]
    assert found.floored_times == 2


def test_equal_ids_have_equal_codes_over_a_long_file(file):
    lines = b"".join(b"u%d\ti%d\t%d\n" % (n % 7, n % 11, n) for n in range(150_000))
    table = read(config(file("a.inter", INTER + lines))).table
    users = table.column("user").chunk(0)
    assert sorted(users.dictionary.to_pylist()) == [f"u{n}" for n in range(7)]
    assert users.to_pylist()[:9] == [f"u{n % 7}" for n in range(9)]
    assert table.column("time").to_pylist() == list(range(150_000))


LATER = b"u\ti\t1\nu\tj\t2\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.inter", INTER + LATER + b"u\ti\n", "line 4: has 2 fields, expected 3 (user_id, item_id, timestamp)"),
        ("a.inter.gz", INTER + LATER + b"u\ti\t1\t2\n", "a.inter.gz: line 4: has 4 fields, expected 3"),
        ("a.inter", INTER + b"\n" + LATER + b"u\ti\tsoon\n", "line 5: column timestamp is 'soon', expected a number"),
        ("a.inter", INTER + LATER + b"u\ti\tNaN\n", "line 4: column timestamp is 'NaN', expected a number"),
        ("a.inter", INTER + LATER + b"u\ti\t-inf\n", "line 4: column timestamp is '-inf', expected a number"),
        ("a.inter", INTER + LATER + b"u\ti\t\n", "line 4: column timestamp is empty, expected a number"),
        ("a.inter", INTER + b"u\ti\t1.5\nu\ti\t1_000\n", "line 3: column timestamp is '1_000', expected a number"),
        ("a.inter", INTER + b"u\ti\t9223372036854775808\n", "timestamp is 9223372036854775808, which no 64-bit"),
        ("a.inter", INTER + b"u\ti\t1e400\n", "line 2: column timestamp is 1e400, which no 64-bit"),
        ("a.inter", INTER + b"u\ti\t1.0000000000000000001\n", "1.0000000000000000001, with more than 18 digits"),
        ("a.inter", INTER + LATER + b"\ti\t3\n", "line 4: column user_id is empty, expected an id"),
        ("a.inter", INTER + LATER + b"u\t\t3\n", "line 4: column item_id is empty, expected an id"),
        ("a.inter", INTER + b"u\t\xe9\t3\n", "line 2: is not UTF-8"),
        ("a.inter", "user_id:token".encode("utf-16"), "line 1: is not UTF-8; save the file as UTF-8"),
        ("a.inter", b"user_id:token\titem:token\ttimestamp:float\n", "line 1: there is no column item_id, "
         "only user_id, item, timestamp; did you mean item?"),
        ("a.inter", b"", "a.inter: line 1: is empty; expected a header with user_id, item_id, timestamp"),
        ("a.inter", INTER, "a.inter: has no interactions; expected one a line"),
        ("ratings.dat", b"1::2::3::4\n1:2:3:4\n", "ratings.dat: line 2: has 1 fields, expected 4 (userId, movieId"),
        ("ratings.dat", b"1::2::3::4\n1:x:2::3::4\n", "ratings.dat: line 2: has 3 fields, expected 4"),
        ("ratings.dat", b"1::2::3::4\n1::2::3::x\n", "ratings.dat: line 2: column timestamp is 'x'"),
        ("ratings.dat", b"", "ratings.dat: has no interactions"),
        ("ratings.csv", b"userId,movieId,rating\n", "line 1: there is no column timestamp, only userId, movieId"),
        ("a.csv", b"user,item,time\n1,2,3\n1,2,3,4\n", "a.csv: line 3: has 4 fields, expected 3 (user, item, time)"),
        ("a.csv", b"user,item,Time\n1,2,3\n", "there is no column time, only user, item, Time; did you mean Time?"),
    ],
)  # fmt: skip
def test_an_error_names_file_line_and_column(file, name, content, expected):
    path = file(name, content)
    with pytest.raises(SourceError) as error:
        read(config(path))
    assert str(path) in str(error.value)
    assert expected in str(error.value)


def test_a_missing_file_names_its_neighbour(file):
    path = file("ratings.dat", b"")
    with pytest.raises(SourceError, match=r"rating.dat: there is no such file; did you mean ratings.dat\?"):
        read(config(path.with_name("rating.dat"), format="movielens"))
    with pytest.raises(SourceError, match=r"rating.dat: there is no such file; did you mean ratings.dat\?"):
        read(config(path.with_name("rating.dat")))


@pytest.mark.parametrize("spoil", [lambda data: b"plain text", lambda data: data[:-9], lambda data: data + b"more"])
def test_a_broken_gzip_is_named(tmp_path, spoil):
    path = tmp_path / "a.inter.gz"
    path.write_bytes(spoil(gzip.compress(INTER + LATER)))
    with pytest.raises(SourceError, match=r"a\.inter\.gz: it is no whole gzip file; fetch it again"):
        read(config(path))


def test_an_unknown_name_says_which_names_are_known(file):
    with pytest.raises(SourceError, match=r"known names are \*\.inter, ratings\.dat.*set data\.format to"):
        read(config(file("ratings.txt", b"x")))


def test_a_separator_of_two_different_characters_is_refused(file):
    with pytest.raises(SourceError, match="two different characters"):
        read(config(file("a.csv", b"x"), separator=", "))


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


def test_a_folder_is_read_in_order_of_its_files(tmp_path):
    for number, name in enumerate(["b.parquet", "a.parquet", "_c.parquet"]):
        parquet(tmp_path / name, time=[number])
    assert rows(tmp_path) == [("a", "x", 1), ("a", "x", 0)]


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
            "a.parquet: column time is not finite, expected a number; mend or delete the row (row 1)",
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
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty: the folder has no \*\.parquet files"):
        read(config(tmp_path / "empty"))
