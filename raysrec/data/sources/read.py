"""A source as interactions: which files it consists of, and who reads each.

What is kept of them, how it is numbered and ordered is decided in `preparing/`; the formats stand in `formats.py`.
"""

from dataclasses import replace

import pyarrow as pa

from raysrec.config import DataConfig
from raysrec.data.sources.files import SourceError, SourceFile, find_files
from raysrec.data.sources.formats import LAYOUTS, Layout, belongs, format_of, layout_of, places_of
from raysrec.data.sources.interactions import PER_SECOND, Interactions, Part, known_to
from raysrec.data.sources.json_lines import read_json_lines
from raysrec.data.sources.netflix import read_netflix
from raysrec.data.sources.parquet import read_parquet
from raysrec.data.sources.text import read_text
from raysrec.data.synthetic import synthesize
from raysrec.place import Place

_READERS = {"text": read_text, "json_lines": read_json_lines, "parquet": read_parquet, "netflix": read_netflix}


def read(config: DataConfig) -> Interactions:
    """Every interaction of the source, in its order; ids are text as it stands there.

    A time is a whole number in the source's unit. `978300760.0` is one too; a true fraction is rounded down and
    counted, so an order within the same second becomes the order of the file.

    Raises:
        SourceError: The source is missing, empty, not in its format, or holds an empty id or a time that is no number.
    """
    kind = format_of(config)
    if kind == "synthetic":
        return Interactions.of(known_to(config.time_precision, synthesize(config.synthetic)), 0)
    files = source_files(config)
    layouts = [layout_of(config, kind, file) for file in files]
    parts = [read_file(file, layout) for file, layout in zip(files, layouts, strict=True)]
    table = pa.concat_tables([part.table for part in parts])
    if not len(table):
        raise nothing_read(config)
    floored_times, left_out = (sum(getattr(part, name) for part in parts) for name in ("floored_times", "left_out"))
    return Interactions.of(table, floored_times, PER_SECOND[layouts[0].unit], left_out)


def source_files(config: DataConfig) -> list[SourceFile]:
    """The files a source consists of, in the order they are read; none for `synthetic`.

    What a folder or a pattern stands for is in order of names, a list in its own order.

    Raises:
        SourceError: There is no such file, or a folder has none in the source's format.
    """
    kind = format_of(config)
    if kind == "synthetic":
        return []
    patterns = dict.fromkeys(pattern for layout in LAYOUTS[kind] for pattern in layout.files)
    expected = " or ".join(patterns)
    hint = "; --download of raysrec.prepare fetches it" if config.url else ""
    try:
        found = [find_files(place, lambda name: belongs(kind, name), expected) for place in places_of(config)]
    except SourceError as error:
        raise SourceError(f"{error}{hint}") from None
    return [file for files in found for file in files]


def source_places(config: DataConfig) -> list[Place]:
    """Where the source lies, as far as another machine need be asked whether it sees it: its first file.

    Raises:
        SourceError: There is no such file.
    """
    return [file.place for file in source_files(config)[:1]]


def nothing_read(config: DataConfig) -> SourceError:
    """The error where no file holds an interaction that is asked for."""
    kept = f" in which {' and '.join(f'{name} is {text}' for name, text in config.where.items())}"
    return SourceError(f"data.source={config.source}: has no interactions{kept if config.where else ''}")


def read_file(file: SourceFile, layout: Layout) -> Part:
    """Every interaction of a file, or of a block of one.

    Raises:
        SourceError: It is missing, empty, not in its format, or holds an empty id or a time that is no number.
    """
    part = _READERS[layout.reader](file, layout)
    return replace(part, table=known_to(layout.precision, part.table))
