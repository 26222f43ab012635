"""Where a source lies: found and opened on this machine or in a store, and missing or broken in words.

Nothing here knows what stands in a file.
"""

import difflib
import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

COMPRESSED = (".gz", ".zst")
"""Ends of the names of files that are decompressed while they are read."""


class SourceError(ValueError):
    """A source that cannot be read; the text names the file, the line, what came, what was expected and what to do."""


class NoInteractions(SourceError):
    """A file in which nothing is wrong, but nothing stands either."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    filesystem: fs.FileSystem
    """This machine's, or a store's."""
    path: str
    """Where it lies there."""

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """Its plain name (see `plain_name`)."""
        return plain_name(self.path)

    def open(self) -> pa.NativeFile:
        """Its content, decompressed where its name says so."""
        return self.filesystem.open_input_stream(self.path)

    @property
    def whole(self) -> "SourceFile":
        """The file of which this may be a part (see `parts.py`)."""
        return self

    @property
    def is_beginning(self) -> bool:
        """Does it begin where the file does, so that a header stands in it?"""
        return True

    @property
    def lines_before(self) -> int:
        """Lines of the file above this part of it."""
        return 0

    @property
    def row_groups(self) -> range | None:
        """Parquet: which row groups of the file it is; None for all."""
        return None


def plain_name(path: str) -> str:
    """What a path ends with, in lower case and without the end that says how it is compressed."""
    name = path.rstrip("/").rpartition("/")[2].lower()
    for end in COMPRESSED:
        name = name.removesuffix(end)
    return name


def locate(source: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    if "://" in source:
        filesystem, path = fs.FileSystem.from_uri(source)
        return filesystem, path
    return fs.LocalFileSystem(), source


def find_files(place: str, belongs: Callable[[str], bool], expected: str) -> list[SourceFile]:
    """The files that a file's name, a folder or a pattern such as `logs/*.csv` stands for, in order of their names.

    Args:
        place: A path or URI.
        belongs: Does a file of this plain name belong to the source, where a folder is named?
        expected: Such files in words, for a message.

    Raises:
        SourceError: There is none.
    """
    filesystem, path = locate(place)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        return [SourceFile(filesystem, path)]
    if info.type == fs.FileType.Directory:
        paths = [name for name in _below(filesystem, path) if belongs(plain_name(name))]
        if not paths:
            raise SourceError(f"data.source={place}: the folder has no {expected} files")
    elif not glob.has_magic(path):
        raise SourceError(f"data.source={place}: there is no such file{similar_file(filesystem, path)}")
    else:
        paths = _matching(filesystem, path)
        if not paths:
            raise SourceError(f"data.source={place}: no file is named so")
    return [SourceFile(filesystem, name) for name in sorted(paths)]


def names_in(place: str) -> list[str] | None:
    """Plain names of the files in a folder; None if there is no such folder."""
    filesystem, path = locate(place)
    if filesystem.get_file_info(path).type != fs.FileType.Directory:
        return None
    return [plain_name(name) for name in _below(filesystem, path)]


def similar_file(filesystem: fs.FileSystem, path: str) -> str:
    """The end of a message about a file that is not there: the neighbour that may have been meant, if there is one."""
    folder = path.rpartition("/")[0] or "."
    beside = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    near = difflib.get_close_matches(path.rpartition("/")[2], [info.base_name for info in beside], 1)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def in_words(file: SourceFile) -> Iterator[None]:
    """Turn what the file system and the decompressor raise into a SourceError."""
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{file}: there is no such file{similar_file(file.filesystem, file.path)}") from None
    except OSError as error:
        end = next((end for end in COMPRESSED if file.path.endswith(end)), "")
        kind = {".gz": "gzip", ".zst": "zstd"}.get(end)
        advice = f"it is no whole {kind} file; fetch it again, or take {end} off its name if it is plain text; "
        raise SourceError(f"{file}: {advice if end else ''}{error}") from error


def _below(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Every file in a folder and in those below it, but for hidden ones."""
    found = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    return [info.path for info in found if info.is_file and not _hidden(info.path[len(folder) :])]


def _matching(filesystem: fs.FileSystem, pattern: str) -> list[str]:
    """Every file whose path matches, folder by folder: `*` does not reach over a slash."""
    parts = pattern.split("/")
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    folder = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")
    found = filesystem.get_file_info(fs.FileSelector(folder, recursive=first < len(parts) - 1, allow_not_found=True))
    wanted = PurePosixPath(pattern)
    paths = [info.path.removeprefix("./") if folder == "." else info.path for info in found if info.is_file]
    return [path for path in paths if len(PurePosixPath(path).parts) == len(wanted.parts) and _match(path, wanted)]


def _match(path: str, pattern: PurePosixPath) -> bool:
    return PurePosixPath(path).match(str(pattern))


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))
