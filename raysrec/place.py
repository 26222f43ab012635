"""A place is a file or folder on this machine or in a store, named by a path or a URI, and used the same way in both.

Only this file knows stores. Credentials come from the environment or from the files that the store's own tools read;
they are never part of a place, so nothing that is logged, saved or sent to a worker can contain them.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pyarrow import fs

ATTEMPTS = 8
"""How often a request to a store is made before it has failed; waits between them double."""

CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 5.0, 30.0
"""Seconds until a store that cannot be reached, or says nothing, counts as failing."""


class PlaceError(ValueError):
    """A place that cannot be named so; the text says what came and what was expected."""


@dataclass(frozen=True)
class Place:
    """A file or folder. Two places of the same name are equal, and a place can be sent to another machine."""

    name: str
    """The path or URI by which it was named, without a slash at its end."""
    filesystem: fs.FileSystem = field(compare=False, repr=False)
    """This machine's, or a store's."""
    path: str = field(compare=False, repr=False)
    """Where it lies there."""

    @classmethod
    def of(cls, name: "str | os.PathLike[str] | Place") -> "Place":
        """The place of a path, or of a URI such as `s3://bucket/folder?endpoint_override=…&scheme=http&region=…`.

        Raises:
            PlaceError: The URI holds credentials, or is of a store that is not known.
        """
        if isinstance(name, Place):
            return name
        name = os.fspath(name)
        if "://" not in name:
            return cls(name.rstrip("/") or name, fs.LocalFileSystem(), name.rstrip("/") or name)
        filesystem, path = _store(name)
        return cls(name.rstrip("/"), filesystem, path)

    def __str__(self) -> str:
        return self.name

    def __truediv__(self, part: str) -> "Place":
        """What is called so in this folder."""
        name, question, query = self.name.partition("?")
        joined = f"{name.rstrip('/')}/{part}{question}{query}"
        return Place(joined, self.filesystem, f"{self.path.rstrip('/')}/{part}")

    def __reduce__(self) -> "tuple[Callable[[str], Place], tuple[str]]":
        """Only the name travels: a file system would take its credentials along."""
        return Place.of, (self.name,)

    @property
    def is_local(self) -> bool:
        """Does it lie on this machine?"""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def local(self) -> Path:
        """The same as a path of this machine.

        Raises:
            PlaceError: It lies in a store.
        """
        if not self.is_local:
            raise PlaceError(f"{self}: lies in a store and is needed on this machine")
        return Path(self.path)

    @property
    def is_file(self) -> bool:
        """Is there a file?"""
        return self.filesystem.get_file_info(self.path).type == fs.FileType.File

    @property
    def size(self) -> int | None:
        """Bytes of the file; None if there is none."""
        return self.filesystem.get_file_info(self.path).size

    def read(self) -> bytes:
        """All of a file."""
        with self.filesystem.open_input_stream(self.path, compression=None) as stream:
            return stream.readall()

    def write(self, content: bytes) -> None:
        """Write a file; in a store it appears when all of it is there."""
        with self.filesystem.open_output_stream(self.path, compression=None) as stream:
            stream.write(content)


def _store(uri: str) -> tuple[fs.FileSystem, str]:
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise PlaceError(
            f"{parts.scheme}://***@{parts.hostname}{parts.path}: holds credentials; give them in the environment or in "
            "the store's own files, and take them out of the URI, which is saved with every run"
        )
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.scheme == "s3":
        return _s3(tuple(sorted(options.items()))), f"{parts.netloc}{parts.path}".rstrip("/")
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path.rstrip("/")


@cache
def _s3(options: tuple[tuple[str, str], ...]) -> fs.FileSystem:
    given = dict(options)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = endpoint.rpartition("://")
    return fs.S3FileSystem(
        endpoint_override=given.get("endpoint_override", host) or None,
        scheme=given.get("scheme", scheme) or "https",
        region=given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
    )
