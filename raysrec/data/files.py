"""Where a source lies: found and opened on this machine or in a store, and missing or broken in words.

Nothing here knows what stands in a file.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from pyarrow import fs


class SourceError(ValueError):
    """A source that cannot be read; the text names the file, the line, what came, what was expected and what to do."""


def locate(source: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    if "://" in source:
        filesystem, path = fs.FileSystem.from_uri(source)
        return filesystem, path
    return fs.LocalFileSystem(), source


def open_file(source: str) -> pa.NativeFile:
    """The content of a file, decompressed where its name says so."""
    filesystem, path = locate(source)
    return filesystem.open_input_stream(path)


def similar_file(filesystem: fs.FileSystem, path: str) -> str:
    """The end of a message about a file that is not there: the neighbour that may have been meant, if there is one."""
    folder = path.rpartition("/")[0] or "."
    beside = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    near = difflib.get_close_matches(path.rpartition("/")[2], [info.base_name for info in beside], 1)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def in_words(source: str) -> Iterator[None]:
    """Turn what the file system and the decompressor raise into a SourceError."""
    try:
        yield
    except FileNotFoundError:
        filesystem, path = locate(source)
        raise SourceError(f"{source}: there is no such file{similar_file(filesystem, path)}") from None
    except OSError as error:
        advice = "it is no whole gzip file; fetch it again, or take .gz off its name if it is plain text; "
        raise SourceError(f"{source}: {advice if source.endswith('.gz') else ''}{error}") from error
