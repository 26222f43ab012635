"""A source in blocks: files, and stretches of large files, each of which can be read without the others.

Text is cut between lines (see `text_blocks.py`), Parquet between row groups, the embedded source between its own blocks
of users. The readers take a block as they take a file, and an error in it names the line or row of the file. A value in
quotes that holds a line break is refused wherever it stands.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from raysrec.config import DataConfig
from raysrec.data import synthetic
from raysrec.data.sources.files import COMPRESSED, NoInteractions, SourceFile, file_in_words
from raysrec.data.sources.formats import Layout, format_of, layout_of
from raysrec.data.sources.interactions import PER_SECOND, Interactions, Part, known_to
from raysrec.data.sources.read import read_file, source_files
from raysrec.data.sources.text import numbered_lines
from raysrec.data.sources.text_blocks import LINE, MOVIE, TextBlock, read_from_start, read_stretch

BLOCK_BYTES = 1 << 26
"""Text that is read at once, and small files that are read together."""
PIECE_INTERACTIONS = 1 << 21
"""Interactions after which what was read is handed on; also those of a block of a Parquet file."""


@dataclass(frozen=True)
class FileBlock:
    """A file of a source, or what begins in a stretch of one."""

    file: SourceFile
    layout: Layout
    start: int = 0
    """In bytes of text, or in row groups of Parquet."""
    stop: int | None = None
    """None where the file ends."""
    interactions: int = 0
    """About how many there are."""


@dataclass(frozen=True)
class SyntheticBlock:
    """Some users of the embedded source."""

    number: int
    interactions: int
    """About how many there are."""


Block = FileBlock | SyntheticBlock


@dataclass(frozen=True)
class ParquetBlock(SourceFile):
    """Some row groups of a file."""

    groups: range

    @property
    def whole(self) -> SourceFile:
        """The file."""
        return SourceFile(self.place)

    @property
    def row_groups(self) -> range:
        """Which they are."""
        return self.groups


def plan_blocks(config: DataConfig) -> list[list[Block]]:
    """What is to be read, in the order of the source, in lists that are read one after the other by one task.

    Raises:
        SourceError: There is no such file, or its name says nothing.
    """
    lists: list[list[Block]] = []
    held = 0
    for block in _blocks_of(config):
        size = block.interactions * _BYTES_OF_LINE
        if not lists or held + size > BLOCK_BYTES:
            lists.append([])
            held = 0
        lists[-1].append(block)
        held += size
    return lists


def read_pieces(config: DataConfig, blocks: Sequence[Block]) -> Iterator[Interactions]:
    """All interactions of these blocks in order, a bounded number at a time.

    Raises:
        SourceError: As `sources.read`, about the same line or row.
    """
    per_second = next((PER_SECOND[block.layout.unit] for block in blocks if isinstance(block, FileBlock)), 1)
    parts: list[Part] = []
    for block in blocks:
        for part in _read_block(config, block):
            parts.append(part)
            if sum(len(part.table) for part in parts) >= PIECE_INTERACTIONS:
                yield _joined(parts, per_second)
                parts = []
    if parts:
        yield _joined(parts, per_second)


_BYTES_OF_LINE, _COMPRESSED_BYTES_OF_LINE, _PARQUET_BYTES_OF_ROW = 16, 4, 4
"""Rather too few, so that rather too many interactions are expected."""


def _blocks_of(config: DataConfig) -> Iterator[Block]:
    kind = format_of(config)
    if kind == "synthetic":
        number = synthetic.blocks(config.synthetic)
        each = -(-synthetic.sizes(config.synthetic).num_interactions // number)
        yield from (SyntheticBlock(block, each) for block in range(number))
    else:
        for file in source_files(config):
            yield from _blocks_of_file(file, layout_of(config, kind, file))


def _blocks_of_file(file: SourceFile, layout: Layout) -> list[FileBlock]:
    size = file.place.info().size or 0
    if layout.reader == "parquet":
        return _blocks_of_parquet(file, layout, size)
    if file.path.endswith(COMPRESSED):
        return [FileBlock(file, layout, interactions=size // _COMPRESSED_BYTES_OF_LINE)]
    starts = range(0, max(size, 1), BLOCK_BYTES)
    ends = [start + BLOCK_BYTES if start + BLOCK_BYTES < size else None for start in starts]
    about = min(size, BLOCK_BYTES) // _BYTES_OF_LINE
    return [FileBlock(file, layout, start, end, about) for start, end in zip(starts, ends, strict=True)]


def _blocks_of_parquet(file: SourceFile, layout: Layout, size: int) -> list[FileBlock]:
    if size <= BLOCK_BYTES // 4:  # not worth a look into it
        return [FileBlock(file, layout, interactions=size // _PARQUET_BYTES_OF_ROW)]
    with file_in_words(file):
        try:
            footer = pq.read_metadata(file.path, filesystem=file.filesystem)
        except pa.ArrowException:
            return [FileBlock(file, layout)]  # who reads it says what is wrong
    groups = (footer.row_group(index) for index in range(footer.num_row_groups))
    values = [max(group.column(place).num_values for place in range(group.num_columns)) for group in groups]
    blocks: list[FileBlock] = []
    start = held = 0
    for stop, count in enumerate(values, start=1):
        held += count
        if stop == len(values) or held + values[stop] > PIECE_INTERACTIONS:
            blocks.append(FileBlock(file, layout, start, stop, held))
            start, held = stop, 0
    return blocks or [FileBlock(file, layout)]


def _joined(parts: list[Part], per_second: int) -> Interactions:
    floored_times, left_out = (sum(getattr(part, name) for part in parts) for name in ("floored_times", "left_out"))
    return Interactions.of(pa.concat_tables([part.table for part in parts]), floored_times, per_second, left_out)


def _read_block(config: DataConfig, block: Block) -> Iterator[Part]:
    """What stands in a block, in order."""
    if isinstance(block, SyntheticBlock):
        yield Part(known_to(config.time_precision, synthetic.synthesize_block(config.synthetic, block.number)), 0)
        return
    file, layout = block.file, block.layout
    if layout.reader == "parquet":
        groups = None if block.stop is None else range(block.start, block.stop)
        yield read_file(file if groups is None else ParquetBlock(file.place, groups), layout)
        return
    cut = MOVIE if layout.reader == "netflix" else LINE
    is_whole = block.start == 0 and block.stop is None
    if is_whole and not file.path.endswith(COMPRESSED):
        yield read_file(file, layout)
        return
    texts = read_from_start(file, BLOCK_BYTES, cut) if is_whole else read_stretch(file, block.start, block.stop, cut)
    for text in texts:
        yield from _read_text(text, file, layout)


def _read_text(text: TextBlock, file: SourceFile, layout: Layout) -> Iterator[Part]:
    """What stands in some lines of a file, of which all may be empty but not all of the file's."""
    try:
        if text.content.strip():
            yield read_file(text, layout)
            return
    except NoInteractions:
        pass
    if text.is_beginning and not _has_interactions(file, layout):
        read_file(file, layout)  # raises, as it does where a file is not cut


def _has_interactions(file: SourceFile, layout: Layout) -> bool:
    """Does any line hold one, right or wrong?"""
    has_header = layout.reader == "text" and not layout.names
    with file_in_words(file):
        return any(
            line.strip() and not (layout.reader == "netflix" and re.fullmatch(rb"\d+:", line))
            for number, line in numbered_lines(file)
            if number > has_header
        )
