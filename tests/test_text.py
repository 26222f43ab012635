import gzip

import pytest

from raysrec.config import DataConfig
from raysrec.data.sources import text
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.read import read

INTER = b"user_id:token\titem_id:token\ttimestamp:float\n"


def config(path):
    return DataConfig.model_validate({"source": str(path)})


def rows(path):
    table = read(config(path)).table
    return list(zip(*(table.column(name).to_pylist() for name in ("user", "item", "time")), strict=True))


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


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


def test_equal_ids_have_equal_codes_over_a_long_file(file, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 1 << 18)  # several blocks
    lines = b"".join(b"u%d\ti%d\t%d\n" % (n % 7, n % 11, n) for n in range(150_000))
    table = read(config(file("a.inter", INTER + lines))).table
    users = table.column("user").chunk(0)
    assert sorted(users.dictionary.to_pylist()) == [f"u{n}" for n in range(7)]
    assert users.to_pylist()[:9] == [f"u{n % 7}" for n in range(9)]
    assert table.column("time").to_pylist() == list(range(150_000))


def test_lines_are_counted_over_blocks_and_line_ends(file, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 1000)
    ends = ["\n", "\r\n", "\n\n", "\r\n\r\n", "\r"]
    lines = [f'"u{n % 7}","i ""{n}""",{n}{ends[n % 5]}' for n in range(5000)]
    table = read(config(file("a.csv", ("user,item,time\n" + "".join(lines)).encode()))).table
    assert table.column("time").to_pylist() == list(range(5000))


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


@pytest.mark.parametrize("spoil", [lambda data: b"plain text", lambda data: data[:-9], lambda data: data + b"more"])
def test_a_broken_gzip_is_named(tmp_path, spoil):
    path = tmp_path / "a.inter.gz"
    path.write_bytes(spoil(gzip.compress(INTER + LATER)))
    with pytest.raises(SourceError, match=r"a\.inter\.gz: it is no whole gzip file; fetch it again"):
        read(config(path))
