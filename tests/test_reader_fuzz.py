"""Hostile sources: whatever bytes a file has, they are read whole or refused by a message that names the file.

Two laws for every layout. Any bytes give interactions or a SourceError. And lines that say something are rows: what was
written is read again, and where lines were spoiled, either the line is named or nothing beside it is lost.
"""

import gzip
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysrec.config import DataConfig
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.formats import LAYOUTS
from raysrec.data.sources.read import read

EXAMPLES = 30
"""Of each layout and law."""

# Arrow cannot hand a line to Python that is no UTF-8; it says so on stderr, and refuses the line.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

quick = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])


def read_or_refused(path, **given_settings):
    """The rows, or None where the file was refused in words that name it."""
    found, refusal = None, ""
    try:
        found = read(DataConfig.model_validate({"source": str(path)} | given_settings))
    except SourceError as error:
        refusal = str(error)
    if found is None:
        assert str(path) in refusal
        return None
    found.table.validate(full=True)
    rows = list(zip(*(found.table.column(name).to_pylist() for name in ("user", "item", "time")), strict=True))
    assert rows
    assert all(user and item and time is not None for user, item, time in rows)
    return rows


def text_line(order, separator):
    """A line of a text layout: each field is a role's value or stands as it is."""
    return lambda **row: separator.join(row.get(field, field) for field in order.split()).encode()


def quoted_line(**row):
    return ",".join('"' + row[role].replace('"', '""') + '"' for role in ("user", "item", "time")).encode()


def json_line(user, item, time):
    """Values by the names of the published fields; ids are text."""
    return lambda **row: json.dumps({user: row["user"], item: row["item"], "n": [{}], time: int(row["time"])}).encode()


CSV_2023 = {"format": "amazon-2023"}
PLAIN = {  # name of the file: settings, header, a line, characters that no id may have
    "a.inter": ({}, b"user_id:token\titem_id:token\ttimestamp:float", text_line("user item time", "\t"), "\t"),
    "ratings.dat": ({}, None, text_line("user item 3 time", "::"), ":"),
    "ratings.csv": ({}, b"userId,movieId,rating,timestamp", text_line("user item 3.5 time", ","), ',"'),
    "a.csv": ({}, b"user,item,time", quoted_line, ""),
    "a.tsv": ({}, b"item\ttime\tuser", text_line("item time user", "\t"), '\t"'),
    "b.csv": ({"separator": "::"}, b"user::item::time", text_line("user item time", "::"), ":"),
    "LFM-1b_LEs.txt": ({}, None, text_line("user item 4 4 time", "\t"), "\t"),
    "log_standard_1.csv": ({"where": {"is_click": 1}}, b"user_id,video_id,time_ms,is_click",
                           text_line("user item time 1", ","), ","),
    "2014.csv": ({"format": "amazon-2014"}, None, text_line("user item 5.0 time", ","), ","),
    "2018.csv": ({"format": "amazon-2018"}, None, text_line("item user 5.0 time", ","), ","),
    "2023.csv": (CSV_2023, b"user_id,parent_asin,rating,timestamp", text_line("user item 5.0 time", ","), ',"'),
    "combined_data_1.txt": ({}, b"7:", text_line("user 3 2005-09-06", ","), ","),
    "a.jsonl": ({}, None, json_line("user", "item", "time"), ""),
    "2014.json": ({"format": "amazon-2014"}, None, json_line("reviewerID", "asin", "unixReviewTime"), ""),
    "2018.json": ({"format": "amazon-2018"}, None, json_line("reviewerID", "asin", "unixReviewTime"), ""),
    "2023.jsonl": (CSV_2023, None, json_line("user_id", "parent_asin", "timestamp"), ""),
}  # fmt: skip


def test_every_layout_is_fuzzed():
    kinds = {DataConfig(source=name, **rest[0]).format for name, rest in PLAIN.items()} - {"auto"}
    assert {*LAYOUTS} - kinds == {
        *("csv", "jsonl", "recbole", "movielens", "netflix", "lfm-1b", "kuairand"),  # by their names
        *("parquet", "yambda"),  # below
    }


