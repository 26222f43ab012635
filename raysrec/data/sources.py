"""Raw interactions as one table of (user, item, time): a reader per format, and errors that name the line.

Ids are text exactly as it stands in the file and rows stay in the order of the file; what is kept, how it is numbered
and ordered is decided in `prepare.py`. Text is read by Arrow; only when that fails is the file read a second time,
line by line, to say where and why.
"""

import csv
import difflib
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pyarrow import fs

from raysrec.config import DataConfig
from raysrec.data.synthetic import synthesize

ID = pa.dictionary(pa.int32(), pa.string())
INTERACTIONS_SCHEMA = pa.schema({"user": ID, "item": ID, "time": pa.int64()})

TIME_RULE = "seconds as int64; fractions are rounded down"

KNOWN_NAMES = (
    "*.inter, ratings.dat, ratings.csv, *.csv, *.tsv (each also with .gz), *.parquet, or a folder of *.parquet"
)

EXACT = pa.decimal128(38, 18)
"""Holds every int64 and 18 digits after the point; a float would make neighbours beyond 2**53 equal."""


class SourceError(ValueError):
    """A source that cannot be read; the text names the file, the line, what came, what was expected and what to do."""


@dataclass(frozen=True)
class Interactions:
    """Who had what when, in the order of the source."""

    table: pa.Table
    """Columns `user` and `item` (dictionaries of text, one chunk), and `time` (int64)."""
    floored_times: int
    """Times that had a fraction, which was dropped (towards the past)."""


def read(config: DataConfig) -> Interactions:
    """Every interaction of the source, in its order; ids are text as it stands there.

    A time is a whole number of seconds. `978300760.0` is one too; a true fraction is rounded down and counted, so an
    order within the same second becomes the order of the file.

    Raises:
        SourceError: The source is missing, empty, not in its format, or holds an empty id or a time that is no number.
    """
    kind = format_of(config)
    if kind == "synthetic":
        return _interactions(synthesize(config.synthetic), 0)
    if kind == "parquet":
        return _read_parquet(config)
    return _read_text(config.source, _layout(config, kind))


def format_of(config: DataConfig) -> str:
    """The format of the source, by its name where the config says `auto`.

    Raises:
        SourceError: The name says nothing, or nothing is there.
    """
    if config.format != "auto":
        return config.format
    name = config.source.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gz")
    if name == "synthetic":
        return "synthetic"
    if name.endswith(".inter"):
        return "recbole"
    if name == "ratings.dat" or (name == "ratings.csv" and config.columns == type(config.columns)()):
        return "movielens"
    if name.endswith((".csv", ".tsv")):
        return "csv"
    filesystem, path = _locate(config.source)
    found = filesystem.get_file_info(path).type
    if name.endswith(".parquet") or found == fs.FileType.Directory:
        return "parquet"
    if found == fs.FileType.NotFound:
        raise SourceError(f"data.source={config.source}: there is no such file{_similar_file(filesystem, path)}")
    raise SourceError(
        f"data.source={config.source}: the name does not tell the format; known names are {KNOWN_NAMES}; "
        "set data.format to recbole, movielens, csv or parquet"
    )


def separator_of(config: DataConfig) -> str:
    """What separates the columns of a CSV source: a tab in `*.tsv` unless the config says otherwise.

    Raises:
        SourceError: Two different characters.
    """
    separator = config.separator.replace("\\t", "\t")
    if separator == "," and config.source.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    if len(separator) == 2 and separator[0] != separator[1]:
        raise SourceError(f"data.separator={separator!r}: two different characters; write one, or one twice as in '::'")
    return separator


