"""A source, fetched from where it was published: `python -m raysrec.prepare --download`.

What has come so far lies under the name of the file with `.part` behind it, and the next attempt goes on from there
where the server can. A file gets its name when all of it is there and it is what its checksum says.
"""

import fcntl
import glob
import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from rich import progress
from rich.console import Console

from raysrec.config import DataConfig
from raysrec.data.sources.files import COMPRESSED, SourceError
from raysrec.data.sources.formats import places_of
from raysrec.place import Place

ATTEMPTS = 5
"""How often in a row a connection may break without bringing anything."""
PAUSE = 2.0
"""Seconds between two attempts."""
TIMEOUT = 60
"""Seconds in which a server must say something."""
BLOCK = 1 << 20
"""Bytes read at once."""

_ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")


def download(config: DataConfig) -> list[Path]:
    """Fetch the source that the config describes, unless it is there; the files it consists of.

    An archive is kept beside the source until all that `source` names is unpacked, and is then removed.

    Raises:
        SourceError: There is no `data.url`, the source is to lie elsewhere than on this machine, the server refuses or
            keeps breaking off, or what came is not what `data.checksum` says or does not hold the source.
    """
    folder, pattern = _target(config)
    name = PurePosixPath(urlsplit(config.url).path).name
    archive = folder / name if name.lower().endswith(_ARCHIVES) else None
    whole = archive or folder / pattern
    there = sorted(folder.glob(pattern))
    if there and not (archive and (archive.exists() or _part(archive).exists())):
        return there
    folder.mkdir(parents=True, exist_ok=True)
    if not whole.exists():
        fetch(config.url, whole, config.checksum)
    if archive is None:
        return [whole]
    files = _unpack(archive, folder, pattern)
    archive.unlink()
    return files


def fetch(url: str, target: Path, checksum: str = "") -> None:
    """Bring the file at a URL to this path, going on from what an earlier attempt left.

    Args:
        url: http or https.
        target: Appears when it is whole.
        checksum: `md5:…` or `sha256:…` of it; empty checks nothing.

    Raises:
        SourceError: The server refuses or keeps breaking off, another process is at it, or the checksum is another.
    """
    with _locked(_part(target)) as part, _bar(target.name) as bar:
        most, idle = part.size(), 0
        while not _receive(url, part, bar, trusted=bool(checksum)):
            idle = 0 if part.size() > most else idle + 1
            most = max(most, part.size())
            if idle >= ATTEMPTS:
                raise SourceError(
                    f"{url}: broke off {ATTEMPTS} times at {part.size():,} bytes; what came is kept, the same command "
                    "goes on from there"
                )
            time.sleep(PAUSE)
        part.file.flush()
        os.fsync(part.file.fileno())
        found = part.checksum(checksum.partition(":")[0]) if checksum else ""
        if found != checksum:
            part.forget()
            raise SourceError(
                f"{url}: came as {found}, but data.checksum is {checksum}; what came was removed; if the file was "
                "published anew, correct data.checksum, else fetch it again"
            )
        os.replace(part.path, target)
        part.validator.unlink(missing_ok=True)


