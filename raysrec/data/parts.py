"""A source in parts: files, and stretches of large files, each of which can be read without the others.

Text is cut where a line begins (Netflix's where a movie begins), wherever it may be read from; only compressed text has
to be read from its start, part after part. Parquet is cut between row groups. The readers take a part as they take a
file, and an error in it names the line or row of the file. A value in quotes that holds a line break is refused here
where it would be cut, and by the readers anyway where their own blocks end in it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from raysrec.config import DataConfig
from raysrec.data.files import COMPRESSED, NoInteractions, SourceFile, in_words
from raysrec.data.formats import Layout, format_of, layout_of
from raysrec.data.interactions import PER_SECOND, Interactions
from raysrec.data.sources import read, read_file, source_files
from raysrec.data.text import numbered_lines

PART_BYTES = 1 << 26
"""Text that is read at once, and small files that are read together."""
PIECE_INTERACTIONS = 1 << 21
"""Interactions after which what was read is handed on; also those of a part of a Parquet file."""

LINE, MOVIE = re.compile(rb"\n"), re.compile(rb"\n(?=\d{1,20}:\r?\n)")
"""What ends where a part may begin."""

_STEP = 1 << 20


@dataclass(frozen=True)
class Part:
    """A file of a source, or what begins in a stretch of one."""

    file: SourceFile
    layout: Layout
    start: int = 0
    """In bytes of text, or in row groups of Parquet."""
    stop: int | None = None
    """None where the file ends."""
    interactions: int = 0
    """About how many there are."""

    @property
    def bytes_at_once(self) -> int:
        """About how much memory the reading of it takes."""
        return self.interactions * _BYTES_OF_LINE


@dataclass(frozen=True)
class TextPart(SourceFile):
    """Some lines of a file, in memory."""

    content: bytes
    start: int
    """Where they stand in the (decompressed) file."""

    def open(self) -> pa.NativeFile:
        """The lines."""
        return pa.BufferReader(self.content)

    @property
    def whole(self) -> SourceFile:
        """The file."""
        return SourceFile(self.filesystem, self.path)

    @property
    def is_beginning(self) -> bool:
        """Does a header stand in it?"""
        return self.start == 0

    @property
    def lines_before(self) -> int:
        """Lines above these; counted in the file when a message needs it."""
        lines, left = 0, self.start
        with self.whole.open() as stream:
            while left and (block := stream.read(min(left, _STEP))):
                lines, left = lines + block.count(b"\n"), left - len(block)
        return lines

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class ParquetPart(SourceFile):
    """Some row groups of a file."""

    groups: range

    @property
    def whole(self) -> SourceFile:
        """The file."""
        return SourceFile(self.filesystem, self.path)

    @property
    def row_groups(self) -> range:
        """Which they are."""
        return self.groups

    def __str__(self) -> str:
        return self.path


def plan_parts(config: DataConfig) -> list[list[Part]]:
    """What is to be read, in the order of the source, in lists that are read one after the other by one task.

    The embedded source is one empty list.

    Raises:
        SourceError: There is no such file, or its name says nothing.
    """
    kind = format_of(config)
    if kind == "synthetic":
        return [[]]
    parts = [part for file in source_files(config) for part in _parts_of(file, layout_of(config, kind, file))]
    lists: list[list[Part]] = []
    held = PART_BYTES
    for part in parts:
        if held + part.bytes_at_once > PART_BYTES:
            lists.append([])
            held = 0
        lists[-1].append(part)
        held += part.bytes_at_once
    return lists


def read_pieces(config: DataConfig, parts: Sequence[Part]) -> Iterator[Interactions]:
    """All interactions of these parts in order, a bounded number at a time.

    Raises:
        SourceError: As `sources.read`, about the same line or row.
    """
    if not parts:
        yield read(config)
        return
    per_second = PER_SECOND[parts[0].layout.unit]
    tables: list[pa.Table] = []
    floored_times = 0
    for part in parts:
        for table, floored in _read_part(part):
            tables.append(table)
            floored_times += floored
            if sum(map(len, tables)) >= PIECE_INTERACTIONS:
                yield Interactions.of(pa.concat_tables(tables), floored_times, per_second)
                tables, floored_times = [], 0
    if any(map(len, tables)):
        yield Interactions.of(pa.concat_tables(tables), floored_times, per_second)


_BYTES_OF_LINE, _COMPRESSED_BYTES_OF_LINE, _PARQUET_BYTES_OF_ROW = 16, 4, 8
"""Rather too few, so that rather too many interactions are expected."""


def _parts_of(file: SourceFile, layout: Layout) -> list[Part]:
    size = file.filesystem.get_file_info(file.path).size or 0
    if layout.reader == "parquet":
        return _parts_of_parquet(file, layout, size)
    if file.path.endswith(COMPRESSED):
        return [Part(file, layout, interactions=size // _COMPRESSED_BYTES_OF_LINE)]
    starts = range(0, max(size, 1), PART_BYTES)
    ends = [start + PART_BYTES if start + PART_BYTES < size else None for start in starts]
    about = min(size, PART_BYTES) // _BYTES_OF_LINE
    return [Part(file, layout, start, end, about) for start, end in zip(starts, ends, strict=True)]


def _parts_of_parquet(file: SourceFile, layout: Layout, size: int) -> list[Part]:
    if size <= PART_BYTES // 4:  # not worth a look into it
        return [Part(file, layout, interactions=size // _PARQUET_BYTES_OF_ROW)]
    with in_words(file):
        try:
            footer = pq.read_metadata(file.path, filesystem=file.filesystem)
        except pa.ArrowInvalid:
            return [Part(file, layout)]  # who reads it says what is wrong
    groups = (footer.row_group(index) for index in range(footer.num_row_groups))
    values = [max(group.column(place).num_values for place in range(group.num_columns)) for group in groups]
    parts: list[Part] = []
    start = held = 0
    for stop, count in enumerate(values, start=1):
        held += count
        if stop == len(values) or held + values[stop] > PIECE_INTERACTIONS:
            parts.append(Part(file, layout, start, stop, held))
            start, held = stop, 0
    return parts or [Part(file, layout)]


def _read_part(part: Part) -> Iterator[tuple[pa.Table, int]]:
    """Tables of a part in order, and how many times of each were rounded down."""
    file, layout = part.file, part.layout
    if layout.reader == "parquet":
        groups = None if part.stop is None else range(part.start, part.stop)
        yield read_file(file if groups is None else ParquetPart(file.filesystem, file.path, groups), layout)
        return
    end_of_part = MOVIE if layout.reader == "netflix" else LINE
    is_whole = part.start == 0 and part.stop is None
    if is_whole and not file.path.endswith(COMPRESSED):
        yield read_file(file, layout)
        return
    lines = _streamed(file, end_of_part) if is_whole else _stretch(part, end_of_part)
    for text in lines:
        try:
            if text.content.strip():
                yield read_file(text, layout)
                continue
        except NoInteractions:
            pass
        if text.is_beginning and not _has_interactions(file, layout):
            read_file(file, layout)  # raises, as it does where a file is not cut


def _stretch(part: Part, end_of_part: re.Pattern[bytes]) -> Iterator[TextPart]:
    """The lines that begin between two places of a file."""
    file = part.file
    with in_words(file), file.filesystem.open_input_file(file.path) as source:
        start = _first_cut(source, part.start, end_of_part)
        stop = source.size() if part.stop is None else _first_cut(source, part.stop, end_of_part)
        content = source.read_at(stop - start, start) if start < stop else b""
    if content:
        yield TextPart(file.filesystem, file.path, content, start)


def _first_cut(source: pa.NativeFile, place: int, end_of_part: re.Pattern[bytes]) -> int:
    """Where the first part begins that begins at this place or after it."""
    if place == 0:
        return 0
    read, begin = b"", place - 1
    while block := source.read_at(_STEP, begin + len(read)):
        read += block
        if match := end_of_part.search(read, max(len(read) - len(block) - 64, 0)):
            return begin + match.end()
    return int(source.size())


def _streamed(file: SourceFile, end_of_part: re.Pattern[bytes]) -> Iterator[TextPart]:
    """The lines of a file that can only be read from its start, so many at a time."""
    with in_words(file), file.open() as stream:
        start, read, more = 0, b"", True
        while more or read:
            read += stream.read(max(PART_BYTES + _STEP - len(read), 0)) if more else b""
            while not (cut := end_of_part.search(read, PART_BYTES - 1)) and more:
                block = stream.read(_STEP)
                read, more = read + block, bool(block)
            stop = cut.end() if cut else len(read)
            if stop:
                yield TextPart(file.filesystem, file.path, read[:stop], start)
            start, read = start + stop, read[stop:]


def _has_interactions(file: SourceFile, layout: Layout) -> bool:
    """Does any line hold one, right or wrong?"""
    has_header = layout.reader == "text" and not layout.names
    with in_words(file):
        return any(
            line.strip() and not (layout.reader == "netflix" and re.fullmatch(rb"\d+:", line))
            for number, line in numbered_lines(file)
            if number > has_header
        )
