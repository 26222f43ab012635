import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysrec.config import DataConfig
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.read import read

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


def test_a_missing_file_names_its_neighbour(file):
    path = file("ratings.dat", b"")
    with pytest.raises(SourceError, match=r"rating.dat: there is no such file; did you mean ratings.dat\?"):
        read(config(path.with_name("rating.dat"), format="movielens"))
    with pytest.raises(SourceError, match=r"rating.dat: there is no such file; did you mean ratings.dat\?"):
        read(config(path.with_name("rating.dat")))


def test_an_unknown_name_says_which_names_are_known(file):
    with pytest.raises(SourceError, match=r"known names are \*\.inter, ratings\.dat.*set data\.format to"):
        read(config(file("ratings.txt", b"x")))


def test_a_separator_of_two_different_characters_is_refused(file):
    with pytest.raises(SourceError, match="two different characters"):
        read(config(file("a.csv", b"x"), separator=", "))


def test_a_folder_is_read_in_order_of_its_files(tmp_path):
    for number, name in enumerate(["b.parquet", "a.parquet", "_c.parquet"]):
        pq.write_table(pa.table({"user": ["a"], "item": ["x"], "time": [number]}), tmp_path / name)
    assert rows(tmp_path) == [("a", "x", 1), ("a", "x", 0)]


def test_a_folder_without_parquet_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty: the folder has no \*\.parquet files"):
        read(config(tmp_path / "empty"))
