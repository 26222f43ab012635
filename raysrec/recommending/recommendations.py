"""A folder of recommendations, here or in a store: written part by part, whole or not there, gone on with after a kill.

OUTPUT.unfinished/  while it is written: settings.json, and a file for each part that is done
OUTPUT/             when all of it is there: part-00000.parquet and so on, and _manifest.json

On this machine the one is renamed to the other. A store cannot rename: there the parts are copied, within the store,
and `_manifest.json` comes last. A part's counts stand in its own footer: whoever goes on needs nothing but the parts.
"""

import json
import re
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from raysrec.config.settings import differences
from raysrec.errors import LastingError
from raysrec.place import AnyPath, Place, store_in_words
from raysrec.recommending.asked import DealtUsers, Some
from raysrec.schema import Count, CountOrZero, Section

SCHEMA = pa.schema({"user": pa.string(), "items": pa.list_(pa.string()), "scores": pa.list_(pa.float32())})
"""A row for each user; items best first, and the score of each."""

COPIES_AT_ONCE = 16
"""Parts that are looked at or copied within a store at the same time."""

DEALT = "dealt"
"""How the names of what is dealt from a file of histories begin, in the folder to work in."""

_COUNTS = b"raysrec"


class FolderError(LastingError):
    """A folder that recommendations cannot be written to."""


class PartCounts(Section):
    """What a part holds, and what it does not."""

    users: CountOrZero = 0
    """Users in it."""
    shorter: CountOrZero = 0
    """Those of them who have fewer candidates than were asked for."""
    left_out: Some = Some()
    """Users of whom there is nothing to go by."""
    unknown: CountOrZero = 0
    """Interactions that were left out, with items that are not in the catalogue."""

    def __add__(self, other: "PartCounts") -> "PartCounts":
        return PartCounts(
            users=self.users + other.users,
            shorter=self.shorter + other.shorter,
            left_out=self.left_out + other.left_out,
            unknown=self.unknown + other.unknown,
        )


class PartFile(Section):
    """One file of a finished folder."""

    file: str
    """Its name in the folder."""
    users: Count
    """Its rows."""
    bytes: Count
    """Its size."""