def source_files(config: DataConfig) -> tuple[fs.FileSystem, list[str]]:
    """The files a source consists of, in the order they are read, and where they lie; none for `synthetic`.

    Raises:
        SourceError: There is no such file, or a folder has no Parquet files.
    """
    kind = format_of(config)
    if kind == "synthetic":
        return fs.LocalFileSystem(), []
    filesystem, path = _locate(config.source)
    found = filesystem.get_file_info(path)
    if found.type == fs.FileType.File:
        return filesystem, [path]
    if found.type == fs.FileType.NotFound:
        raise SourceError(f"data.source={config.source}: there is no such file" + _similar_file(filesystem, path))
    if kind != "parquet":
        raise SourceError(f"data.source={config.source}: is a folder; the {kind} format is one file, name it")
    paths = [info.path for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True))]
    paths = sorted(name for name in paths if name.endswith(".parquet") and not _hidden(name[len(path) :]))
    if not paths:
        raise SourceError(f"data.source={config.source}: the folder has no *.parquet files")
    return filesystem, paths


@dataclass(frozen=True)
class _Layout:
    """How the lines of a text format are cut, and where its three columns stand."""

    separator: str
    """What stands between two fields."""
    quoted: bool
    """May a field stand in double quotes?"""
    columns: tuple[str, str, str]
    """Names of the columns of users, items and times."""
    names: tuple[str, ...] = ()
    """Names of all columns where the file has no header line."""
    typed: bool = False
    """Does the header write `name:type`?"""

    def split(self, line: str) -> list[str]:
        """The fields of a line."""
        if self.quoted and len(self.separator) == 1:
            return next(csv.reader([line], delimiter=self.separator), [])
        return line.split(self.separator)


def _layout(config: DataConfig, kind: str) -> _Layout:
    if kind == "recbole":
        return _Layout("\t", quoted=False, columns=("user_id", "item_id", "timestamp"), typed=True)
    if kind == "movielens":
        if config.source.lower().removesuffix(".gz").endswith(".dat"):
            names = ("userId", "movieId", "rating", "timestamp")
            return _Layout("::", quoted=False, columns=("userId", "movieId", "timestamp"), names=names)
        return _Layout(",", quoted=True, columns=("userId", "movieId", "timestamp"))
    columns = (config.columns.user, config.columns.item, config.columns.time)
    separator = separator_of(config)
    return _Layout(separator, quoted=len(separator) == 1, columns=columns)


def _read_text(source: str, layout: _Layout) -> Interactions:
    with _in_words(source):
        names = layout.names or _header(source, layout)
    missing = [name for name in layout.columns if name not in names]
    if missing:
        raise SourceError(f"{source}: line 1: {_no_column(missing[0], names)}")
    try:
        with _in_words(source):
            table, floored_times = _read_with_arrow(source, layout, names)
    except pa.ArrowInvalid as error:
        _raise_first_fault(source, layout, names)
        raise SourceError(f"{source}: {error}") from error
    if not len(table) or _faulty(table):
        _raise_first_fault(source, layout, names)
    return _interactions(table, floored_times)


def _read_with_arrow(source: str, layout: _Layout, names: tuple[str, ...]) -> tuple[pa.Table, int]:
    """The three columns and how many times were rounded down; times are read as text only if one is no whole number."""
    try:
        return _arrow_table(source, layout, names, pa.int64()), 0
    except pa.ArrowInvalid:
        table = _arrow_table(source, layout, names, EXACT)
    times, floored_times = _floor(table.column("time"))
    return table.set_column(2, "time", times), floored_times


def _arrow_table(source: str, layout: _Layout, names: tuple[str, ...], time_type: pa.DataType) -> pa.Table:
    # Arrow cuts at one character. Between the two of `::` it finds a column more, which must be empty throughout.
    doubled = len(layout.separator) == 2
    gaps = [f"\0{place}" for place in range(len(names) - 1)] if doubled else []
    all_names = [name for pair in itertools.zip_longest(names, gaps) for name in pair if name is not None]
    types = dict(zip(layout.columns, (ID, ID, time_type), strict=True)) | dict.fromkeys(gaps, pa.null())
    with _open(source) as stream:
        table = pacsv.read_csv(
            stream,
            read_options=pacsv.ReadOptions(column_names=all_names, skip_rows=0 if layout.names else 1),
            parse_options=pacsv.ParseOptions(delimiter=layout.separator[0], quote_char='"' if layout.quoted else False),
            convert_options=pacsv.ConvertOptions(
                column_types=types,
                include_columns=[*layout.columns, *gaps],
                null_values=[""],
                strings_can_be_null=False,
            ),
        )
    return table.select(list(layout.columns)).rename_columns(["user", "item", "time"])


