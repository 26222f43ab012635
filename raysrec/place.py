"""A place is a file or folder on this machine or in a store, named by a path or a URI, and used the same way in both.

It knows nothing but its name, so it can be logged, saved and sent to another machine; there it is opened with that
machine's credentials. How stores are named and how they fail stands in `stores.py`.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from raysrec.stores import Address, PlaceError, failure_of, parse

__all__ = ["AnyPath", "Place", "PlaceError", "store_in_words", "sync"]

AnyPath = str | os.PathLike[str]
"""A path or a URI as text, a path of this machine, or a Place."""

AT_ONCE_BYTES = 1 << 23
"""What one request brings of a file that is read from its beginning: the first byte takes longest."""


@dataclass(frozen=True)
class Place:
    """A file or folder; two places of the same name are equal."""

    uri: str
    """The path or URI by which it was named, such as `s3://bucket/folder?region=…`."""

    def __post_init__(self) -> None:
        if "://" in self.uri:
            parse(self.uri)

    @classmethod
    def of(cls, name: AnyPath) -> "Place":
        """The place of a path or URI.

        Raises:
            PlaceError: The URI holds credentials, or names a store or an option that is not known.
        """
        if isinstance(name, Place):
            return name
        name = os.fspath(name)
        return cls(name if "://" in name else name.rstrip("/") or name)

    def __str__(self) -> str:
        return self.uri

    def __fspath__(self) -> str:
        return str(self.local)

    def __truediv__(self, part: str) -> "Place":
        """What is called so in this folder."""
        return self.at(f"{self.path.rstrip('/')}/{part}" if self.path else part)

    def at(self, path: str) -> "Place":
        """What lies at this path of the same file system."""
        if "://" not in self.uri:
            return Place(path)
        query = f"?{self._address.query}" if self._address.query else ""
        return Place(f"{self._address.scheme}://{path}{query}")

    @cached_property
    def _address(self) -> Address:
        return parse(self.uri) if "://" in self.uri else Address("file", self.uri, "")

    @cached_property
    def filesystem(self) -> fs.FileSystem:
        """This machine's, or a store's."""
        return self._address.filesystem()

    def __getstate__(self) -> dict[str, str]:
        return {"uri": self.uri}

    @property
    def path(self) -> str:
        """Where it lies in its file system."""
        return self._address.path

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        """Does it lie on this machine?"""
        return self._address.scheme == "file"

    @property
    def local(self) -> Path:
        """The same as a path of this machine.

        Raises:
            PlaceError: It lies in a store.
        """
        if not self.is_local:
            raise PlaceError(f"{self}: lies in a store and is needed on this machine")
        return Path(self.path)

    def absolute(self) -> "Place":
        """The same, whatever folder a process works in."""
        return self.at(str(self.local.resolve())) if self.is_local else self

    def info(self) -> fs.FileInfo:
        """What kind of thing lies there, its size, and when it was changed.

        Raises:
            PlaceError: The store cannot be asked, or has no such bucket.
        """
        with store_in_words(self):
            info = self.filesystem.get_file_info(self.path)
        if info.type == fs.FileType.NotFound:
            self._refuse_missing_bucket()
        return info

    def is_file(self) -> bool:
        """Is there a file?"""
        return bool(self.info().type == fs.FileType.File)

    def exists(self) -> bool:
        """Is there a file or a folder?"""
        return bool(self.info().type != fs.FileType.NotFound)

    def stamp(self) -> tuple[int, int, str]:
        """Size, time of change, and a store's tag of the content: other ones when the file was written to."""
        info = self.info()
        if self.is_local:
            return info.size, info.mtime_ns, ""
        with store_in_words(self), self.filesystem.open_input_file(self.path) as file:
            return info.size, info.mtime_ns, (file.metadata() or {}).get("ETag", b"").decode()

    def below(self, *, recursive: bool = True) -> list[fs.FileInfo]:
        """Every file and folder in a folder, and in those below it; none if there is no such folder."""
        with store_in_words(self):
            selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
            found = self.filesystem.get_file_info(selector)
        if not found:
            self._refuse_missing_bucket()
        return list(found)

    def open(self) -> pa.NativeFile:
        """The file, to be read from its beginning, as it lies there."""
        with store_in_words(self):
            ahead = None if self.is_local else AT_ONCE_BYTES
            return self.filesystem.open_input_stream(self.path, compression=None, buffer_size=ahead)

    def read_bytes(self) -> bytes:
        """All of a file.

        Raises:
            FileNotFoundError: There is none.
        """
        with store_in_words(self), self.open() as stream:
            return bytes(stream.readall())

    def read_text(self) -> str:
        """All of a text file."""
        return self.read_bytes().decode()

    def write(self, content: str | bytes) -> None:
        """Write a file (and make its folder); a kill leaves the old one or the new one, never half of one."""
        content = content.encode() if isinstance(content, str) else content
        with self.replacing() as file:
            file.write_bytes(content)

    @contextmanager
    def replacing(self) -> Iterator[Path]:
        """A file of this machine to write; it appears here, whole, when the block ends well."""
        if self.is_local:
            temporary = self.local.with_name(f".{self.name}.{os.getpid()}")
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
                sync(temporary)
                temporary.replace(self.local)
                sync(temporary.parent)
            finally:
                temporary.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="raysrec-") as folder:
            yield Path(folder) / self.name
            self.upload(Path(folder) / self.name)

    @contextmanager
    def at_hand(self) -> Iterator[Path]:
        """The file on this machine while the block runs; a copy, if it lies in a store."""
        if self.is_local:
            yield self.local
            return
        with tempfile.TemporaryDirectory(prefix="raysrec-") as folder:
            with store_in_words(self), self.open() as stream, (Path(folder) / self.name).open("wb") as copy:
                shutil.copyfileobj(stream, copy, AT_ONCE_BYTES)
            yield Path(folder) / self.name

    def upload(self, file: Path) -> None:
        """Copy a file of this machine here; it appears when all of it is there."""
        # pyarrow's copy_files does not tell when a store refuses what was sent to it.
        with store_in_words(self):
            try:
                with file.open("rb") as source, self.filesystem.open_output_stream(self.path, compression=None) as sink:
                    shutil.copyfileobj(source, sink, AT_ONCE_BYTES)
            except BaseException as error:
                if not (isinstance(error, OSError) and failure_of(error, {})):
                    with suppress(OSError):  # closing the stream has made a file of what was sent until then
                        self.filesystem.delete_file(self.path)
                raise

    def delete(self, *, first: str = "", last: str = "") -> None:
        """Remove a file, or a folder with all that lies in it, if it is there.

        Args:
            first: Of a folder: what is gone before all else, for what a kill in the middle must not leave.
            last: Of a folder: what stays until all else is gone.
        """
        if first or last:
            names = [info.base_name for info in self.below(recursive=False) if info.base_name != last]
            for name in sorted(names, key=lambda name: name != first):
                (self / name).delete()
        with store_in_words(self), suppress(FileNotFoundError):
            if self.is_file():
                self.filesystem.delete_file(self.path)
            elif self.is_local:
                shutil.rmtree(self.local)
            else:
                self.filesystem.delete_dir(self.path)

    def _refuse_missing_bucket(self) -> None:
        if self.is_local:
            return
        bucket, exists = self.path.partition("/")[0], True
        with suppress(OSError):  # many may use a bucket's files and not look at the bucket
            exists = self.filesystem.get_file_info(bucket).type != fs.FileType.NotFound
        if not exists:
            raise PlaceError(f"{self}: there is no bucket {bucket}; make it, or fix its name or the endpoint")


def sync(path: Path) -> None:
    """Bring a file or folder of this machine to its disk: a name must not outlive a crash that its content does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def store_in_words(place: Place) -> Iterator[None]:
    """Turn a store's failures into a PlaceError that names the place, and leave other errors as they are."""
    try:
        yield
    except FileNotFoundError:
        place._refuse_missing_bucket()
        raise FileNotFoundError(f"{place}: there is no such file") from None
    except OSError as error:
        if place.is_local or not (words := failure_of(error, place._address.options)):
            raise
        raise PlaceError(f"{place}: {words}") from error
