"""Where a source lies: found and opened on this machine or in a store, and missing or broken in words.

Nothing here knows what stands in a file.
"""

import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from raysrec.errors import LastingError, did_you_mean
from raysrec.place import Place, PlaceError, store_in_words

COMPRESSED = (".gz", ".zst")
"""Ends of the names of files that are decompressed while they are read."""


class SourceError(LastingError):
    """A source that cannot be read; the text names the file, the line, what came, what was expected and what to do."""


class NoInteractions(SourceError):
    """A file in which nothing is wrong, but nothing stands either."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    place: Place
    """Where it lies."""

    def __str__(self) -> str:
        return self.path if "://" not in self.place.uri else self.place.uri.partition("?")[0]

    @property
    def filesystem(self) -> fs.FileSystem:
        """This machine's, or a store's."""
        return self.place.filesystem

    @property
    def path(self) -> str:
        """Where it lies there."""
        return self.place.path

    @property
    def name(self) -> str:
        """Its plain name (see `plain_name`)."""
        return plain_name(self.path)

    def open(self) -> pa.NativeFile:
        """Its content, decompressed where its name says so."""
        end = next((end for end in COMPRESSED if self.path.endswith(end)), "")
        stream = self.place.open()
        return pa.CompressedInputStream(stream, _CODECS[end]) if end else stream

    @property
    def whole(self) -> "SourceFile":
        """The file of which this may be a part (see `blocks.py`)."""
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
    path = path.partition("?")[0] if "://" in path else path
    name = path.rstrip("/").rpartition("/")[2].lower()
    for end in COMPRESSED:
        name = name.removesuffix(end)
    return name


def find_files(source: str, belongs: Callable[[str], bool], expected: str) -> list[SourceFile]:
    """The files that a file's name, a folder or a pattern such as `logs/*.csv` stands for, in order of their names.

    Args:
        source: A path or URI.
        belongs: Does a file of this plain name belong to the source, where a folder is named?
        expected: Such files in words, for a message.

    Raises:
        SourceError: There is none.
        PlaceError: A store that cannot be named so, or fails.
    """
    place = Place.of(source)
    kind = place.info().type
    if kind == fs.FileType.File:
        return [SourceFile(place)]
    if kind == fs.FileType.Directory:
        paths = [name for name in _below(place) if belongs(plain_name(name))]
        if not paths:
            raise SourceError(f"data.source={source}: the folder has no {expected} files")
    elif not glob.has_magic(place.path):
        raise SourceError(f"data.source={source}: there is no such file{_similar_file(place)}")
    else:
        paths = _matching(place)
        if not paths:
            raise SourceError(f"data.source={source}: no file is named so")
    return [SourceFile(place.at(name)) for name in sorted(paths)]


def names_in(source: str) -> list[str] | None:
    """Plain names of the files in a folder; None if there is no such folder."""
    place = Place.of(source)
    if place.info().type != fs.FileType.Directory:
        return None
    return [plain_name(name) for name in _below(place)]


def _similar_file(place: Place) -> str:
    """The end of a message about a file that is not there: the neighbour that may have been meant, if there is one."""
    folder, _, name = place.path.rpartition("/")
    beside = place.at(folder or ".").below(recursive=False)
    return did_you_mean(name, [info.base_name for info in beside])


@contextmanager
def file_in_words(file: SourceFile) -> Iterator[None]:
    """Turn what the file system and the decompressor raise into a SourceError."""
    try:
        with store_in_words(file.place):
            yield
    except PlaceError as error:
        raise SourceError(f"data.source: {error}") from error
    except FileNotFoundError:
        raise SourceError(f"{file}: there is no such file{_similar_file(file.place)}") from None
    except OSError as error:
        end = next((end for end in COMPRESSED if file.path.endswith(end)), "")
        kind = _CODECS.get(end)
        advice = f"it is no whole {kind} file; fetch it again, or take {end} off its name if it is plain text; "
        raise SourceError(f"{file}: {advice if end else ''}{error}") from error


def _below(folder: Place) -> list[str]:
    """Every file in a folder and in those below it, but for hidden ones."""
    return [info.path for info in folder.below() if info.is_file and not _hidden(info.path[len(folder.path) :])]


def _matching(place: Place) -> list[str]:
    """Every file whose path matches, folder by folder: `*` does not reach over a slash."""
    pattern = place.path
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    folder = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")
    found = place.at(folder).below(recursive=first < len(parts) - 1)
    wanted = PurePosixPath(pattern)
    paths = [info.path.removeprefix("./") if folder == "." else info.path for info in found if info.is_file]
    return [path for path in paths if len(PurePosixPath(path).parts) == len(wanted.parts) and _match(path, wanted)]


def _match(path: str, pattern: PurePosixPath) -> bool:
    return PurePosixPath(path).match(str(pattern))


_CODECS = {".gz": "gzip", ".zst": "zstd"}


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))