def ids(forbidden):
    """Any text that can stand in a line, also long and strange; a byte order mark at the start of a file is none."""
    characters = st.characters(codec="utf-8", exclude_characters="\r\n\ufeff" + forbidden)
    return (
        st.text(characters, min_size=1, max_size=9) | st.just("é" * 5000) | st.sampled_from(["e\u0301", "\u00e9", " "])
    )


times = st.integers(-(2**63), 2**63 - 1).map(str) | st.integers(-9, 10**9).map(str)
SPOILED = [lambda line: line[:-1], lambda line: line + b"\t", lambda line: b'"' + line, lambda line: line + b'"',
           lambda line: line.replace(b",", b',"', 1), lambda line: b"\xff" + line, lambda line: line[: len(line) // 2],
           lambda line: b"{}", lambda line: line + b"\r" + line, lambda line: line.replace(b"1", b"x"),
           lambda line: b"", lambda line: b"8:", lambda line: line.replace(b":", b" :")]  # fmt: skip


def lines_of(content):
    return [line for line in re.split(rb"[\r\n]+", content) if line]


@pytest.mark.parametrize("name", PLAIN)
def test_lines_that_are_well_formed_are_rows_as_they_stand(tmp_path, name):
    given_settings, header, line, forbidden = PLAIN[name]
    path = tmp_path / name

    triples_lists = st.lists(st.tuples(ids(forbidden), ids(forbidden), times), min_size=1, max_size=8)

    @given(triples_lists, st.sampled_from(["\n", "\r\n", "\n\n"]))
    @quick
    def are_read(triples, end):
        lines = [line(user=user, item=item, time=time) for user, item, time in triples]
        path.write_bytes(end.encode().join([*([header] if header else []), *lines, b""]))
        rows = read_or_refused(path, **given_settings)
        if name == "combined_data_1.txt":
            assert rows == [(user, "7", 1125964800) for user, _, _ in triples]
        else:
            assert rows == [(user, item, int(time)) for user, item, time in triples]

    are_read()


@pytest.mark.parametrize("name", PLAIN)
def test_no_line_is_lost_beside_spoiled_ones(tmp_path, name):
    given_settings, header, line, _ = PLAIN[name]
    given_settings = {key: value for key, value in given_settings.items() if key != "where"}
    path = tmp_path / name
    spoils = st.lists(st.sampled_from([None, None, None, *SPOILED]), min_size=1, max_size=8)

    @given(spoils, st.sampled_from([b"\n", b"\r\n"]))
    @quick
    def are_kept_or_refused(spoils, end):
        lines = [line(user=f"u{place}", item="i1", time="12") for place in range(len(spoils))]
        lines = [spoil(one) if spoil else one for spoil, one in zip(spoils, lines, strict=True)]
        content = end.join([*([header] if header else []), *lines, b""])
        path.write_bytes(content)
        rows = read_or_refused(path, **given_settings)
        if rows is None:
            return
        if name.startswith("combined"):
            assert len(rows) == sum(not re.fullmatch(rb"\d+:", one) for one in lines_of(content))
        elif name.endswith((".json", ".jsonl")):
            good = {f"u{place}" for place, spoil in enumerate(spoils) if spoil is None}
            assert good <= {user for user, _, _ in rows}
        else:
            assert len(rows) == len(lines_of(content)) - bool(header)

    are_kept_or_refused()


PIECES = [b"\n", b"\r\n", b"\r", b",", b"\t", b"::", b":", b'"', b"1:", b"1", b"2005-01-01", b"{", b"}", b"[", b"null",
          b"\xff", b"\\ud800", b"\\u0000", b"\0", b"1e999", b"-1", b"1.5", b"user", b"1:\n5,3,2005-01-01\n",
          b'{"user": "a", "item": "x", "time": 1}\n', b'"user":', b'"item":', b'"time":', b"user,item,time\n",
          b"31435741\t2\t4\t4\t1385212958\n", b"a,b,5.0,12\n", b"\xef\xbb\xbf", b'"a\nb"', b"x" * 70_000]  # fmt: skip


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("name", PLAIN)
def test_any_bytes_are_read_or_refused(tmp_path, name, end):
    given_settings, header, _, _ = PLAIN[name]
    path = tmp_path / (name + end)
    contents = st.lists(st.sampled_from(PIECES) | st.binary(max_size=9), max_size=12).map(b"".join)

    @given(st.booleans(), contents, st.integers(0, 40), st.sampled_from(["auto", "auto", "date"]))
    @quick
    def are_read_or_refused(with_header, content, cut, unit):
        content = (header + b"\n" if with_header and header else b"") + content
        path.write_bytes(content if not end else gzip.compress(content, 1)[: None if cut > 20 else -1 - cut])
        read_or_refused(path, **given_settings | {"time_unit": unit})

    are_read_or_refused()


def parquet(**options):
    buffer = io.BytesIO()
    columns = {"user": ["a", "é", "x" * 50] * 3, "item": [1, 2, 3] * 3, "time": range(9)}
    pq.write_table(pa.table(columns), buffer, **options)
    return {}, buffer.getvalue()


def parquet_lists():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"uid": [1, 2], "item_id": [[1, 2], [3]], "timestamp": [[1, 2], [3]]}), buffer)
    return {"format": "yambda"}, buffer.getvalue()