def _header(source: str, layout: _Layout) -> tuple[str, ...]:
    line = next(_lines(source), (1, b""))[1]
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError(f"{source}: line 1: is not UTF-8; {_SAVE_AS_UTF8}") from None
    if not text:
        raise SourceError(f"{source}: line 1: is empty; expected a header with {', '.join(layout.columns)}")
    names = layout.split(text)
    return tuple(name.partition(":")[0] if layout.typed else name for name in names)


def _raise_first_fault(source: str, layout: _Layout, names: tuple[str, ...]) -> None:
    """Raise about the first line that is wrong, or about there being none, if reading line by line finds that."""
    places = [names.index(column) for column in layout.columns]
    found = 0
    for number, line in itertools.islice(_lines(source), 0 if layout.names else 1, None):
        fault = _fault_of_line(line, layout, names, places) if line else None
        if fault:
            raise SourceError(f"{source}: line {number}: {fault}")
        found += bool(line)
    if not found:
        raise SourceError(f"{source}: has no interactions; expected one a line, separated by {layout.separator!r}")


def _fault_of_line(line: bytes, layout: _Layout, names: tuple[str, ...], places: list[int]) -> str | None:
    try:
        fields = layout.split(line.decode())
    except UnicodeDecodeError:
        return f"is not UTF-8: {line[:80]!r}; {_SAVE_AS_UTF8}"
    if len(fields) != len(names):
        return (
            f"has {len(fields)} fields, expected {len(names)} ({', '.join(names)}) separated by {layout.separator!r}: "
            f"{line.decode()[:80]!r}; mend or delete the line"
        )
    for place in places[:2]:
        if not fields[place]:
            return f"column {names[place]} is empty, expected an id; fill it in or delete the line"
    fault = _fault_of_time(fields[places[2]].strip())
    return fault and f"column {names[places[2]]} is {fault}"


def _fault_of_time(text: str) -> str | None:
    advice = "expected a number such as 978300760; mend or delete the line"
    if not text:
        return f"empty, {advice}"
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", text, re.ASCII):
        return f"{text[:40]!r}, {advice}"
    value = Decimal(text)
    if not -(2**63) <= value < 2**63:
        return f"{text[:40]}, which no 64-bit integer holds; expected Unix seconds"
    if value.as_tuple().exponent < -18:  # type: ignore[operator]  # finite, so no letter
        return f"{text[:40]}, with more than 18 digits after the point; expected Unix seconds"
    return None