class RecommendationFolder:
    """Where recommendations are written.

    Args:
        output: The folder that is to appear.
    """

    def __init__(self, output: AnyPath) -> None:
        self.place = Place.of(output).absolute()
        if "/" not in self.place.path.strip("/"):
            raise FolderError(f"--output {output}: name a folder in it, such as {output}/recommendations")
        self.work = self.place.at(f"{self.place.path.rstrip('/')}.unfinished")

    def begin(self, settings: dict[str, Any], *, fresh: bool) -> None:
        """Make the folder to work in, or go on with the one that a process left which was killed.

        Args:
            settings: What decides the recommendations.
            fresh: Throw away what is there, if it is recommendations.

        Raises:
            FolderError: The folder is finished, or is no folder of recommendations, or was begun with other settings.
        """
        if self.place.is_file():
            raise FolderError(f"--output {self.place}: is a file; name a folder that is to be made")
        if fresh:
            self._throw_away()
        if (self.place / "_manifest.json").is_file():
            raise FolderError(f"--output {self.place}: is finished; name another folder, or --fresh to write it anew")
        if not (self.work / "_manifest.json").is_file():  # else a process was killed while it let the folder appear
            if self._holds_parts_alone():
                raise FolderError(
                    f"--output {self.place}: holds some parts of recommendations that cannot be resumed; name "
                    "another folder, or --fresh to throw them away"
                )
            self._refuse_others(self.place, ())
        begun = self._begun()
        if begun is None:
            self._refuse_others(self.work, ("part-", "_manifest.json", "settings.json", DEALT))
            self.work.delete()
            self.work.filesystem.create_dir(self.work.path)
            (self.work / "settings.json").write(json.dumps(settings, indent=2) + "\n")
        elif changes := differences(begun, settings):
            said = "; ".join(f"{key} was {old!r} and is now {new!r}" for key, old, new in changes)
            raise FolderError(
                f"--output {self.place}: was begun with other settings: {said}; name another folder, or --fresh to "
                "throw away what was begun"
            )

    def _throw_away(self) -> None:
        """Delete what is there if it is recommendations: a store may hold some of their parts and nothing else.

        So it is where a process was killed while it copied them there, or while it deleted them.
        """
        if (self.place / "_manifest.json").is_file() or self._holds_parts_alone():
            self.place.delete()
        if (self.work / "settings.json").is_file():
            self.work.delete()

    def _holds_parts_alone(self) -> bool:
        names = [info.base_name for info in self.place.below(recursive=False)]
        if not names or not all(re.fullmatch(r"part-\d{5,}\.parquet", name) for name in names):
            return False
        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            # Others give their files such names, too.
            return all(pool.map(_is_part, [self.place / name for name in names]))

    def _refuse_others(self, folder: Place, known: tuple[str, ...]) -> None:
        """Refuse to write where something lies that nobody here has written, whose names do not begin so."""
        for info in folder.below(recursive=False):
            if not info.base_name.lstrip(".").startswith(known):
                raise FolderError(
                    f"--output {self.place}: in {folder} is {info.base_name}, which is no part of recommendations; "
                    "name another folder"
                )

    def _begun(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.work / "settings.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise FolderError(
                f"{self.work / 'settings.json'}: is damaged ({error}); delete {self.work}, what was begun is lost"
            ) from None
        return found

    def dealt(self) -> DealtUsers | None:
        """The file of histories as an earlier process has dealt it, if it came so far."""
        try:
            return DealtUsers.model_validate_json((self.work / "dealt.json").read_text())
        except FileNotFoundError:
            return None

    def room_to_deal(self) -> Place:
        """A new folder to deal a file of histories into."""
        return self.work / f"{DEALT}-{uuid.uuid4().hex}"

    def has_dealt(self, dealt: DealtUsers) -> None:
        """Remember that all of the file has been dealt."""
        (self.work / "dealt.json").write(dealt.model_dump_json() + "\n")

    def parts(self) -> dict[int, PartCounts]:
        """Which parts are done, and what they hold."""
        names = [info.base_name for info in self.work.below(recursive=False) if info.base_name.startswith("part-")]
        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            facts = pool.map(_facts_of, [self.work / name for name in names])
            counts = [PartCounts.model_validate_json(found[_COUNTS]) for found in facts]
        return {int(name[5:-8]): found for name, found in zip(names, counts, strict=True)}

    def finish(self, facts: dict[str, Any], parts: dict[int, PartCounts]) -> dict[str, Any]:
        """Let the folder appear, with a manifest, which is returned, beside the parts that have users."""
        sizes = {info.base_name: info.size for info in self.work.below(recursive=False)}
        files = [
            PartFile(file=part_name(number), users=counts.users, bytes=sizes[part_name(number)])
            for number, counts in sorted(parts.items())
            if counts.users
        ]
        manifest = {**facts, "folder": str(self.place), "files": [file.model_dump() for file in files]}
        (self.work / "_manifest.json").write(json.dumps(manifest, indent=2) + "\n")
        if self.place.is_local:
            self._tidy({*(file.file for file in files), "_manifest.json"})
            self.work.local.rename(self.place.local)
        else:
            with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
                list(pool.map(self._copy, [file.file for file in files]))
            self._copy("_manifest.json")
            self.work.delete()
        return manifest

    def _tidy(self, kept: set[str]) -> None:
        """Leave nothing but these; the settings go last, without which nobody goes on here."""
        infos: list[fs.FileInfo] = [info for info in self.work.below(recursive=False) if info.base_name not in kept]
        for info in sorted(infos, key=lambda info: info.base_name == "settings.json"):
            self.work.at(info.path).delete()

    def _copy(self, name: str) -> None:
        with store_in_words(self.place):
            self.place.filesystem.copy_file((self.work / name).path, (self.place / name).path)


def part_name(number: int) -> str:
    """The file of a part."""
    return f"part-{number:05d}.parquet"


def write_part(folder: Place, number: int, tables: Iterable[tuple[pa.Table, PartCounts]]) -> PartCounts:
    """Write a part, a row group for each table; it appears when all of it is there.

    Args:
        folder: Where parts are written.
        number: Of the part.
        tables: Of `SCHEMA`, and what is counted in each; at least one.
    """
    with (folder / part_name(number)).replacing() as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        counts = _written(writer, tables)
        writer.add_key_value_metadata({_COUNTS: counts.model_dump_json()})
    return counts


def _facts_of(file: Place) -> dict[bytes, bytes]:
    """What stands in the footer of a Parquet file."""
    with store_in_words(file):
        facts: dict[bytes, bytes] | None = pq.read_metadata(file.path, filesystem=file.filesystem).metadata
    return facts or {}


def _is_part(file: Place) -> bool:
    try:
        return _COUNTS in _facts_of(file)
    except pa.ArrowInvalid:
        return False


def _written(writer: Any, tables: Iterable[tuple[pa.Table, PartCounts]]) -> PartCounts:
    counts = PartCounts()
    for table, more in tables:
        writer.write_table(table)
        counts += more
    return counts