FILES = [parquet(), parquet(use_dictionary=False, compression="zstd"), parquet_lists()]


@pytest.mark.parametrize(("given_settings", "whole"), FILES)
def test_any_change_of_a_parquet_file_is_read_or_refused(tmp_path, given_settings, whole):
    path = tmp_path / "a.parquet"
    changes = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=4)

    @given(changes, st.none() | st.integers(0, len(whole)))
    @settings(quick, max_examples=3 * EXAMPLES)
    def is_read_or_refused(changes, cut):
        content = bytearray(whole)
        for place, byte in changes:
            content[place] = byte
        path.write_bytes(content[:cut])
        read_or_refused(path, **given_settings)

    is_read_or_refused()


KINDS = [pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.uint64(), pa.float32(), pa.bool_(), pa.date32(),
         pa.date64(), pa.timestamp("ns"), pa.time64("us"), pa.decimal128(20, 3), pa.list_(pa.int64()), pa.null(),
         pa.large_list(pa.string()), pa.struct([("x", pa.int8())]), pa.duration("s")]  # fmt: skip


def test_columns_of_any_kind_are_read_or_refused(tmp_path):
    path = tmp_path / "a.parquet"

    @given(st.data())
    @settings(quick, max_examples=3 * EXAMPLES)
    def are_read_or_refused(data):
        rows = data.draw(st.integers(0, 3))
        columns = {}
        for name in ("user", "item", "time"):
            kind = data.draw(st.sampled_from(KINDS))
            value = st.none() | st.sampled_from(SAMPLES.get(str(kind), [None]))
            columns[name] = pa.array(data.draw(st.lists(value, min_size=rows, max_size=rows)), kind)
        pq.write_table(pa.table(columns), path)
        found = read_or_refused(path, time_unit=data.draw(st.sampled_from(["auto", "date", "ms"])))
        if found is not None:
            items = columns["item"]
            assert len(found) == (len(items.flatten()) if "list" in str(items.type) else rows)

    are_read_or_refused()


SAMPLES = {
    "string": ["a", "é", "", "2005-09-06"], "large_string": ["b", "7"], "binary": [b"a", b"\xff"], "int8": [-1],
    "uint64": [2**64 - 1], "float": [1.5, float("nan"), float("inf"), 1e30], "bool": [True], "date32[day]": [0, 9**6],
    "date64[ms]": [86_400_000], "timestamp[ns]": [-1, 2**62], "time64[us]": [5], "decimal128(20, 3)": [12, -3],
    "list<item: int64>": [[1], [], [2, 3], [None]], "large_list<item: string>": [["a"], ["b", ""]],
    "struct<x: int8>": [{"x": 1}], "duration[s]": [3],
}  # fmt: skip