class _Part:
    """What has come of a file, and by what the server calls this edition of it."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.file = file
        self.validator = path.with_name(f"{path.name}.validator")

    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def edition(self) -> str:
        return self.validator.read_text() if self.validator.exists() else ""

    def begin(self, edition: str) -> None:
        """Start from nothing."""
        self.file.truncate(0)
        self.validator.write_text(edition)

    def forget(self) -> None:
        self.file.truncate(0)
        self.path.unlink(missing_ok=True)
        self.validator.unlink(missing_ok=True)

    def checksum(self, kind: str) -> str:
        digest = hashlib.new(kind, usedforsecurity=False)
        self.file.seek(0)
        while block := self.file.read(BLOCK):
            digest.update(block)
        return f"{kind}:{digest.hexdigest()}"


def _receive(url: str, part: _Part, bar: progress.Progress, *, trusted: bool) -> bool:
    """One attempt: is the file whole now? Bytes of another edition are never put together.

    Args:
        url: Where it comes from.
        part: What has come so far; grows.
        bar: Shows it.
        trusted: Is there a checksum that would find a mixture?
    """
    have, edition = part.size(), part.edition()
    if not (edition or trusted):
        have = 0
    headers = {"User-Agent": "raysrec", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": edition} if edition else {})
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - data.url is http or https
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        return _is_all(error, url, part, have)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.URLError) and not part.size():
            raise SourceError(f"{url}: cannot be reached ({error.reason}); look data.url up") from None
        return False
    with response:
        return _append(response, part, bar, have)


def _is_all(error: urllib.error.HTTPError, url: str, part: _Part, have: int) -> bool:
    """Does the server refuse since there is nothing behind what has come?"""
    if error.code == 416:
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.begin("")  # it was of something else
    elif error.code < 500 and error.code not in (408, 429):
        raise SourceError(f"{url}: the server answers {error.code} {error.reason}; look data.url up") from None
    return False


def _append(response: http.client.HTTPResponse, part: _Part, bar: progress.Progress, have: int) -> bool:
    """Write what the server sends behind what has come, or over it if the server starts anew; is it whole now?"""
    start = have if response.status == 206 else 0
    if start and not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
        part.begin("")
        return False
    if not start:
        tag = response.headers.get("ETag") or ""
        part.begin(tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified") or "")
    length = response.headers.get("Content-Length")
    expected = start + int(length) if length else None
    bar.update(bar.task_ids[0], completed=start, total=expected)
    for block in _blocks(response):
        if block is None:
            return False
        part.file.write(block)
        part.file.flush()
        bar.advance(bar.task_ids[0], len(block))
    return expected in (None, part.size())


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes | None]:
    """What comes, and None at the end if the connection broke."""
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException):
            block = None
        if block != b"":
            yield block
        if not block:
            return


def _unpack(archive: Path, folder: Path, pattern: str) -> list[Path]:
    """The members that are named so, each beside the archive under its base name."""
    paths: list[Path] = []
    with ExitStack() as leavings:
        try:
            for member, stream in _members(archive, pattern):
                path = folder / PurePosixPath(member).name
                if path in paths:
                    raise SourceError(f"{archive}: holds {path.name} twice; unpack by hand the one that is meant")
                paths.append(path)
                leavings.callback(_part(path).unlink, missing_ok=True)
                with stream, _part(path).open("wb") as file:
                    shutil.copyfileobj(stream, file, BLOCK)
                    file.flush()
                    os.fsync(file.fileno())
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as error:
            archive.unlink()
            raise SourceError(f"{archive}: is no whole archive ({error}); it was removed; fetch it again") from None
        for path in paths:
            os.replace(_part(path), path)
    if not paths:
        raise SourceError(f"{archive}: holds no file named {pattern}; name one of its files in data.source")
    return sorted(paths)


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if not info.is_dir() and fnmatchcase(PurePosixPath(info.filename).name, pattern):
                    yield info.filename, opened.open(info)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream and fnmatchcase(PurePosixPath(member.name).name, pattern):
                yield member.name, stream


def _target(config: DataConfig) -> tuple[Path, str]:
    """The folder into which the source is to come, and the name or pattern of its files there."""
    if not config.url:
        raise SourceError(f"data.url is not set, so nothing is known of where {config.source} comes from; set it")
    places = places_of(config)
    elsewhere = "://" in places[0] and not places[0].startswith("file://")
    if len(places) > 1 or elsewhere:
        raise SourceError(f"data.source={config.source}: --download fetches one file or pattern, onto this machine")
    path = Place.of(places[0]).path
    name = urlsplit(config.url).path.lower()
    if not name.endswith(_ARCHIVES):
        if glob.has_magic(path):
            raise SourceError(f"data.source={path}: is a pattern, but data.url is one file; name the file")
        if any(name.endswith(end) != path.lower().endswith(end) for end in COMPRESSED):
            raise SourceError(f"data.source={path}: is to end as {config.url} does, in what says how it is compressed")
    return Path(path).parent, Path(path).name


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


@contextmanager
def _locked(path: Path) -> Iterator[_Part]:
    """The file that is being fetched, which no other process writes meanwhile."""
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SourceError(f"{path}: another process is fetching it; wait for that one") from None
        part = _Part(path, file)
        try:
            yield part
        finally:
            if not part.size():
                part.forget()


@contextmanager
def _bar(name: str) -> Iterator[progress.Progress]:
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        bar.add_task(name, total=None)
        yield bar