def _lines(source: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends."""
    with _open(source) as stream:
        for number, line in enumerate(io.BufferedReader(stream), start=1):
            yield number, line.rstrip(b"\r\n")


def _read_parquet(config: DataConfig) -> Interactions:
    filesystem, paths = source_files(config)
    parts = [_parquet_part(filesystem, path, config) for path in paths]
    table = pa.concat_tables([table for table, _ in parts])
    if not len(table):
        raise SourceError(f"{config.source}: has no interactions")
    return _interactions(table, sum(floored for _, floored in parts))


def _parquet_part(filesystem: fs.FileSystem, path: str, config: DataConfig) -> tuple[pa.Table, int]:
    names = [config.columns.user, config.columns.item, config.columns.time]
    with _in_words(path):
        try:
            present = pq.read_schema(path, filesystem=filesystem).names
            missing = [name for name in names if name not in present]
            if missing:
                raise SourceError(f"{path}: {_no_column(missing[0], present)}")
            raw = pq.ParquetFile(path, filesystem=filesystem).read(columns=names).select(names)
        except pa.ArrowInvalid as error:
            raise SourceError(f"{path}: is no whole Parquet file ({error})") from error
    users, items = (_text_ids(raw.column(name), f"{path}: column {name}") for name in names[:2])
    times, floored_times = _whole_times(raw.column(names[2]), f"{path}: column {names[2]}")
    return pa.table({"user": users, "item": items, "time": times}), floored_times


def _text_ids(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise SourceError(f"{what} is {column.type}, expected text or integers; store ids as text")
    text = column.cast(kind).cast(pa.string())
    _refuse(pc.fill_null(pc.equal(text, ""), True), f"{what} is empty, expected an id; fill it in or delete the row")
    return text.dictionary_encode()


def _whole_times(column: pa.ChunkedArray, what: str) -> tuple[pa.ChunkedArray, int]:
    """Times as whole seconds, and how many of them were rounded down."""
    kind = column.type
    _refuse(column.is_null(), f"{what} is empty, expected a number; fill it in or delete the row")
    if pa.types.is_timestamp(kind):
        whole, rest = np.divmod(
            column.cast(pa.int64()).to_numpy(), {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        )
        return pa.chunked_array([whole], pa.int64()), int(np.count_nonzero(rest))
    if pa.types.is_floating(kind):
        _refuse(pc.invert(pc.is_finite(column)), f"{what} is not finite, expected a number; mend or delete the row")
    elif not pa.types.is_integer(kind) and not pa.types.is_decimal(kind):
        raise SourceError(f"{what} is {kind}, expected numbers or timestamps; store Unix seconds")
    try:
        return (column.cast(pa.int64()), 0) if pa.types.is_integer(kind) else _floor(column)
    except pa.ArrowInvalid as error:
        raise SourceError(
            f"{what} holds a number which no 64-bit integer holds ({error}); expected Unix seconds"
        ) from None


def _refuse(faulty: pa.ChunkedArray, message: str) -> None:
    row = pc.index(faulty, True).as_py()
    if row >= 0:
        raise SourceError(f"{message} (row {row + 1})")


_SAVE_AS_UTF8 = "save the file as UTF-8"


def _interactions(table: pa.Table, floored_times: int) -> Interactions:
    """With ids encoded in one chunk each, so that equal ids have equal codes."""
    columns = {
        name: _one_dictionary(table.column(name)) if name != "time" else table.column(name).combine_chunks()
        for name in INTERACTIONS_SCHEMA.names
    }
    return Interactions(pa.table(columns), floored_times)


def _one_dictionary(column: pa.ChunkedArray) -> pa.Array:
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.unify_dictionaries().combine_chunks()


def _floor(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    whole = pc.floor(column)
    floored = pc.sum(pc.not_equal(whole, column)).as_py() or 0
    return whole.cast(pa.int64()), floored


def _faulty(table: pa.Table) -> bool:
    """Is there an empty id or time? Looked up in the dictionaries, not in the rows."""
    empty = (
        pc.any(pc.equal(chunk.dictionary, "")).as_py() for name in ("user", "item") for chunk in table[name].chunks
    )
    return bool(table.column("time").null_count) or any(empty)


def _no_column(name: str, present: Iterable[str]) -> str:
    present = list(present)
    near = difflib.get_close_matches(name, present, 1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no column {name}, only {', '.join(present)}{hint}"


def _locate(source: str) -> tuple[fs.FileSystem, str]:
    if "://" in source:
        filesystem, path = fs.FileSystem.from_uri(source)
        return filesystem, path
    return fs.LocalFileSystem(), source


def _open(source: str) -> pa.NativeFile:
    """The content of a text file, decompressed where its name says so."""
    filesystem, path = _locate(source)
    return filesystem.open_input_stream(path)


def _similar_file(filesystem: fs.FileSystem, path: str) -> str:
    folder = path.rpartition("/")[0] or "."
    beside = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    near = difflib.get_close_matches(path.rpartition("/")[2], [info.base_name for info in beside], 1)
    return f"; did you mean {near[0]}?" if near else ""


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


@contextmanager
def _in_words(source: str) -> Iterator[None]:
    """Turn what the file system and the decompressor raise into a SourceError."""
    try:
        yield
    except FileNotFoundError:
        filesystem, path = _locate(source)
        raise SourceError(f"{source}: there is no such file{_similar_file(filesystem, path)}") from None
    except OSError as error:
        advice = "it is no whole gzip file; fetch it again, or take .gz off its name if it is plain text; "
        raise SourceError(f"{source}: {advice if source.endswith('.gz') else ''}{error}") from error
