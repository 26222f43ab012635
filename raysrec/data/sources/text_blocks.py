"""Text in blocks: where a file may be cut, and the lines of a block in memory.

Text is cut where a line begins (Netflix's where a movie begins), wherever it may be read from; only compressed text has
to be read from its start, block after block.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from raysrec.data.sources.files import SourceFile, file_in_words

LINE, MOVIE = re.compile(rb"\n"), re.compile(rb"\n(?=\d{1,20}:\r?\n)")
"""What ends where a block may begin."""

_STEP = 1 << 20


@dataclass(frozen=True)
class TextBlock(SourceFile):
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
        return SourceFile(self.place)

    @property
    def is_beginning(self) -> bool:
        """Does a header stand in it?"""
        return self.start == 0

    @property
    def lines_before(self) -> int:
        """Lines above these; counted in the file when a message needs it."""
        lines, left = 0, self.start
        with self.whole.open() as stream:
            while left and (read := stream.read(min(left, _STEP))):
                lines, left = lines + read.count(b"\n"), left - len(read)
        return lines


def read_stretch(file: SourceFile, start: int, stop: int | None, cut: re.Pattern[bytes]) -> Iterator[TextBlock]:
    """What begins between two places of a file, in bytes; nothing if nothing begins there.

    Args:
        file: Not compressed.
        start: The first place.
        stop: The place behind the last; None where the file ends.
        cut: What ends where a block may begin.
    """
    with file_in_words(file), file.filesystem.open_input_file(file.path) as source:
        begin = _first_beginning(source, start, cut)
        end = source.size() if stop is None else _first_beginning(source, stop, cut)
        content = source.read_at(end - begin, begin) if begin < end else b""
    if content:
        yield TextBlock(file.place, content, begin)


def read_from_start(file: SourceFile, num_bytes: int, cut: re.Pattern[bytes]) -> Iterator[TextBlock]:
    """All of a file, about so many bytes of text at a time."""
    with file_in_words(file), file.open() as stream:
        start, read, more = 0, b"", True
        while more or read:
            read += stream.read(max(num_bytes + _STEP - len(read), 0)) if more else b""
            while not (found := cut.search(read, num_bytes - 1)) and more:
                step = stream.read(_STEP)
                read, more = read + step, bool(step)
            stop = found.end() if found else len(read)
            if stop:
                yield TextBlock(file.place, read[:stop], start)
            start, read = start + stop, read[stop:]


def _first_beginning(source: pa.NativeFile, place: int, cut: re.Pattern[bytes]) -> int:
    """Where the first block begins that begins at this place or after it."""
    if place == 0:
        return 0
    read, begin = b"", place - 1
    while step := source.read_at(_STEP, begin + len(read)):
        read += step
        if found := cut.search(read, max(len(read) - len(step) - 64, 0)):
            return begin + found.end()
    return int(source.size())
